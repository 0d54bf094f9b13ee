"""Reading the published data files: JSON lines, plain or gzip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ropebend.errors import RopebendError
from ropebend.tasks.text import read_text

T = TypeVar("T")


def read_json_lines(path: str | Path, parse: Callable[[Any], T], expected: str) -> list[T]:
    """One parsed value per line that is not blank.

    Raises RopebendError naming the file, the line and what was expected; also where there is no line at all.
    """
    out: list[T] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if "\\ud" in line.lower():  # half a surrogate pair cannot be encoded, so it cannot be tokenised
                json.dumps(value, ensure_ascii=False).encode()
            out.append(parse(value))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise RopebendError(f"{path}: line {number}: expected {expected} ({type(e).__name__}: {e})") from None
    return out
