"""The one exception that stands for a user's mistake, and how it quotes another."""


class UserError(Exception):
    """A mistake of the user's: one line that says what is wrong and what to do about it.

    The command line prints it without a traceback and exits with 1. Anything else that escapes is a
    fault of ours and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """What a library says in its first line; its kind of error where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
