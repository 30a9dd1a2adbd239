"""The errors of this room: bad input, and a loss that is no longer a number."""


class InputError(ValueError):
    """A value that cannot be used; the message names the value, the limit and the remedy.

    The command prints it in one line and exits with 2.
    """


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite; the student still holds the weights from before this update."""
