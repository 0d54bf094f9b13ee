"""`Rewrite`: the bytes of a GGUF file with our keys added or removed, everything else as it was."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from gguf import GGUFValueType

from ropebend.convert.gguf_file import CHUNK, HEADER_SIZE, MAX_VALUE_BYTES, SCALAR_FORMATS, GgufFile, KeyValue, pad
from ropebend.convert.room import with_room
from ropebend.convert.transfer import BLOCK, Progress, transfer, write_at
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling, gguf_keys

TYPES = {
    gguf_keys.VERSION: GGUFValueType.UINT32,
    gguf_keys.PLAN_UP_TO: GGUFValueType.ARRAY,
    gguf_keys.LAYER_SCALE: GGUFValueType.ARRAY,
    gguf_keys.LAYER_ATTN_FACTOR: GGUFValueType.ARRAY,
    gguf_keys.METHOD: GGUFValueType.STRING,
    gguf_keys.FACTOR: GGUFValueType.FLOAT32,
    gguf_keys.ORIGINAL_CONTEXT: GGUFValueType.UINT32,
    gguf_keys.PROVENANCE: GGUFValueType.STRING,
}


class Rewrite:
    """`source` with every `ropebend.*` key dropped and those of `scaling`, if any, appended.

    added      key → the bytes of its pair
    kept       the other pairs, in the order of the source
    replaced   the `ropebend.*` keys that the source carries, but those of the room
    room       bytes reserved for later changes, beyond what `added` needs
    data       (start, end) of the tensor data in the result
    size       bytes of the result
    shareable  True if the tensor data keeps its place in the blocks of a file system, so that it can be shared

    The new keys come last, so that removing them gives back the bytes from before.
    """

    def __init__(self, source: GgufFile, scaling: LayerScaling | None) -> None:
        self.source = source
        self.scaling = scaling
        metadata = scaling.to_metadata() if scaling else {}
        self.added = {k: encode(k, v, source.order) for k, v in metadata.items()}
        self.kept = other_pairs(source)
        self.replaced = [k for k in source.pairs if k.startswith(gguf_keys.PREFIX) and not k.startswith(gguf_keys.ROOM)]
        end = HEADER_SIZE + sum(p.end - p.start for p in self.kept)
        self._ours, n_ours = b"".join(self.added.values()), len(self.added)
        # Without tensors, room that is no multiple of the alignment would change how the file ends.
        if scaling and (source.n_tensors or source.alignment <= BLOCK):
            self._ours, n_ours = with_room(self.added, end, source.order)
        self.room = len(self._ours) - sum(map(len, self.added.values()))
        self._header = header(source, len(self.kept) + n_ours)
        end += len(self._ours) + source.infos[1] - source.infos[0]
        # A file without tensors may end before its padding; then so does the result.
        self._padding = pad(end, source.alignment) - end if source.padded else 0
        self.size = end + self._padding + source.data[1] - source.data[0]
        self.data = (end + self._padding, self.size)
        self.shareable = (self.data[0] - source.data[0]) % BLOCK == 0

    def write(self, fd: int, progress: Progress, check: bool) -> int:
        """Write the result into the empty file `fd`; return how many bytes it shares with the source.

        progress  is told the bytes written
        check     compare the tensor data with the source on the way

        Raises RopebendError if the source shrinks meanwhile or a byte differs, OSError as `fd` gives it.
        """
        at = 0
        for chunk in self._metadata():
            write_at(fd, chunk, at)
            at += len(chunk)
            progress(len(chunk))
        # Tensor offsets count from the start of the tensor data, so they stay true.
        return transfer(self.source, *self.source.data, fd, at, progress, check)

    def _metadata(self) -> Iterator[bytes]:
        yield self._header
        for pair in self.kept:
            yield from self.source.chunks(pair.start, pair.end)
        yield self._ours
        yield from self.source.chunks(*self.source.infos)
        for done in range(0, self._padding, CHUNK):
            yield bytes(min(CHUNK, self._padding - done))


def other_pairs(file: GgufFile) -> list[KeyValue]:
    """The pairs that are not ours, in the order of the file."""
    return [pair for key, pair in file.pairs.items() if not key.startswith(gguf_keys.PREFIX)]


def header(file: GgufFile, n_pairs: int) -> bytes:
    """The first HEADER_SIZE bytes of `file` if it had `n_pairs` metadata pairs."""
    return struct.pack(f"{file.order}4sIQQ", b"GGUF", file.version, file.n_tensors, n_pairs)


def encode(key: str, value: Any, order: str = "<") -> bytes:
    """The bytes of one of our pairs; its type follows from the key.  Raises RopebendError if it cannot be written."""
    type_ = TYPES[key]
    out = _string(key, key, order) + struct.pack(f"{order}I", type_)
    if type_ == GGUFValueType.STRING:
        return out + _string(key, value, order)
    if type_ == GGUFValueType.ARRAY:
        item = GGUFValueType.UINT32 if key == gguf_keys.PLAN_UP_TO else GGUFValueType.FLOAT32
        return out + struct.pack(f"{order}IQ{len(value)}{SCALAR_FORMATS[item]}", item, len(value), *value)
    return out + struct.pack(order + SCALAR_FORMATS[type_], value)


def _string(key: str, text: str, order: str) -> bytes:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise RopebendError(f"{key}: expected text that fits UTF-8, got {text[e.start : e.end]!r}") from None
    if len(raw) >= MAX_VALUE_BYTES:
        raise RopebendError(f"{key}: expected less than {MAX_VALUE_BYTES} bytes, got {len(raw)}")
    return struct.pack(f"{order}Q", len(raw)) + raw
