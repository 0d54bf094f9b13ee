"""The bytes: ours as meant, everything else as it was."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.convert import gguf_file
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Rewrite, encode
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling, gguf_keys
from ropebend.scaling.rope_method import RopeMethod

MakeModel = Callable[..., Path]
SCALING = LayerScaling(
    (1.0, 1.25, 4.0), "llama", RopeMethod("yarn", 2.5, 64), provenance={"task": "kv", "note": "größer", "score": 0.1}
)


def rewritten(path: Path, scaling: LayerScaling | None, name: str = "out.gguf") -> Path:
    """Write the rewrite of `path` beside it, check its announced size, return its path."""
    counts: list[int] = []
    result = path.with_name(name)
    with GgufFile(path) as source, open(result, "w+b") as out:
        rewrite = Rewrite(source, scaling)
        rewrite.write(out.fileno(), counts.append, check=True)
    assert result.stat().st_size == rewrite.size == sum(counts)
    return result


KINDS: dict[str, dict[str, Any]] = {
    "version 2": {"version": 2},
    "version 3": {},
    "alignment 8": {"alignment": 8},
    "alignment 64": {"alignment": 64},
    "alignment 4096": {"alignment": 4096},
    "alignment 16384": {"alignment": 16384},
    "big-endian": {"endian": GGUFEndian.BIG},
    "big-endian, alignment 64": {"endian": GGUFEndian.BIG, "alignment": 64},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_everything_else_is_unchanged_and_removing_gives_the_original_bytes(
    make_model: MakeModel, contents: Callable[[Path], dict[str, Any]], kind: dict[str, Any]
):
    alignment = kind.get("alignment")
    path = make_model(**kind)
    result = rewritten(path, SCALING)
    before, after = contents(path), contents(result)
    assert before.pop("aligned") % (alignment or 32) == after.pop("aligned") % (alignment or 32) == 0
    assert before == after
    assert len(before["keys"]) > 25
    assert len(before["tensors"]) == 3
    assert rewritten(result, None, "back.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("endian", GGUFEndian)
def test_gguf_py_reads_our_keys_with_their_types(make_model: MakeModel, endian: GGUFEndian):
    fields = GGUFReader(rewritten(make_model(endian=endian), SCALING)).fields
    ours = {k: f for k, f in fields.items() if k.startswith("ropebend.") and "room" not in k}
    types = GGUFValueType
    assert {k: f.types for k, f in ours.items()} == {
        "ropebend.version": [types.UINT32],
        "ropebend.layer_scale": [types.ARRAY, types.FLOAT32],
        "ropebend.rope.method": [types.STRING],
        "ropebend.rope.factor": [types.FLOAT32],
        "ropebend.rope.original_context": [types.UINT32],
        "ropebend.provenance": [types.STRING],
    }
    values = {k: f.contents() for k, f in ours.items()}
    assert LayerScaling.from_metadata(values, "llama", 3) == SCALING
    room = {k: f for k, f in fields.items() if k.startswith("ropebend.room.")}
    assert {k: f.types for k, f in room.items()} == {
        "ropebend.room.before": [types.ARRAY, types.UINT8],
        "ropebend.room.after": [types.ARRAY, types.UINT8],
    }


@pytest.mark.parametrize("type_", [5, 9999])
def test_tensors_of_types_that_nobody_knows_are_copied(tmp_path: Path, type_: int):
    """5 was Q4_3, which ggml has forgotten."""
    name = b"w"
    info = struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 10, type_, 0)
    path = tmp_path / "new.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(range(256)))
    result = rewritten(path, SCALING)
    assert result.read_bytes().endswith(bytes(range(256)))
    assert rewritten(result, None, "back.gguf").read_bytes() == path.read_bytes()


def test_every_quantisation_type_of_gguf_py_is_copied(tmp_path: Path):
    path = tmp_path / "types.gguf"
    w = GGUFWriter(path, "llama")
    rng = np.random.default_rng(0)
    for type_ in GGMLQuantizationType:
        w.add_tensor(type_.name, rng.integers(0, 256, (3, 2 * GGML_QUANT_SIZES[type_][1]), np.uint8), raw_dtype=type_)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    result = rewritten(path, SCALING)
    data = {t.name: t.data.tobytes() for t in GGUFReader(path).tensors}
    assert len(data) == len(GGMLQuantizationType)
    assert {t.name: t.data.tobytes() for t in GGUFReader(result).tensors} == data
    assert rewritten(result, None, "back.gguf").read_bytes() == path.read_bytes()


def test_adding_twice_is_adding_once(model: Path):
    first = rewritten(model, replace(SCALING, layer_scale=(9.0, 9.0, 9.0)), "first.gguf")
    assert rewritten(first, SCALING).read_bytes() == rewritten(model, SCALING).read_bytes()


def test_unknown_ropebend_keys_anywhere_in_the_file_are_dropped(make_model: MakeModel, contents: Callable[[Path], Any]):
    path = make_model(more={"ropebend.future": ("x", GGUFValueType.STRING), "z": (1, GGUFValueType.UINT8)})
    with GgufFile(path) as source:
        assert Rewrite(source, None).replaced == ["ropebend.future"]
    result = rewritten(path, None)
    assert not [k for k in GGUFReader(result).fields if k.startswith("ropebend.")]
    assert contents(result)["keys"] == contents(path)["keys"]
    assert contents(result)["keys"][-1][0] == "z"


def test_without_tensors(make_model: MakeModel):
    """gguf-py pads such a file, other writers do not; both come back as they were."""
    path = make_model("vocab.gguf", tensors=False)
    with GgufFile(path) as f:
        end = f.infos[1]
    for length in (path.stat().st_size, end):
        cut = path.with_name(f"{length}.gguf")
        cut.write_bytes(path.read_bytes()[:length])
        assert rewritten(rewritten(cut, SCALING), None, "back.gguf").read_bytes() == cut.read_bytes()


def test_bytes_after_the_last_tensor_are_kept(model: Path):
    with open(model, "ab") as f:
        f.write(b"trailing")
    assert rewritten(model, SCALING).read_bytes().endswith(b"trailing")


def test_the_chunk_size_does_not_change_the_result(model: Path, monkeypatch: pytest.MonkeyPatch):
    expected = rewritten(model, SCALING, "whole.gguf").read_bytes()
    for name in ("gguf_file.CHUNK", "rewrite.CHUNK", "transfer.COPIED"):
        monkeypatch.setattr(f"ropebend.convert.{name}", 7)
    assert rewritten(model, SCALING).read_bytes() == expected


def test_a_large_alignment_is_padded_in_chunks(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch):
    path = make_model(alignment=4096)
    monkeypatch.setattr(gguf_file, "CHUNK", 100)
    monkeypatch.setattr("ropebend.convert.rewrite.CHUNK", 100)
    with GgufFile(path) as source:
        chunks = list(Rewrite(source, None)._metadata())
    assert max(map(len, chunks)) == 100
    assert b"".join(chunks) == path.read_bytes()[: source.data[0]]


def test_encode():
    def key(name: str) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode()

    assert encode(gguf_keys.VERSION, 1) == key("ropebend.version") + struct.pack("<II", 4, 1)
    assert encode(gguf_keys.FACTOR, 2.5) == key("ropebend.rope.factor") + struct.pack("<If", 6, 2.5)
    assert encode(gguf_keys.METHOD, "ntk") == key("ropebend.rope.method") + struct.pack("<IQ", 8, 3) + b"ntk"
    assert encode(gguf_keys.PROVENANCE, "ö") == key("ropebend.provenance") + struct.pack("<IQ", 8, 2) + "ö".encode()
    expected = key("ropebend.layer_scale") + struct.pack("<IIQ2f", 9, 6, 2, 1.0, 0.1)
    assert encode(gguf_keys.LAYER_SCALE, [1.0, 0.1]) == expected
    assert encode(gguf_keys.METHOD, "ntk", ">") == struct.pack(">Q20sIQ3s", 20, b"ropebend.rope.method", 8, 3, b"ntk")


def test_a_provenance_that_no_reader_would_decode_is_an_error():
    with pytest.raises(RopebendError, match=r"ropebend\.provenance: expected less than 4194304 bytes, got 4194304"):
        encode(gguf_keys.PROVENANCE, "x" * (4 << 20))


def test_text_that_is_not_unicode_is_an_error():
    with pytest.raises(RopebendError, match=r"ropebend\.provenance: expected text that fits UTF-8, got '\\ud800'"):
        encode(gguf_keys.PROVENANCE, '{"a": "\ud800"}')


SCALAR_TYPES = [t for t in GGUFValueType if t not in (GGUFValueType.ARRAY, GGUFValueType.STRING, GGUFValueType.BOOL)]
keys = st.from_regex(r"[a-z]{1,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True).filter(
    lambda k: not k.startswith(("ropebend.", "general.", "split."))
)
values = st.one_of(
    st.tuples(st.text(st.characters(codec="utf-8"), max_size=40), st.just(GGUFValueType.STRING)),
    st.tuples(st.booleans(), st.just(GGUFValueType.BOOL)),
    st.tuples(st.integers(0, 127), st.sampled_from(SCALAR_TYPES)),
    st.tuples(
        st.lists(st.integers(0, 127), min_size=1, max_size=5),
        st.just(GGUFValueType.ARRAY),
        st.sampled_from(SCALAR_TYPES),
    ),
    st.tuples(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4), st.just(GGUFValueType.ARRAY)),
    st.tuples(
        st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=2), min_size=1, max_size=2),
        st.just(GGUFValueType.ARRAY),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    metadata=st.dictionaries(keys, values, max_size=6),
    sizes=st.lists(st.integers(1, 200), max_size=3),
    alignment=st.sampled_from([8, 32, 256]),
    scales=st.lists(st.floats(0.125, 1000, width=32), min_size=1, max_size=8),
)
def test_any_metadata_survives(
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, tuple[Any, ...]],
    sizes: list[int],
    alignment: int,
    scales: list[float],
):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    w = GGUFWriter(path, "llama")
    w.add_custom_alignment(alignment)
    for key, (value, *types) in metadata.items():
        w.add_key_value(key, value, *types)
    for i, n in enumerate(sizes):
        w.add_tensor(f"t{i}", np.arange(n, dtype=np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    result = rewritten(path, LayerScaling(tuple(scales)), "any-out.gguf")
    original, copy = path.read_bytes(), result.read_bytes()
    with GgufFile(path) as a, GgufFile(result) as b:
        # after the count of keys, everything up to our keys is the original's
        assert copy[24 : a.infos[0]] == original[24 : a.infos[0]]
        assert copy[slice(*b.infos)] == original[slice(*a.infos)]
        assert copy[slice(*b.data)] == original[slice(*a.data)]
        assert b.value(gguf_keys.LAYER_SCALE) == scales
    assert rewritten(result, None, "any-back.gguf").read_bytes() == original
