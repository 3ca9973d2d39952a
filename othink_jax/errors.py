"""The exception for a user's mistake, and helpers that quote text in its message."""


class UserError(Exception):
    """A mistake of the user's: one line that says what is wrong and what to do about it.

    The command line prints it without a traceback and exits with 1. Any other exception that
    escapes is a bug of ours and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """First line of an error's message; the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def writable(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def quoted(text: str, limit: int = 200) -> str:
    """Untrusted text as part of one line: unprintable characters escaped, cut after `limit`."""
    cut = text[:limit] + "..." * (len(text) > limit)
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return "".join(escaped)
