"""Scanning: exact byte ranges of good files, and one clear error for every bad one."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.convert import gguf_file
from ropebend.convert.gguf_file import HEADER_SIZE, GgufFile, pad
from ropebend.errors import RopebendError

MakeModel = Callable[..., Path]


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return u64(len(raw)) + raw


def pair(key: str | bytes, type_: int, value: bytes) -> bytes:
    return text(key) + u32(type_) + value


def info(name: str = "w", shape: tuple[int, ...] = (4,), type_: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(type_) + u64(offset)


def gguf(pairs: tuple[bytes, ...] = (), infos: tuple[bytes, ...] = (), data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + u32(version) + u64(len(infos)) + u64(len(pairs)) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def scan_error(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(RopebendError) as e:
        GgufFile(path)
    message = str(e.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("alignment", [None, 64, 4096])
def test_ranges_cover_the_file_without_gaps_and_agree_with_gguf_py(make_model: MakeModel, alignment: int | None):
    path = make_model(alignment=alignment)
    reader = GGUFReader(path)
    raw = path.read_bytes()
    with GgufFile(path) as f:
        pos = HEADER_SIZE
        for key, kv in f.pairs.items():
            assert kv.start == pos
            assert raw[kv.start : kv.end] == b"".join(p.tobytes() for p in reader.fields[key].parts)
            pos = kv.end
        assert list(f.pairs) == [k for k in reader.fields if not k.startswith("GGUF.")]
        assert f.infos[0] == pos
        assert f.data == (reader.data_offset, len(raw))
        assert pad(f.infos[1], alignment or 32) == f.data[0]
        assert (f.alignment, f.n_tensors, f.version) == (alignment or 32, len(reader.tensors), 3)


def test_values(model: Path):
    with GgufFile(model) as f:
        assert f.value("general.architecture") == "llama"
        assert f.value("llama.block_count") == 3
        assert f.value("test.INT64") == -(2**63)
        assert f.value("test.UINT64") == 2**64 - 1
        assert f.value("test.BOOL") is True
        assert f.value("test.array.FLOAT64") == [0.1, 0.1, 0.1]
        assert f.value("test.array.INT8") == [-128, -128, -128]
        assert f.value("not.there") is None
        with pytest.raises(RopebendError, match="expected an array of numbers, got an array of type 8"):
            f.value("tokenizer.ggml.tokens")


def test_a_value_too_long_to_decode_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_file, "MAX_VALUE_BYTES", 12)
    with GgufFile(model) as f:
        assert f.value("llama.block_count") == 3
        with pytest.raises(RopebendError, match=r"general\.architecture: expected at most 12 bytes, got 13"):
            f.value("general.architecture")


def test_chunks_are_no_longer_than_asked(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_file, "CHUNK", 100)
    with GgufFile(model) as f:
        chunks = list(f.chunks(10, 435))
    assert [len(c) for c in chunks] == [100, 100, 100, 100, 25]
    assert b"".join(chunks) == model.read_bytes()[10:435]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(model: Path):
    os.truncate(model, 10**6)
    with GgufFile(model) as f:
        os.truncate(model, 900_000)
        with pytest.raises(RopebendError, match="ended at byte 900000 while being read; expected 1000000 bytes"):
            list(f.chunks(*f.data))


def test_big_endian(make_model: MakeModel):
    with GgufFile(make_model(endian=GGUFEndian.BIG)) as big, GgufFile(make_model("little.gguf")) as little:
        assert (big.order, big.version, little.order) == (">", 3, "<")
        for key in ("test.INT64", "test.array.FLOAT64", "test.STRING", "llama.block_count"):
            assert big.value(key) == little.value(key)
        assert big.pairs == little.pairs
        assert (big.infos, big.data, big.tensors) == (little.infos, little.data, little.tensors)


LIMITS = {
    "keys": ("MAX_KEYS", 10, r"count at byte 24: expected at most 10 keys, got \d+"),
    "tensors": ("MAX_TENSORS", 2, "count at byte 16: expected at most 2 tensors, got 3"),
    "work": ("MAX_WORK", 100, "more strings and nested arrays than any model has; expected at most 100"),
}


@pytest.mark.parametrize(("limit", "value", "expected"), LIMITS.values(), ids=LIMITS)
def test_what_no_model_has_is_refused_before_it_takes_time_and_memory(
    model: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, expected: str
):
    monkeypatch.setattr(gguf_file, limit, value)
    with pytest.raises(RopebendError, match=expected):
        GgufFile(model)


@pytest.mark.parametrize("window", [8, 20, 100])
def test_strings_longer_than_what_is_read_at_once(model: Path, monkeypatch: pytest.MonkeyPatch, window: int):
    with GgufFile(model) as f:
        expected = f.pairs
    monkeypatch.setattr(gguf_file, "_WINDOW", window)
    with GgufFile(model) as f:
        assert f.pairs == expected


def test_a_file_that_is_written_to_is_noticed(model: Path):
    with GgufFile(model) as f:
        f.check_unchanged()
        os.utime(model, ns=(0, 0))
        with pytest.raises(RopebendError, match=r"model\.gguf: another program wrote to this file meanwhile"):
            f.check_unchanged()


def test_version_2(make_model: MakeModel):
    with GgufFile(make_model(version=2)) as f:
        assert f.version == 2
        assert f.value("llama.block_count") == 3


def test_without_tensors_the_padding_may_be_missing(tmp_path: Path):
    raw = gguf((pair("a", GGUFValueType.UINT8, b"\1"),))
    path = tmp_path / "vocab.gguf"
    path.write_bytes(raw)
    with GgufFile(path) as f:
        assert f.padded
        assert f.data == (len(raw), len(raw))
    path.write_bytes(raw[: HEADER_SIZE + 14])
    with GgufFile(path) as f:
        assert not f.padded
        assert f.data == (HEADER_SIZE + 14, HEADER_SIZE + 14)


def test_a_tensor_type_unknown_to_gguf_py_is_no_error(tmp_path: Path):
    path = tmp_path / "new.gguf"
    path.write_bytes(gguf((), (info(type_=9999, shape=(10**9,)),), b"abc"))
    with GgufFile(path) as f:
        assert f.data[1] - f.data[0] == 3


U8, STRING, ARRAY = GGUFValueType.UINT8, GGUFValueType.STRING, GGUFValueType.ARRAY
BAD = {
    "empty": (b"", "not a GGUF file: expected it to start with b'GGUF', got b''"),
    "magic": (b"GGML" + bytes(100), "not a GGUF file: expected it to start with b'GGUF', got b'GGML'"),
    "version 0": (gguf(version=0), "GGUF version: expected 2 or 3, got 0"),
    "version 1": (gguf(version=1), "GGUF version: expected 2 or 3, got 1"),
    "version 4": (gguf(version=4), "GGUF version: expected 2 or 3, got 4"),
    "big-endian 1": (b"GGUF" + struct.pack(">IQQ", 1, 0, 0), "GGUF version: expected 2 or 3, got 1"),
    "big-endian count": (b"GGUF" + struct.pack(">IQQ", 3, 0, 9), "9 keys do not fit into a file of 24 bytes"),
    "tensor count": (b"GGUF" + u32(3) + u64(2**63) + u64(0) + bytes(99), f"{2**63} tensors do not fit into a file of"),
    "key count": (b"GGUF" + u32(3) + u64(0) + u64(2**64 - 1) + bytes(99), f"{2**64 - 1} keys do not fit into"),
    "key length": (gguf((u64(2**40) + bytes(99),)), "key 0 at byte 32: expected a name of at most 65535 bytes, got"),
    "empty key": (gguf((pair("", U8, b"\0"),)), "expected a name, got an empty one"),
    "key not UTF-8": (gguf((pair(b"a\xff", U8, b"\0"),)), "expected UTF-8 text, got b'a\\xff'"),
    "key twice": (gguf((pair("a", U8, b"\0"),) * 2), "a second 'a'; expected every key once"),
    "value type": (gguf((pair("a", 13, bytes(99)),)), "key 'a' at byte 37: unknown value type 13; expected 0 to 12"),
    "string length": (gguf((pair("a", STRING, u64(2**64 - 1)),)), f"key 'a' at byte 45: needs {2**64 - 1} bytes"),
    "array type": (gguf((pair("a", ARRAY, u32(77) + u64(0)),)), "key 'a' at byte 41: unknown value type 77"),
    "array count": (gguf((pair("a", ARRAY, u32(U8) + u64(2**61)),)), f"{2**61} elements of key 'a' do not fit"),
    "string count": (gguf((pair("a", ARRAY, u32(STRING) + u64(99) + bytes(64)),)), "99 elements of key 'a' do not fit"),
    "nested": (gguf((pair("a", ARRAY, (u32(ARRAY) + u64(1)) * 50),)), "arrays nested more than 8 deep"),
    "alignment 0": (gguf((pair("general.alignment", 4, u32(0)),)), "'general.alignment' at byte 53: expected a u32"),
    "alignment 48": (gguf((pair("general.alignment", 4, u32(48)),)), "expected a u32 power of two"),
    "alignment type": (gguf((pair("general.alignment", 10, u64(32)),)), "expected a u32 power of two"),
    "dimensions": (gguf((), (info(shape=(1,) * 5),), bytes(99)), "'w' at byte 37: expected at most 4 dimensions"),
    "offset": (gguf((), (info(offset=8),), bytes(99)), "offset 8 is not a multiple of general.alignment 32"),
    "short data": (gguf((), (info(), info("v", offset=32)), bytes(47)), "tensor 'v' ends at byte 144, the file at 143"),
    "any order": (gguf((), (info("v", offset=32), info()), bytes(47)), "tensor 'v' ends at byte 144, the file at 143"),
    "no data": (gguf((), (info(shape=(2**40, 2**20)),)), "truncated: tensor 'w' ends at byte"),
    "far offset": (gguf((), (info(type_=9999, offset=2**62),), bytes(99)), "truncated: tensor 'w' ends at byte"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), BAD.values(), ids=BAD)
def test_bad_files_say_what_is_wrong_and_where(tmp_path: Path, raw: bytes, expected: str):
    assert expected in scan_error(tmp_path / "bad.gguf", raw)


def test_the_hand_made_files_above_are_good_without_their_fault(tmp_path: Path):
    path = tmp_path / "good.gguf"
    path.write_bytes(
        gguf((pair("a", U8, b"\0"), pair("b", STRING, text("x"))), (info(), info("v", offset=32)), bytes(48))
    )
    GgufFile(path).close()
    assert [t.name for t in GGUFReader(path).tensors] == ["w", "v"]


def test_not_a_file(tmp_path: Path):
    for path, expected in ((tmp_path, "not a regular file"), (tmp_path / "no.gguf", "No such file or directory")):
        with pytest.raises(RopebendError, match=expected):
            GgufFile(path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RopebendError, match="not a regular file"):
        GgufFile(tmp_path / "fifo")


SMALL = gguf(
    (
        pair("general.alignment", 4, u32(64)),
        pair("s", STRING, text("abc")),
        pair("a", ARRAY, u32(STRING) + u64(2) + text("x") + text("")),
        pair("n", ARRAY, u32(ARRAY) + u64(1) + u32(U8) + u64(2) + b"\1\2"),
    ),
    (info(), info("v", (32, 2), 2, 64)),
    bytes(200),
)


def test_cut_anywhere_it_is_an_error(tmp_path: Path):
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL)
    last = GGUFReader(path).tensors[-1]
    cut = tmp_path / "cut.gguf"
    for length in range(int(last.data_offset + last.n_bytes)):
        scan_error(cut, SMALL[:length])
    cut.write_bytes(SMALL[: length + 1])  # nothing after the last tensor is needed
    GgufFile(cut).close()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_change_of_bytes_scans_within_bounds_or_is_our_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
):
    raw = bytearray(SMALL)
    for at, byte in changes:
        raw[at] = byte
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(raw)
    try:
        f = GgufFile(path)
    except RopebendError:
        return
    with f:
        assert all(HEADER_SIZE <= p.start < p.value <= p.end <= f.infos[0] for p in f.pairs.values())
        assert f.infos[0] <= f.infos[1] <= f.data[0] <= f.data[1] == len(raw)
