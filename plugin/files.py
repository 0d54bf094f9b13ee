"""Reading text files, and writing results so that a reader never sees half a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ropebend.errors import FileError


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.  Raises FileError naming the file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise FileError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise FileError(f"{path}: not UTF-8 text") from None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all.  Raises FileError naming the file."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as f:
            try:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
                os.chmod(f.name, 0o666 & ~_umask())
                os.replace(f.name, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):  # interrupted right after it took its place
                    os.unlink(f.name)
                raise
    except OSError as e:
        raise FileError(f"{path}: cannot write: {e.strerror}") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises FileError naming the file; ValueError or TypeError, as json does, for what JSON cannot hold.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # half a surrogate pair becomes JSON's own escape


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
