"""The one exception for mistakes a user can fix."""

__all__ = ["UserError", "first_line"]


class UserError(ValueError):
    """A wrong value, file or combination of settings.

    The message is one line: the value given, what is allowed, and the config key to change. The command line prints
    that line alone and exits with status 1; every other exception is a fault of the program and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
