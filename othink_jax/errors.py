"""The one exception that stands for a user's mistake, and how it quotes another."""


class UserError(Exception):
    """A mistake of the user's: one line that says what is wrong and what to do about it.

    The command line prints it without a traceback and exits with 1. Anything else that escapes is a
    fault of ours and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """What a library says in its first line; its kind of error where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def writable(text: str) -> str:
    """A text that UTF-8 can hold: a half of a character (a lone surrogate) is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def quoted(text: str, limit: int = 200) -> str:
    """What stands in a stranger's file, as part of one line: escaped, and cut after `limit`."""
    cut = text[:limit] + "..." * (len(text) > limit)
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return "".join(escaped)
