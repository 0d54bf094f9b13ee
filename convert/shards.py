"""What becomes of the other parts of a split model."""

from __future__ import annotations

from enum import Enum


class Shards(str, Enum):
    """Choices of `--shards`."""

    LINK = "link"  # hard links: no space, the same file under another name
    SYMLINK = "symlink"
    COPY = "copy"
