"""Other people's GGUF programs on a file of ours, in every state it can be in."""

import ctypes
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp.llama_cpp as lib
import pytest
from gguf import GGUFReader
from random_models import write_llama

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.job import Job
from ropebend.convert.room import AFTER, BEFORE
from ropebend.scaling import LayerScaling, ShorterPlan
from ropebend.scaling.rope_method import RopeMethod

A = LayerScaling((1.0, 1.25, 4.0), "llama", RopeMethod("yarn", 2.5, 64), provenance={"task": "kv", "score": 0.5})
B = LayerScaling((2.0, 1.5, 3.0), "llama")
BY_LENGTH = LayerScaling(
    (2.0, 1.5, 3.0), "llama", layer_attn_factor=(1.0, 1.5, 0.75), provenance={"n_ctx": 512},
    shorter=(ShorterPlan(128, None), ShorterPlan(256, B)),
)  # fmt: skip


def put(model: Path, scaling: LayerScaling | None) -> None:
    with GgufFile(model) as source:
        Job.prepare(source, scaling, None, True, False).run(lambda _: None)


def carried(path: Path) -> LayerScaling | None:
    """The scales that a program sees that reads this file with gguf-py."""
    fields = {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("ropebend.")}
    return LayerScaling.from_metadata(fields, "llama", 3)


def room(path: Path) -> dict[str, int]:
    return {k: len(GGUFReader(path).fields[k].contents()) for k in (BEFORE, AFTER)}


def grown_to_the_end(model: Path) -> LayerScaling:
    """Scales that take the last byte that the room has."""
    put(model, A)
    put(model, B)  # into `after`, or `before`
    low, high, best = 0, 1 << 16, B
    while low < high:
        n = (low + high + 1) // 2
        scaling = LayerScaling(B.layer_scale, "llama", provenance={"note": "x" * n})
        with GgufFile(model) as source:
            if Job.prepare(source, scaling, None, True, False).edit is None:
                high = n - 1
            else:
                low, best = n, scaling
    put(model, best)
    assert min(room(model).values()) == 1
    return best


def made_by_an_earlier_ropebend(model: Path) -> LayerScaling:
    """Its room has an empty array; setting the same scales once more mends that."""
    put(model, A)
    raw = model.read_bytes()
    with GgufFile(model) as f:
        before = f.pairs[BEFORE]
        empty = raw[: before.value + 4] + bytes(8) + raw[before.end : f.infos[0]] + raw[f.infos[0] :]
        # the byte that `before` had goes to the end of `after`, so that nothing else moves
        after = f.pairs[AFTER]
        count = after.end - after.value - 12
    at = after.value - 1
    head = empty[: at + 4] + (count + 1).to_bytes(8, "little") + empty[at + 12 : after.end - 1] + b"\0"
    model.write_bytes(head + empty[after.end - 1 :])
    assert room(model)[BEFORE] == 0
    assert carried(model) == A
    put(model, A)
    return A


STATES: dict[str, Callable[[Path], LayerScaling | None]] = {
    "fresh": lambda model: put(model, A) or A,
    "in place": lambda model: put(model, A) or put(model, B) or B,
    "in place twice": lambda model: put(model, A) or put(model, B) or put(model, A) or A,
    "by length": lambda model: put(model, BY_LENGTH) or BY_LENGTH,
    "by length, in place": lambda model: put(model, A) or put(model, BY_LENGTH) or put(model, B) or B,
    "room used up": grown_to_the_end,
    "of an earlier ropebend": made_by_an_earlier_ropebend,
    "removed": lambda model: put(model, A) or put(model, None),
}


@pytest.fixture(params=STATES)
def scaled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, LayerScaling | None]:
    model = write_llama(tmp_path / "model.gguf")
    scaling = STATES[request.param](model)
    assert carried(model) == scaling
    return model, scaling


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A script of gguf-py, run in this process."""

    def run(name: str, *args: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        monkeypatch.setattr("builtins.input", lambda _="": "YES")  # gguf_convert_endian asks
        importlib.import_module(f"gguf.scripts.{name}").main()

    return run


def test_gguf_py_reads_and_writes_it(
    scaled: tuple[Path, LayerScaling | None], script: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    model, scaling = scaled
    script("gguf_dump", model)
    assert ("ropebend.layer_scale" in capsys.readouterr().out) == (scaling is not None)

    script("gguf_set_metadata", "--force", model, "llama.context_length", 256)
    assert carried(model) == scaling
    new = model.with_name("new.gguf")
    script("gguf_new_metadata", "--general-name", "x", model, new)
    assert carried(new) == scaling
    swapped = model.with_name("swapped.gguf")
    shutil.copy(model, swapped)
    script("gguf_convert_endian", swapped, "big")
    assert carried(swapped) == scaling

    for other in (new, swapped):  # and what they wrote can be changed again
        put(other, B)
        assert carried(other) == B
        put(other, None)
        assert carried(other) is None


def test_llama_cpp_quantises_it(scaled: tuple[Path, LayerScaling | None]) -> None:
    model, scaling = scaled
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = 7, 1  # LLAMA_FTYPE_MOSTLY_Q8_0
    out = model.with_name("quantised.gguf")
    assert lib.llama_model_quantize(os.fsencode(model), os.fsencode(out), ctypes.byref(params)) == 0
    assert carried(out) == scaling
    put(out, B)
    assert carried(out) == B
