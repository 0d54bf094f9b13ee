"""The room: space in the metadata for other scales, so that changing them moves no tensor and rewrites nothing.

In the file our keys stand between two arrays of u8 that no program looks into:

    before (count, bytes) | our keys | after (count, bytes)

Each holds a byte at least: gguf-py's writers refuse an empty array.

New keys, with an `after` of their own that reaches to the same end, are first written into the bytes of either array,
where they are ignored.  Then one write of `before`'s count moves the border: from then on the file holds the new keys
and the old ones are ignored.  That write lies within one sector, so the file is at every moment the old or the new
one, for other programs as well as after a crash.  For the number of pairs to stay, missing keys have stand-ins.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from gguf import GGUFValueType

from ropebend.convert.gguf_file import MAX_VALUE_BYTES, GgufFile, KeyValue, pad
from ropebend.convert.transfer import BLOCK
from ropebend.scaling import gguf_keys

BEFORE, AFTER, STAND_IN = gguf_keys.ROOM + "before", gguf_keys.ROOM + "after", gguf_keys.ROOM + "{}"
N_KEYS = {1: 6, 2: 8}  # keys of `gguf_keys` by version; those that are missing have stand-ins
GROWTH = 1024  # bytes by which the keys may grow at least
SECTOR = 512  # what a disk writes whole or not at all


@dataclass(frozen=True)
class Edit:
    """A change within a file: (offset, bytes) to `stage` where nobody looks, then to `commit` at one stroke.

    None: nothing to be done.
    """

    stage: tuple[int, bytes] | None = None
    commit: tuple[int, bytes] | None = None


def with_room(pairs: Mapping[str, bytes], at: int, order: str) -> tuple[bytes, int]:
    """Our keys (key → bytes of its pair) with the room around them, and how many pairs that is, for offset `at`.

    The length is a multiple of BLOCK, so that tensor data keeps its place in the blocks of the file system.
    """
    keys = dict(pairs)
    n_all = N_KEYS[2 if {gguf_keys.PLAN_UP_TO, gguf_keys.LAYER_ATTN_FACTOR} & keys.keys() else 1]
    before = _array(BEFORE, 1, order)  # its one byte follows
    first = b""
    if (at + len(before) - 8) // SECTOR != (at + len(before) - 1) // SECTOR:  # its count
        first = keys.pop(gguf_keys.VERSION)  # never changes; it moves the count off the border of two sectors
    n_keys = n_all - (1 if first else 0)
    n_slot = len(_slot(keys, n_keys, 0, order))
    size = pad(len(first) + len(before) + 1 + 2 * (n_slot + GROWTH), BLOCK)
    left = size - len(first) - len(before) - 1 - n_slot
    return first + before + b"\0" + _slot(keys, n_keys, left, order) + bytes(left), n_all + 2


def plan_edit(source: GgufFile, pairs: Mapping[str, bytes]) -> Edit | None:
    """How `pairs` (key → bytes of its pair) can replace our keys in `source` without moving anything else.

    None if they cannot: there is no room, it is too small, or the change could be seen half done.
    """
    ours = {k: p for k, p in source.pairs.items() if k.startswith(gguf_keys.PREFIX)}
    if sum(p.end - p.start for p in ours.values()) > MAX_VALUE_BYTES:
        return None
    found = {k: _bytes(source, k) for k in ours if not k.startswith(gguf_keys.ROOM)}
    has_room = BEFORE in ours and AFTER in ours
    if found == pairs and not (has_room and _has_empty_array(source)):
        return Edit()
    if has_room:
        return _within_room(source, pairs)
    if len(ours) == len(found) and {k: len(v) for k, v in found.items()} == {k: len(v) for k, v in pairs.items()}:
        start, end = min(p.start for p in ours.values()), max(p.end for p in ours.values())
        raw = bytearray(_read(source, start, end))
        for key, pair in ours.items():
            raw[pair.start - start : pair.end - start] = pairs[key]
        commit = _in_one_sector(source, start, bytes(raw))
        return Edit(commit=commit) if commit else None
    return None


def _within_room(source: GgufFile, pairs: Mapping[str, bytes]) -> Edit | None:
    # Another program may have reordered or added keys: believe nothing but what is there.
    order = list(source.pairs)
    i, j = order.index(BEFORE), order.index(AFTER)
    before, after = source.pairs[BEFORE], source.pairs[AFTER]
    slot = order[i + 1 : j]
    ours = {k for k in order if k.startswith(gguf_keys.PREFIX)}
    first = {gguf_keys.VERSION} - set(slot)
    keys = {k: v for k, v in pairs.items() if k not in first}
    if (
        set(slot) | first | {BEFORE, AFTER} != ours
        or len(keys) > len(slot)
        or any(_bytes(source, k) != pairs[k] for k in first)
        or not all(_is_u8_array(source, p) for p in (before, after))
    ):
        return None
    start, used, end = before.value + 12, after.value + 12, after.end
    n = len(_slot(keys, len(slot), 0, source.order))
    if n + 1 <= before.end - start:  # one byte stays in `before`
        at = start + 1
    elif n + 1 <= end - used:  # and one in `after`
        at = end - n - 1
    else:
        return None
    commit = _in_one_sector(source, start - 8, struct.pack(f"{source.order}Q", at - start))
    return Edit((at, _slot(keys, len(slot), end - at - n, source.order)), commit) if commit else None


def _in_one_sector(source: GgufFile, at: int, new: bytes) -> tuple[int, bytes] | None:
    """The write (offset, bytes) that turns the bytes at `at` into `new`; None if it would cross into another sector."""
    old = _read(source, at, at + len(new))
    differ = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    first, last = differ[0], differ[-1]
    return (at + first, new[first : last + 1]) if (at + first) // SECTOR == (at + last) // SECTOR else None


def _slot(pairs: Mapping[str, bytes], n_keys: int, left: int, order: str) -> bytes:
    """Our keys, stand-ins up to `n_keys`, and the head of an `after` of `left` bytes."""
    stand_ins = b"".join(
        _name(STAND_IN.format(i), order) + struct.pack(f"{order}IB", GGUFValueType.UINT8, 0)
        for i in range(n_keys - len(pairs))
    )
    return b"".join(pairs.values()) + stand_ins + _array(AFTER, left, order)


def _array(key: str, count: int, order: str) -> bytes:
    return _name(key, order) + struct.pack(f"{order}IIQ", GGUFValueType.ARRAY, GGUFValueType.UINT8, count)


def _name(key: str, order: str) -> bytes:
    return struct.pack(f"{order}Q", len(key)) + key.encode()


def _is_u8_array(source: GgufFile, pair: KeyValue) -> bool:
    item_type = struct.pack(f"{source.order}I", GGUFValueType.UINT8)
    return pair.type == GGUFValueType.ARRAY and _read(source, pair.value, pair.value + 4) == item_type


def _has_empty_array(source: GgufFile) -> bool:
    """True if an earlier ropebend made the room: gguf-py's writers refuse what it left."""
    return any(source.pairs[key].end - source.pairs[key].value <= 12 for key in (BEFORE, AFTER))


def _bytes(source: GgufFile, key: str) -> bytes:
    return _read(source, source.pairs[key].start, source.pairs[key].end)


def _read(source: GgufFile, start: int, end: int) -> bytes:
    return b"".join(source.chunks(start, end))
