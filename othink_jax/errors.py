"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake of the user's: one line that says what is wrong and what to do about it.

    The command line prints it without a traceback and exits with 1. Anything else that escapes is a
    fault of ours and keeps its traceback.
    """
