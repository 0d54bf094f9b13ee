"""Commands that a user can paste into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def command(*words: object) -> str:
    """The words as one command line; a path that looks like an option gets ./ in front."""
    return shlex.join(f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words)
