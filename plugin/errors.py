"""The exceptions whose text is meant for the user: commands print it without a traceback.

Callers tell them apart by class; the texts may change at any time.
"""

from __future__ import annotations

from typing import ClassVar


class RopebendError(Exception):
    """Something failed.  The text says what was wrong, where, and what was expected.

    exit_code  what commands end with: 2 for a UsageError, 1 for every other
    """

    exit_code: ClassVar[int] = 1


class UsageError(RopebendError):
    """The call itself cannot be right, whatever the files hold."""

    exit_code = 2


class FileError(RopebendError):
    """A file is missing, cannot be read or written, or is not what it should be."""


class ScalesError(RopebendError):
    """Scales that cannot be: a number out of range, a key missing, or made for another model."""


class TextError(RopebendError):
    """A text that cannot be tokenised: no Unicode, too long for llama.cpp, or over 1 MiB without white space."""


def named(path: object, error: RopebendError) -> RopebendError:
    """The same error with the name of the file in front."""
    return type(error)(f"{path}: {error}")
