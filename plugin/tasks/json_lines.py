"""Reading the published data files: JSON lines, plain or gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ropebend.errors import RopebendError

T = TypeVar("T")


def read_json_lines(path: str | Path, parse: Callable[[Any], T], expected: str) -> list[T]:
    """One parsed value per line that is not blank.

    Raises RopebendError naming the file, the line and what was expected; also where there is no line at all.
    """
    out: list[T] = []
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    out.append(parse(json.loads(line)))
                except (ValueError, KeyError, TypeError) as e:
                    raise RopebendError(
                        f"{path}: line {number}: expected {expected} ({type(e).__name__}: {e})"
                    ) from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise RopebendError(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    if not out:
        raise RopebendError(f"{path}: expected {expected} on each line, the file is empty")
    return out
