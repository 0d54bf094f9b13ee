"""What decides the figures besides the spec: the model file's bytes and the versions."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from ropebend.convert.target import SPLIT_NAME, part_name
from ropebend.errors import RopebendError

BLOCK = 1 << 16
N_SAMPLED = 64  # blocks: 4 MiB, which a slow network file system gives in a second


def versions() -> dict[str, str]:
    """Versions that decide the figures."""
    import llama_cpp

    import ropebend

    return {"ropebend": ropebend.__version__, "llama_cpp_python": llama_cpp.__version__, "numpy": np.__version__}


def model_digest(path: str | Path) -> str:
    """SHA-256 of a model file, hex; of a split one all parts, one after the other.

    Raises RopebendError if a file cannot be read.
    """
    digest = hashlib.sha256()
    for part in _parts(Path(path)):
        try:
            with open(part, "rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
        except OSError as e:
            raise RopebendError(f"{part}: {e.strerror}") from None
    return digest.hexdigest()


def model_sample(path: str | Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and a SHA-256 of evenly spaced blocks of each file of a model (a split one has several).

    Tells another model, another quantisation and half a copy apart without reading all of it.  Raises RopebendError if
    a file cannot be read.
    """
    return {str(part): _sample(part) for part in _parts(Path(path))}


def _parts(path: Path) -> list[Path]:
    split = SPLIT_NAME.fullmatch(path.name)
    if split is None or int(split["number"]) != 1:
        return [path]
    count = int(split["count"])
    return [path.with_name(part_name(split["prefix"], i, count)) for i in range(count)]


def _sample(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            last = max(0, size - BLOCK)
            for at in sorted({last * i // (N_SAMPLED - 1) for i in range(N_SAMPLED)}):
                f.seek(at)
                digest.update(f.read(BLOCK))
    except OSError as e:
        raise RopebendError(f"{path}: {e.strerror}") from None
    return size, digest.hexdigest()
