"""`GgufFile`: where everything in a GGUF file lies, as byte ranges, read without trusting the file.

The file is `magic, version, n_tensors, n_kv | key-value pairs | tensor infos | padding | tensor data`.  Pairs and infos
are located, not decoded: what is copied is copied as raw bytes.  Every count and length is checked against the end of
the file before it is believed, and the work is bounded: no file makes the scan hang or fill the memory.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ropebend.errors import FileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the same layout; 3 only added big-endian files
HEADER_SIZE = 24  # magic, u32 version, u64 n_tensors, u64 n_kv
DEFAULT_ALIGNMENT = 32
CHUNK = 1 << 20  # bytes read at a time

MAX_DIMS = 4  # ggml's GGML_MAX_DIMS
MAX_KEY_BYTES = 65535  # the GGUF specification's
MAX_ARRAY_DEPTH = 8  # llama.cpp reads no nested array at all
MAX_VALUE_BYTES = 4 << 20  # of a value that is decoded, not only copied
# What real files have is far below: 100 keys, 50,000 tensors, 500,000 tokens and merges.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_WORK = 1 << 24  # strings, nested elements and bytes of names walked one by one

SCALAR_FORMATS: dict[int, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_SIZES = {t: struct.calcsize(f"<{f}") for t, f in SCALAR_FORMATS.items()}
_MIN_SIZES = {**_SIZES, GGUFValueType.STRING: 8, GGUFValueType.ARRAY: 12}  # of one array element
_MIN_PAIR, _MIN_INFO = 8 + 1 + 4 + 1, 8 + 4 + 4 + 8
_STRING, _ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
_WINDOW = 1 << 18  # bytes read at a time by the scanner


@dataclass(frozen=True)
class KeyValue:
    """One metadata pair and its bytes: the whole pair is [start, end), its value [value, end)."""

    key: str
    type: int  # a GGUFValueType
    start: int
    value: int
    end: int


class GgufFile:
    """An open, scanned GGUF file; a context manager.

    path, size        as given; bytes
    status            os.stat_result at the time of opening
    order             "<" little-endian or ">" big-endian
    version           2 or 3
    pairs             KeyValue of every metadata key, in the order of the file, by key
    n_tensors         number of tensors
    tensors           their (offset, size) in bytes from the start of the data; size 0 if the type is unknown
    rope_tensors      names of those that hold frequency factors of the rope
    infos             (start, end) of the tensor infos
    alignment         general.alignment, a power of two
    data              (start, end) of the tensor data, up to the end of the file
    padded            False if a file without tensors ends before its padding does

    Making one raises FileError naming the file, the place, what was found and what was expected.
    """

    def __init__(self, path: Path, fd: int | None = None) -> None:
        """Open `path`; with `fd` read that open file instead (it stays open), `path` is only what errors call it."""
        self.path = path
        self.fd = -1
        try:
            # Before opening: a FIFO would block in open().
            if fd is None and not stat.S_ISREG(os.stat(path).st_mode):
                raise FileError(f"{path}: not a regular file")
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else os.dup(fd)
            self.status = os.fstat(self.fd)
            self.size = self.status.st_size
            self._scan()
        except (OSError, ValueError) as e:  # ValueError: a NUL in the name
            self.close()
            raise FileError(f"{path}: {e.strerror if isinstance(e, OSError) else e}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def chunks(self, start: int, end: int, most: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end), at most `most` (CHUNK) at a time.  RopebendError if the file became shorter."""
        while start < end:
            chunk = os.pread(self.fd, min(most or CHUNK, end - start), start)
            if not chunk:
                raise FileError(f"{self.path}: ended at byte {start} while being read; expected {end} bytes")
            start += len(chunk)
            yield chunk

    def tensors_digest(self) -> str:
        """SHA-256, hex, of all tensors: names, shapes, types and data.  Other metadata does not change it."""
        digest = hashlib.sha256()
        for start, end in (self.infos, self.data):
            for chunk in self.chunks(start, end):
                digest.update(chunk)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise RopebendError if the file was written to since it was opened."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.status.st_mtime_ns):
            raise FileError(
                f"{self.path}: another program wrote to this file meanwhile "
                f"({self.size:,} bytes, now {now.st_size:,}); try again when it is done"
            )

    def value(self, key: str) -> Any:
        """The value of a scalar, a string or an array of scalars (a list); None if the key is not there."""
        pair = self.pairs.get(key)
        if pair is None:
            return None
        if pair.end - pair.value > MAX_VALUE_BYTES:
            raise FileError(
                f"{self.path}: {key}: expected at most {MAX_VALUE_BYTES} bytes, got {pair.end - pair.value}"
            )
        raw = b"".join(self.chunks(pair.value, pair.end))
        if pair.type in SCALAR_FORMATS:
            return struct.unpack(self.order + SCALAR_FORMATS[pair.type], raw)[0]
        if pair.type == GGUFValueType.STRING:
            try:
                return raw[8:].decode("utf-8")
            except UnicodeDecodeError:
                raise FileError(f"{self.path}: {key}: expected UTF-8 text, got {raw[8:60]!r}") from None
        item_type, count = struct.unpack_from(f"{self.order}IQ", raw)
        if item_type not in SCALAR_FORMATS:
            raise FileError(f"{self.path}: {key}: expected an array of numbers, got an array of type {item_type}")
        return list(struct.unpack_from(f"{self.order}{count}{SCALAR_FORMATS[item_type]}", raw, 12))

    # ---- the scanner

    def _scan(self) -> None:
        self._pos, self._work = 0, 0
        self._window, self._window_at = b"", 0
        self.order = "<"
        magic = self._peek(4)
        if magic != MAGIC:
            raise FileError(f"{self.path}: not a GGUF file: expected it to start with {MAGIC!r}, got {magic!r}")
        self._pos = 4
        self.version = self._u32("the version")
        if self.version & 0xFFFF == 0 and self.version != 0:
            self.order = ">"
            self.version = int.from_bytes(self.version.to_bytes(4, "little"), "big")
        if self.version not in VERSIONS:
            raise FileError(f"{self.path}: GGUF version: expected 2 or 3, got {self.version}")
        self.n_tensors = self._count(self._u64("the number of tensors"), _MIN_INFO, "tensors", MAX_TENSORS)
        n_pairs = self._count(self._u64("the number of keys"), _MIN_PAIR, "keys", MAX_KEYS)
        self.pairs: dict[str, KeyValue] = {}
        for i in range(n_pairs):
            self._pair(f"key {i}")
        self.alignment = self._alignment()
        start, needed, last = self._pos, 0, ""
        self.tensors = (array("Q"), array("Q"))
        self.rope_tensors: list[str] = []
        for i in range(self.n_tensors):
            offset, size, name = self._tensor_info(f"tensor {i}")
            if name.startswith("rope_"):
                self.rope_tensors.append(name)
            if offset + size >= needed:
                needed, last = offset + size, name
            self.tensors[0].append(offset)
            self.tensors[1].append(min(size, self.size))
        self.infos = (start, self._pos)
        data = pad(self._pos, self.alignment)
        if self.n_tensors and data + needed > self.size:
            raise FileError(
                f"{self.path}: truncated: tensor {last!r} ends at byte {data + needed}, the file at {self.size}"
            )
        self.padded = data <= self.size
        self.data = (min(data, self.size), self.size)
        self._window = b""

    def _pair(self, what: str) -> None:
        start = self._pos
        key = self._name(what)
        if not key:
            self._fail(what, "expected a name, got an empty one")
        if key in self.pairs:
            self._fail(what, f"a second {key!r}; expected every key once")
        type_ = self._u32(what)
        value = self._pos
        self._skip_value(type_, f"key {key!r}", 0)
        self.pairs[key] = KeyValue(key, type_, start, value, self._pos)

    def _skip_value(self, type_: int, what: str, depth: int) -> None:
        if type_ in _SIZES:
            self._skip(_SIZES[type_], what)
        elif type_ == _STRING:
            self._skip(self._u64(what), what)
        elif type_ == _ARRAY:
            if depth == MAX_ARRAY_DEPTH:
                self._fail(what, f"arrays nested more than {MAX_ARRAY_DEPTH} deep")
            item_type = self._u32(what)
            if item_type not in _MIN_SIZES:
                self._fail(what, f"unknown value type {item_type}; expected 0 to {max(GGUFValueType)}")
            count = self._count(self._u64(what), _MIN_SIZES[item_type], f"elements of {what}")
            if item_type in _SIZES:
                self._skip(count * _SIZES[item_type], what)
                return
            self._spend(count, what)
            if item_type == _STRING:
                self._skip_strings(count, what)
                return
            for _ in range(count):
                self._skip_value(item_type, what, depth + 1)
        else:
            self._fail(what, f"unknown value type {type_}; expected 0 to {max(GGUFValueType)}")

    def _skip_strings(self, count: int, what: str) -> None:
        """Skip `count` strings; a vocabulary has hundreds of thousands, so the inner loop does nothing else."""
        length_at = struct.Struct(f"{self.order}Q").unpack_from
        while count:
            block, at = self._peek(_WINDOW), 0
            try:
                for count in range(count - 1, -1, -1):  # noqa: B007, B020 - what is left after it
                    at += 8 + length_at(block, at)[0]
            except (struct.error, OverflowError):  # the end of the block, or a length beyond any file
                count += 1
            if at == 0 or self._pos + at > self.size:
                self._skip_one_by_one(what)
            self._pos += at

    def _skip_one_by_one(self, what: str) -> NoReturn:
        """As `_skip_strings`, until the string that reaches past the end of the file, which is an error."""
        while True:
            self._skip(self._u64(what), what)

    def _alignment(self) -> int:
        pair = self.pairs.get("general.alignment")
        if pair is None:
            return DEFAULT_ALIGNMENT
        alignment = self.value(pair.key) if pair.type == GGUFValueType.UINT32 else 0
        if alignment < 1 or alignment & (alignment - 1):
            self._fail(f"key {pair.key!r}", "expected a u32 power of two", pair.value)
        return int(alignment)

    def _tensor_info(self, what: str) -> tuple[int, int, str]:
        """The tensor's offset from the start of the tensor data, its size, both in bytes, and its name."""
        name = self._name(what)
        what = f"tensor {name!r}"
        n_dims = self._u32(what)
        if n_dims > MAX_DIMS:
            self._fail(what, f"expected at most {MAX_DIMS} dimensions, got {n_dims}")
        shape = [self._u64(what) for _ in range(n_dims)]
        type_ = self._u32(what)
        offset = self._u64(what)
        if offset % self.alignment:
            self._fail(what, f"offset {offset} is not a multiple of general.alignment {self.alignment}")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_)]
        except (ValueError, KeyError):
            return offset, 0, name  # a type newer than gguf-py: its bytes are only copied
        return offset, prod(shape) // block * block_bytes, name

    def _name(self, what: str) -> str:
        length = self._u64(what)
        if length > MAX_KEY_BYTES:
            self._fail(what, f"expected a name of at most {MAX_KEY_BYTES} bytes, got {length}")
        self._spend(length, what)
        raw = self._take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._fail(what, f"expected UTF-8 text, got {raw[:40]!r}")

    def _count(self, n: int, each: int, what: str, limit: int | None = None) -> int:
        if n * each > self.size - self._pos:
            self._fail("count", f"{n} {what} do not fit into a file of {self.size} bytes")
        if limit is not None and n > limit:
            self._fail("count", f"expected at most {limit} {what}, got {n}")
        return n

    def _spend(self, n: int, what: str) -> None:
        self._work += n
        if self._work > MAX_WORK:
            self._fail(what, f"more strings and nested arrays than any model has; expected at most {MAX_WORK}")

    def _u32(self, what: str) -> int:
        return int(struct.unpack(f"{self.order}I", self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(struct.unpack(f"{self.order}Q", self._take(8, what))[0])

    def _peek(self, n: int) -> bytes:
        """Up to n bytes from the current position on; fewer only at the end of the file."""
        at = self._pos - self._window_at
        if not 0 <= at <= at + n <= len(self._window):
            self._window = os.pread(self.fd, max(n, _WINDOW), self._pos)
            self._window_at, at = self._pos, 0
        return self._window[at : at + n]

    def _take(self, n: int, what: str) -> bytes:
        raw = self._peek(n) if n <= self.size - self._pos else b""
        if len(raw) != n:
            self._fail(what, f"needs {n} bytes, the file ends at {self.size}: truncated?")
        self._pos += n
        return raw

    def _skip(self, n: int, what: str) -> None:
        if n > self.size - self._pos:
            self._fail(what, f"needs {n} bytes, the file ends at {self.size}: truncated?")
        self._pos += n

    def _fail(self, what: str, problem: str, pos: int | None = None) -> NoReturn:
        raise FileError(f"{self.path}: {what} at byte {self._pos if pos is None else pos}: {problem}")


def pad(position: int, alignment: int) -> int:
    """The next multiple of `alignment` (bytes), `position` itself if it is one."""
    return -(-position // alignment) * alignment
