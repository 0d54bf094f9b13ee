"""Comparing a written file with its source, by reading both again."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from ropebend.convert.fit import architecture
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Progress, Rewrite, other_pairs
from ropebend.errors import RopebendError
from ropebend.scaling import Keys, LayerScaling


def verify(rewrite: Rewrite, path: Path, progress: Progress) -> None:
    """Raise RopebendError unless `path` holds what `rewrite` meant to write.

    That is: every other key, every tensor info and every byte of tensor data equals the source's, in the same order,
    and our keys read back as an equal LayerScaling.  `progress` is told the bytes of tensor data compared.
    """
    try:
        with GgufFile(path) as result:
            _compare(rewrite.source, result, progress)
            _read_back(rewrite.scaling, result)
    except RopebendError as e:
        raise RopebendError(f"verification failed, nothing was kept: {e}") from None


def _compare(source: GgufFile, result: GgufFile, progress: Progress) -> None:
    for name in ("version", "n_tensors", "alignment"):
        if getattr(source, name) != getattr(result, name):
            raise RopebendError(f"{name}: expected {getattr(source, name)}, got {getattr(result, name)}")
    for a, b in zip_longest(other_pairs(source), other_pairs(result)):
        if a is None or b is None or a.key != b.key:
            raise RopebendError(f"keys: expected {a and a.key!r}, got {b and b.key!r}")
        _same(source, (a.start, a.end), result, (b.start, b.end), f"key {a.key!r}")
    _same(source, source.infos, result, result.infos, "the tensor infos")
    _same(source, source.data, result, result.data, "the tensor data", progress)


def _same(
    source: GgufFile,
    expected: tuple[int, int],
    result: GgufFile,
    got: tuple[int, int],
    what: str,
    progress: Progress = lambda _: None,
) -> None:
    length = expected[1] - expected[0]
    if got[1] - got[0] != length:
        raise RopebendError(f"{what}: expected {length} bytes, got {got[1] - got[0]}")
    at = 0
    for a, b in zip(source.chunks(*expected), result.chunks(*got), strict=True):
        if a != b:
            at += next(i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y)
            raise RopebendError(f"{what}: byte {at} of {length} differs from the source")
        at += len(a)
        progress(len(a))


def _read_back(scaling: LayerScaling | None, result: GgufFile) -> None:
    fields = {key: result.value(key) for key in result.pairs if key.startswith(Keys.PREFIX)}
    if scaling is None:
        if fields:
            raise RopebendError(f"{next(iter(fields))}: expected to be gone")
        return
    read = LayerScaling.from_metadata(fields, architecture(result), scaling.n_layer)
    # As metadata, because a NaN in the provenance (a failed score) does not equal itself.
    if read is None or read.to_metadata() != scaling.to_metadata():
        raise RopebendError(f"{Keys.PREFIX}*: read back as other scales than were to be written")
