"""Plans by length through the command: words to files, folded methods, refusals, the release before."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from random_models import write_llama

import ropebend
from ropebend import Context, LayerScaling, Model, RopeMethod
from ropebend.scaling.by_length import join, read_parts

Cli = Callable[..., tuple[int, str, str]]
JUDGED = {"scores": {"test": {"bezier ga": 1}}}


def factors(path: Path, scales: list[float], method: str = "none", factor: float = 1.0, **more: Any) -> Path:
    LayerScaling(tuple(scales), rope=RopeMethod(method, factor), provenance={**JUDGED, "of": path.stem}, **more).save(
        path
    )
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    factors(tmp_path / "a.json", [1.0, 1.5, 1.25])
    factors(tmp_path / "b.json", [1.0, 2.0, 2.5], layer_attn_factor=(1.0, 1.25, 0.75))
    return write_llama(tmp_path / "model.gguf")  # trained at 128


def carried(path: Path) -> LayerScaling:
    fields = {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("ropebend.")}
    value = LayerScaling.from_metadata(fields, "llama", 3)
    assert value is not None
    return value


def test_plans_go_into_the_file_and_come_back(cli: Cli, model: Path) -> None:
    original = model.read_bytes()
    code, out, err = cli(model, "none@128", "a.json@256", "b.json@1k", "--in-place")
    assert (code, err) == (0, ""), err
    assert "up to 128 tokens unscaled; up to 256 tokens scale 1–1.5; beyond scale 1–2.5, attention factor" in out
    value = carried(model)
    assert [p.up_to for p in value.shorter] + [value.up_to] == [128, 256, 1024]
    assert value.at(128) is None
    a, b = value.at(256), value.at(257)
    assert a is not None
    assert b is not None
    assert (a.layer_scale, a.provenance["of"]) == ((1.0, 1.5, 1.25), "a")
    assert (b.layer_scale, b.layer_attn_factor, b.provenance["of"]) == ((1, 2, 2.5), (1, 1.25, 0.75), "b")
    facts = json.loads(cli(model, "none@128", "b.json", "--in-place", "--json")[1])
    assert (facts["action"], facts["plans"]) == ("edited", [128, None])
    assert cli(model, "a.json", "--in-place")[0] == 0
    assert carried(model).version == 1
    assert cli(model, "--remove", "--in-place")[0] == 0
    assert model.read_bytes() == original


def test_short_prompts_unscaled_is_none_up_to_the_trained_length(cli: Cli, model: Path) -> None:
    assert cli(model, "none@128", "b.json", "-o", "x.gguf")[0] == 0
    assert cli(model, "b.json", "--short-prompts-unscaled", "-o", "y.gguf")[0] == 0
    assert Path("x.gguf").read_bytes() == Path("y.gguf").read_bytes()


def test_a_plain_stretch_needs_no_file(cli: Cli, model: Path) -> None:
    assert cli(model, "--scale", 2, "-o", "x.gguf")[0] == 0
    assert carried(Path("x.gguf")).layer_scale == (2, 2, 2)
    assert cli(model, "--method", "yarn", "--factor", 2, "--short-prompts-unscaled", "-o", "y.gguf")[0] == 0
    value = carried(Path("y.gguf"))
    assert (value.rope, value.at(128)) == (RopeMethod("yarn", 2.0, 128), None)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["a.json", "b.json"], 2, "a.json: expected a.json@TOKENS, the longest sequences it is for: others follow it"),
        (["a.json@256", "b.json@128"], 2, "b.json@128: expected more tokens than 256, which stand before it"),
        (["a.json@x", "b.json"], 2, "a.json@x: expected tokens after the @, as 8192 or 8k, got 'x'"),
        (["none", "b.json"], 2, "none: expected none@TOKENS"),
        (["a.json@256", "none@512"], 2, "none@512: expected scales after it"),
        (["none@256"], 2, "none@256: expected scales after it"),
        (["no.json@256", "b.json"], 1, "no.json: No such file"),
        (["plans.json@256", "b.json"], 2, "plans.json@256: holds plans by length already"),
        (["none@64", "b.json", "--short-prompts-unscaled"], 2, "sequences up to 64 tokens are unscaled by a plan"),
        (
            ["b.json@64", "--short-prompts-unscaled"],
            2,
            "the scales are for up to 64 tokens, the model was",
        ),
        (
            ["ntk.json@256", "b.json"],
            1,
            "rope.method: expected one for all lengths (none and linear are one)",
        ),
        (["dyn2.json@256", "dyn4.json"], 1, "rope.factor: expected one for all lengths of dynamic-ntk"),
        (["four.json@256", "b.json"], 1, "the plan up to 256 tokens: expected 3 scales, one per block, got 4"),
        (["a.json", "--scale", "2"], 2, "--scale stands instead of a factors file"),
        (["--factor", "2"], 2, "--factor needs a --method"),
        (["--method", "yarm"], 2, "--method, --factor: rope.method: expected one of none, linear"),
        (["--scale", "0"], 2, "--scale: layer_scale[0]: expected a finite scale in [0.1, 1000], got 0.0"),
        (["--remove", "--scale", "2"], 2, "--remove takes no --scale"),
        (["--remove", "--short-prompts-unscaled"], 2, "--remove takes no --short-prompts-unscaled"),
    ],
)
def test_words_that_contradict_each_other(cli: Cli, model: Path, args: list[str], code: int, message: str) -> None:
    factors(Path("ntk.json"), [1.0, 1.0, 1.0], "ntk", 2.0)
    factors(Path("dyn2.json"), [1.0, 1.0, 1.0], "dynamic-ntk", 2.0)
    factors(Path("dyn4.json"), [1.0, 1.0, 1.0], "dynamic-ntk", 4.0)
    factors(Path("four.json"), [1.0, 1.0, 1.0, 1.0])
    factors(Path("plans.json"), [1.0, 1.0, 1.0], up_to=64)
    before = sorted(Path().iterdir())
    found, _, err = cli(model, *args)
    assert (found, message in err) == (code, True), err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(("method", "exact"), [("linear", True), ("ntk", True), ("yarn", False)])
def test_methods_with_another_factor_are_folded_into_the_numbers(model: Path, method: str, exact: bool) -> None:
    """Each length gives the logits of its own file."""
    parts = [
        LayerScaling((1.0, 1.5, 1.25), "llama", RopeMethod(method, 2.0, 128)),
        LayerScaling((1.0, 1.25, 1.0), "llama", RopeMethod(method, 4.0, 128), layer_attn_factor=(1.0, 1.5, 1.0)),
    ]
    value = join([(64, None), (256, parts[0]), (None, parts[1])])
    with Model(model) as loaded, Context(loaded, n_ctx=512, n_batch=64, n_threads=1) as context:
        plain = logits(context, None)
        assert np.array_equal(logits(context, value, 64), plain)
        for length, part in ((256, parts[0]), (512, parts[1])):
            got, expected = logits(context, value, length), logits(context, part, length)
            assert np.array_equal(got, expected) if exact else np.abs(got - expected).max() < 1e-4
            assert np.abs(got - plain).max() > 0.01


def logits(context: Context, scaling: LayerScaling | None, length: int | None = None) -> np.ndarray[Any, Any]:
    context.set_scaling(scaling, length)
    context.decode(list(range(4, 44)), 0)
    return context.logits().copy()


def test_the_search_s_words_are_read_as_the_command_s(model: Path) -> None:
    assert read_parts(["none@128", "b.json"]).shorter[0].scaling is None
    assert read_parts(["b.json"]) == LayerScaling.load("b.json")
    Path("odd@name.json").write_bytes(Path("b.json").read_bytes())
    assert read_parts(["odd@name.json"]) == LayerScaling.load("b.json")


BEFORE = """
import json, sys
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling
for read in json.load(sys.stdin):
    try:
        if "format" in read:
            print(LayerScaling.from_json(read).layer_scale)
        else:
            print(LayerScaling.from_metadata(read, "llama", 2).layer_scale)
    except RopebendError as e:
        print(e)
