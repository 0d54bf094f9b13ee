"""Comparing what was written with what was meant, by reading both again."""

from __future__ import annotations

from itertools import zip_longest

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Rewrite, other_pairs
from ropebend.errors import RopebendError
from ropebend.model_info import Header
from ropebend.scaling import LayerScaling, gguf_keys

SAMPLE = 4096  # bytes compared at either end of each tensor


def verify(rewrite: Rewrite, result: GgufFile) -> None:
    """Raise RopebendError unless `result` holds the keys and tensor infos that `rewrite` meant to write.

    That is: every other key and every tensor info equals the source's, in the same order, the tensor data begins and
    ends where it should, and our keys read back as an equal LayerScaling.  The data itself was compared by `transfer`
    as it was copied, or is the source's own blocks; that it lies where the result says is seen at both ends of each
    tensor.
    """
    source = rewrite.source
    for name in ("version", "order", "n_tensors", "alignment"):
        if getattr(source, name) != getattr(result, name):
            raise RopebendError(f"{name}: expected {getattr(source, name)}, got {getattr(result, name)}")
    for a, b in zip_longest(other_pairs(source), other_pairs(result)):
        if a is None or b is None or a.key != b.key:
            raise RopebendError(f"keys: expected {a and a.key!r}, got {b and b.key!r}")
        _same(source, (a.start, a.end), result, (b.start, b.end), f"key {a.key!r}")
    _same(source, source.infos, result, result.infos, "the tensor infos")
    read_back(rewrite.scaling, result)
    if result.data != rewrite.data:
        raise RopebendError(f"the tensor data: expected the bytes {rewrite.data}, got {result.data}")
    _sample(source, result)


def read_back(scaling: LayerScaling | None, result: GgufFile) -> None:
    """Raise RopebendError unless `result` carries these scales; None: no key of ours."""
    fields = {key: result.value(key) for key in result.pairs if key.startswith(gguf_keys.PREFIX)}
    if scaling is None:
        if fields:
            raise RopebendError(f"{next(iter(fields))}: expected to be gone")
        return
    read = LayerScaling.from_metadata(fields, Header(result.path, result.value).architecture, scaling.n_layer)
    if read is None or read.to_metadata() != scaling.to_metadata():
        raise RopebendError(f"{gguf_keys.PREFIX}*: read back as other scales than were to be written")


def _sample(source: GgufFile, result: GgufFile) -> None:
    for i, (offset, size) in enumerate(zip(*source.tensors, strict=True)):
        for at, n in {(0, min(size, SAMPLE)), (max(size - SAMPLE, 0), min(size, SAMPLE))}:
            a, b = (f.data[0] + offset + at for f in (source, result))
            _same(source, (a, a + n), result, (b, b + n), f"the data of tensor {i}")


def _same(source: GgufFile, expected: tuple[int, int], result: GgufFile, got: tuple[int, int], what: str) -> None:
    length = expected[1] - expected[0]
    if got[1] - got[0] != length:
        raise RopebendError(f"{what}: expected {length} bytes, got {got[1] - got[0]}")
    at = 0
    for a, b in zip_longest(source.chunks(*expected), result.chunks(*got)):
        if a != b:
            source.check_unchanged()
            at += next(i for i, (x, y) in enumerate(zip_longest(a or b"", b or b"")) if x != y)
            raise RopebendError(f"{what}: byte {at} of {length} differs from the source")
        at += len(a)
