"""The one error that bad input raises in this room."""


class InputError(ValueError):
    """A value that cannot be used; the message names the value, the limit and the remedy.

    The command prints it in one line and exits with 2.
    """
