"""The errors of this room: bad input, and a server that cannot be had."""


class InputError(ValueError):
    """A value that cannot be used; the message names the value, the limit and the remedy.

    The command prints it in one line and exits with 2.
    """


class UnavailableError(RuntimeError):
    """What is asked for cannot be had now; the same command later goes on.

    The command prints it in one line and exits with 1.
    """
