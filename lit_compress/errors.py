"""The one exception for mistakes a user can mend."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A wrong value, file or combination of settings.

    The message is one line: the value given, what is allowed, and the config key to change. The command line prints
    that line alone and exits with status 1; every other exception is a fault of the program and keeps its traceback.
    """
