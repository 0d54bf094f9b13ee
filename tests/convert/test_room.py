"""Changing scales in place: at every moment the old file or the new one, for every program that reads it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import write_llama

from ropebend import Context, Model
from ropebend.convert import job as job_module
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.job import Job, Outcome
from ropebend.convert.rewrite import Rewrite
from ropebend.convert.room import SECTOR, plan_edit
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import RopeMethod

MakeModel = Callable[..., Path]
A = LayerScaling((1.0, 1.25, 4.0), "llama", RopeMethod("yarn", 2.5, 64), provenance={"task": "kv", "score": 0.5})
B = LayerScaling((2.0, 1.5, 3.0), "llama")  # fewer keys
C = LayerScaling((9.0, 8.0, 7.0), "llama", RopeMethod("ntk", 2.0), provenance={"note": "x" * 300})


def nothing(_: int) -> None:
    pass


def put(model: Path, scaling: LayerScaling) -> str:
    with GgufFile(model) as source:
        return Job.prepare(source, scaling, None, True, False).run(nothing).how


def carried(path: Path) -> LayerScaling | None:
    """The scales that a program sees that reads this file with gguf-py."""
    fields = {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("ropebend.")}
    return LayerScaling.from_metadata(fields, "llama", 3)


@pytest.mark.parametrize("endian", GGUFEndian)
def test_other_scales_go_into_the_room(make_model: MakeModel, contents: Callable[[Path], Any], endian: GGUFEndian):
    model = make_model(endian=endian)
    before = contents(model)["tensors"]
    assert put(model, A) == "written"
    inode, size = model.stat().st_ino, model.stat().st_size
    for scaling in (B, C, A, B, A, C, C):
        expected = "unchanged" if carried(model) == scaling else "edited"
        assert put(model, scaling) == expected
        assert carried(model) == scaling
        assert (model.stat().st_ino, model.stat().st_size) == (inode, size)
        assert contents(model)["tensors"] == before


def test_the_original_comes_back_after_any_number_of_changes(model: Path):
    original = model.read_bytes()
    for scaling in (A, B, C):
        put(model, scaling)
    with GgufFile(model) as source:
        Job.prepare(source, None, None, True, False).run(nothing)
    assert model.read_bytes() == original


def test_every_state_on_the_way_is_the_old_or_the_new_file(model: Path):
    """However the two writes are cut: after each byte of the first, and after any bytes of the second."""
    put(model, A)
    for old, new in ((A, C), (C, B), (B, A)):
        assert carried(model) == old
        raw = model.read_bytes()
        with GgufFile(model) as source:
            edit = plan_edit(source, Rewrite(source, new).added)
        assert edit is not None
        assert edit.stage is not None
        assert edit.commit is not None
        state = bytearray(raw)
        for i, byte in enumerate(edit.stage[1]):
            state[edit.stage[0] + i] = byte
            if i % 50 == 0 or i == len(edit.stage[1]) - 1:
                model.write_bytes(state)
                assert carried(model) == old
        at, data = edit.commit
        assert at // SECTOR == (at + len(data) - 1) // SECTOR
        state[at : at + len(data)] = data
        model.write_bytes(state)
        assert carried(model) == new


def test_what_does_not_fit_is_written_anew_with_more_room(model: Path):
    put(model, A)
    large = LayerScaling((2.0, 2.0, 2.0), "llama", provenance={"note": "x" * 20_000})
    inode = model.stat().st_ino
    assert put(model, large) == "written"
    assert model.stat().st_ino != inode
    assert put(model, B) == "edited"
    assert put(model, large) == "edited"
    assert carried(model) == large


def test_a_file_with_other_names_is_written_anew_so_that_those_keep_theirs(model: Path):
    put(model, A)
    other = model.with_name("other.gguf")
    other.hardlink_to(model)
    assert put(model, B) == "written"
    assert (carried(model), carried(other)) == (B, A)


def foreign(path: Path, *pairs: tuple[Any, ...]) -> Path:
    """A model whose scales some other program wrote, without room."""
    w = GGUFWriter(path, "llama")
    w.add_block_count(3)
    for pair in pairs:
        w.add_key_value(*pair)
    w.add_tensor("w", np.zeros(8, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def ours(scales: list[float], filler: str) -> list[tuple[Any, ...]]:
    return [
        ("test.filler", filler, GGUFValueType.STRING),
        ("ropebend.version", 1, GGUFValueType.UINT32),
        ("ropebend.layer_scale", scales, GGUFValueType.ARRAY, GGUFValueType.FLOAT32),
        ("ropebend.rope.method", "none", GGUFValueType.STRING),
        ("ropebend.rope.factor", 1.0, GGUFValueType.FLOAT32),
    ]


def test_keys_of_the_same_size_are_changed_without_room_if_one_sector_holds_the_change(tmp_path: Path):
    seen = set()
    for length in range(0, 520, 8):
        path = foreign(tmp_path / "foreign.gguf", *ours([1.0, 1.0, 1.0], "x" * length))
        with GgufFile(path) as f:
            at = f.pairs["ropebend.layer_scale"].end - 12
        how = put(path, B)
        assert carried(path) == B
        # The floats differ in their upper two bytes.
        crosses = (at + 2) // SECTOR != (at + 11) // SECTOR
        assert how == ("written" if crosses else "edited")
        seen.add(how)
        path.unlink()
    assert seen == {"written", "edited"}


@pytest.mark.parametrize("length", range(0, 512, 37))
def test_wherever_the_room_lies_its_count_is_in_one_sector(make_model: MakeModel, length: int):
    for more in range(length, length + 37):
        model = make_model(more={"test.filler": ("x" * more, GGUFValueType.STRING)}, tensors=False)
        with GgufFile(model) as source, open(model.with_name("out.gguf"), "w+b") as out:
            Rewrite(source, A).write(out.fileno(), nothing, check=False)
        with GgufFile(model.with_name("out.gguf")) as source:
            count = source.pairs["ropebend.room.before"].value + 4
            assert count // SECTOR == (count + 7) // SECTOR
            assert plan_edit(source, Rewrite(source, B).added) is not None
        model.unlink()


def rebuilt(path: Path, order: Callable[[list[str]], list[str]]) -> Path:
    """The file with its metadata pairs in another order."""
    raw = path.read_bytes()
    with GgufFile(path) as f:
        pairs = b"".join(raw[f.pairs[k].start : f.pairs[k].end] for k in order(list(f.pairs)))
        assert len(pairs) == f.infos[0] - 24
        path.write_bytes(raw[:24] + pairs + raw[f.infos[0] :])
    return path


ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "reversed": lambda keys: keys[::-1],
    "another key within": lambda keys: [*keys[1:-1], keys[0], keys[-1]],
    "room first": lambda keys: sorted(keys, key=lambda k: not k.startswith("ropebend.room")),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_room_that_another_program_took_apart_is_not_used(model: Path, order: Callable[[list[str]], list[str]]):
    put(model, A)
    rebuilt(model, order)
    assert put(model, B) == "written"
    assert carried(model) == B
    assert put(model, A) == "edited"


def test_an_edit_that_does_not_verify_is_taken_back(model: Path, monkeypatch: pytest.MonkeyPatch):
    put(model, A)

    def fail(*_: object) -> None:
        raise RopebendError("ropebend.*: read back as other scales")

    monkeypatch.setattr(job_module, "read_back", fail)
    with pytest.raises(RopebendError, match="verification failed, the old scales are back: ropebend"):
        put(model, B)
    assert carried(model) == A


def test_an_edit_is_on_the_disk_before_it_counts(model: Path, monkeypatch: pytest.MonkeyPatch):
    put(model, A)
    seen: list[LayerScaling | None] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(carried(model)))
    put(model, B)
    assert seen == [A, B]


def test_a_disk_that_fails_at_the_end_is_told_as_it_is(model: Path, monkeypatch: pytest.MonkeyPatch):
    put(model, A)
    calls: list[int] = []

    def fail(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RopebendError, match="Input/output error; the disk has the old scales or the new"):
        put(model, B)
    assert carried(model) == B


@pytest.mark.parametrize("what", ["written to", "replaced"])
def test_a_file_that_changed_since_it_was_read_is_not_edited(model: Path, what: str):
    put(model, A)
    with GgufFile(model) as source:
        job = Job.prepare(source, B, None, True, False)
        if what == "replaced":
            raw = model.read_bytes()
            model.unlink()
            model.write_bytes(raw)
        else:
            os.utime(model, ns=(0, 0))
        with pytest.raises(RopebendError, match=f"was {what}|wrote to this file"):
            job.run(nothing)
    assert carried(model) == A


def test_a_file_that_may_not_be_written_to_is_replaced(model: Path, monkeypatch: pytest.MonkeyPatch):
    put(model, A)
    monkeypatch.setattr(os, "access", lambda path, mode: path != model or not mode & os.W_OK)
    assert put(model, B) == "written"
    assert carried(model) == B


scalings = st.builds(
    lambda scales, method, note: LayerScaling(
        tuple(scales),
        "llama",
        RopeMethod(method, 1.0 if method == "none" else 2.0, 64 if method == "yarn" else None),
        provenance={"note": note} if note else {},
    ),
    st.lists(st.floats(1, 8, width=32), min_size=3, max_size=3),
    st.sampled_from(["none", "ntk", "yarn"]),
    st.text(st.characters(codec="utf-8"), max_size=900),
)


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(scalings, min_size=1, max_size=5), filler=st.integers(0, 600))
def test_any_sequence_of_changes(tmp_path_factory: pytest.TempPathFactory, steps: list[LayerScaling], filler: int):
    model = foreign(tmp_path_factory.mktemp("room") / "any.gguf", ("test.filler", "x" * filler, GGUFValueType.STRING))
    original = model.read_bytes()
    for scaling in steps:
        put(model, scaling)
        assert carried(model) == scaling
    with GgufFile(model) as source:
        assert Job.prepare(source, None, None, True, False).run(nothing) == Outcome("written")
    assert model.read_bytes() == original


def test_llama_cpp_loads_a_model_with_room_and_sees_the_new_scales(tmp_path: Path):
    model = write_llama(tmp_path / "model.gguf")
    plain, as_a, as_b = logits(model), logits(model, scaling=A), logits(model, scaling=B)
    assert len({x.tobytes() for x in (plain, as_a, as_b)}) == 3
    assert put(model, A) == "written"
    assert np.array_equal(logits(model), as_a)
    assert put(model, B) == "edited"
    assert np.array_equal(logits(model), as_b)


def logits(path: Path, **more: Any) -> npt.NDArray[np.float32]:
    """Of the last of 40 tokens, with the scales of the file unless others are given."""
    with Model(path) as model, Context(model, n_ctx=64, n_threads=1, **more) as context:
        context.decode(list(range(4, 44)), 0)
        return context.logits().copy()
