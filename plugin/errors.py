"""The exceptions whose text is meant for the user: commands print it without a traceback."""


class RopebendError(Exception):
    """Something failed.  The text says what was wrong, where, and what was expected; the exit code is 1."""


class UsageError(RopebendError):
    """The call itself cannot be right, whatever the files hold; the exit code is 2."""
