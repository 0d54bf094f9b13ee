"""`Rewrite`: the bytes of a GGUF file with our keys added or removed, everything else as it was."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gguf import GGUFValueType

from ropebend.convert.gguf_file import CHUNK, HEADER_SIZE, SCALAR_FORMATS, GgufFile, KeyValue, pad
from ropebend.errors import RopebendError
from ropebend.scaling import Keys, LayerScaling

#: Told the number of bytes done since the last call.
Progress = Callable[[int], object]

TYPES = {
    Keys.VERSION: GGUFValueType.UINT32,
    Keys.LAYER_SCALE: GGUFValueType.ARRAY,  # of FLOAT32
    Keys.METHOD: GGUFValueType.STRING,
    Keys.FACTOR: GGUFValueType.FLOAT32,
    Keys.ORIGINAL_CONTEXT: GGUFValueType.UINT32,
    Keys.PROVENANCE: GGUFValueType.STRING,
}


class Rewrite:
    """`source` with every `ropebend.*` key dropped and those of `scaling`, if any, appended.

    added     key → the bytes of its pair
    kept      the other pairs, in the order of the source
    replaced  the `ropebend.*` keys that the source carries
    size      bytes of the result

    The new keys come last, so that removing them gives back the bytes from before.
    """

    def __init__(self, source: GgufFile, scaling: LayerScaling | None) -> None:
        self.source = source
        self.scaling = scaling
        self.added = {k: encode(k, v) for k, v in (scaling.to_metadata() if scaling else {}).items()}
        self.kept = other_pairs(source)
        self.replaced = [key for key in source.pairs if key.startswith(Keys.PREFIX)]
        self._header = header(source.version, source.n_tensors, len(self.kept) + len(self.added))
        end = HEADER_SIZE + sum(p.end - p.start for p in self.kept) + sum(map(len, self.added.values()))
        end += source.infos[1] - source.infos[0]
        # A file without tensors may end before its padding; then so does the result.
        self._padding = pad(end, source.alignment) - end if source.padded else 0
        self.size = end + self._padding + source.data[1] - source.data[0]

    def write(self, out: BinaryIO, progress: Progress) -> None:
        """Write the result, a chunk at a time.  RopebendError if the source shrinks meanwhile, OSError from `out`."""
        for chunk in self._chunks():
            out.write(chunk)
            progress(len(chunk))

    def _chunks(self) -> Iterator[bytes]:
        yield self._header
        for pair in self.kept:
            yield from self.source.chunks(pair.start, pair.end)
        yield from self.added.values()
        yield from self.source.chunks(*self.source.infos)
        for done in range(0, self._padding, CHUNK):
            yield bytes(min(CHUNK, self._padding - done))
        # Tensor offsets count from the start of the tensor data, so they stay true.
        yield from self.source.chunks(*self.source.data)


def other_pairs(file: GgufFile) -> list[KeyValue]:
    """The pairs that are not ours, in the order of the file."""
    return [pair for key, pair in file.pairs.items() if not key.startswith(Keys.PREFIX)]


def header(version: int, n_tensors: int, n_pairs: int) -> bytes:
    """The first HEADER_SIZE bytes of a GGUF file."""
    return struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_pairs)


def encode(key: str, value: Any) -> bytes:
    """The bytes of one of our pairs; its type follows from the key.  Raises RopebendError if it cannot be written."""
    type_ = TYPES[key]
    out = _string(key, key) + struct.pack("<I", type_)
    if type_ == GGUFValueType.STRING:
        return out + _string(key, value)
    if type_ == GGUFValueType.ARRAY:
        return out + struct.pack(f"<IQ{len(value)}f", GGUFValueType.FLOAT32, len(value), *value)
    return out + struct.pack(SCALAR_FORMATS[type_], value)


def _string(key: str, text: str) -> bytes:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise RopebendError(f"{key}: expected text that fits UTF-8, got {text[e.start : e.end]!r}") from None
    return struct.pack("<Q", len(raw)) + raw