"""


def test_the_release_before_refuses_a_file_of_format_2(tmp_path: Path) -> None:
    """The package as it was before format 2, out of the history, reads version 1 and refuses version 2."""
    root = Path(__file__).parents[2]

    def git(*args: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=False).stdout

    brought = git("log", "--reverse", "--format=%H", "-Slayer_attn_factor", "--", "plugin/scaling.py").split()
    archive = git("archive", f"{brought[0].decode()}^", "plugin") if brought else b""
    if not archive:
        pytest.skip("no history of commits here")
    subprocess.run(["tar", "x", "-C", tmp_path], input=archive, check=True)
    (tmp_path / "plugin").rename(tmp_path / "ropebend")
    shutil.copy(Path(ropebend._native.__file__), tmp_path / "ropebend")
    version_1 = LayerScaling((1.0, 2.0), "llama", provenance={"seed": 1})
    newer = [LayerScaling((1.0, 2.0), layer_attn_factor=(1.0, 1.5)), LayerScaling((1.0, 2.0), up_to=64)]
    asked = [f for value in (version_1, *newer) for f in (value.to_json(), value.to_metadata())]
    said = subprocess.run(
        [sys.executable, "-c", BEFORE], input=json.dumps(asked), text=True, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ).stdout.splitlines()  # fmt: skip
    assert said[:2] == ["(1.0, 2.0)"] * 2
    for as_json, as_metadata in (said[2:4], said[4:6]):
        assert "expected 'ropebend/1', got 'ropebend/2'" in as_json
        assert "ropebend.version: expected 1, got 2; a newer ropebend may read it" in as_metadata
