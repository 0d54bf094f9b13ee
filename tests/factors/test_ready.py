"""Ready factors: which model they fit, by its tensors alone, and every road that takes the word auto."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from random_models import write_llama
from real_models import QWEN
from real_models import find as real_model
from typer.testing import CliRunner

import ropebend.factors
from ropebend import LayerScaling, RopebendError
from ropebend.cli import app
from ropebend.convert.gguf_file import GgufFile
from ropebend.factors import FOLDER, find, fitting, ready
from ropebend.model import scaling_for
from ropebend.model_info import ModelInfo
from ropebend.scaling.source import ScaleSource

ROOT = Path(__file__).parents[2]
FOUND = LayerScaling(
    (1.0, 1.25, 1.5),
    "llama",
    layer_attn_factor=(1.0, 1.125, 1.0),
    provenance={
        "model": {"file": "m.gguf", "sha256": "0" * 64},
        "tasks": [{"name": "kv"}],
        "n_ctx": 96,
        "scores": {"test": {"unscaled": {"kv": 0.25}, "uniform": {"kv": 0.375}, "knots cma": {"kv": 0.5}}},
    },
)


def said(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model for which there are ready factors, made by the script that makes them."""
    monkeypatch.chdir(tmp_path)
    path = write_llama(tmp_path / "model.gguf", fields={"general.file_type": 0, "general.name": "Model"})
    FOUND.save(tmp_path / "found.json")
    (tmp_path / "factors").mkdir()
    subprocess.run([sys.executable, ROOT / "tools" / "ready_factors.py", "model.gguf", "found.json"], check=True)
    monkeypatch.setattr(ropebend.factors, "FOLDER", tmp_path / "factors")
    return path


def test_they_are_found_by_the_tensors_whatever_the_metadata_say(model: Path) -> None:
    assert fitting(model).scaling.layer_scale == FOUND.layer_scale
    said("add-scales", model, "found.json", "-o", "scaled.gguf")
    rename = ["-m", "gguf.scripts.gguf_new_metadata", "--general-name", "Other", "scaled.gguf", "named.gguf"]
    subprocess.run([sys.executable, *rename], check=True, capture_output=True)
    assert fitting("named.gguf").path == fitting("scaled.gguf").path == fitting(model).path

    changed = bytearray(model.read_bytes())
    changed[-1] ^= 1
    Path("changed.gguf").write_bytes(changed)
    with GgufFile(Path("changed.gguf")) as file:
        assert find(file) is None
    with pytest.raises(RopebendError, match=r"changed.gguf: there are no ready factors for this model.*ropebend tune"):
        fitting("changed.gguf")


def test_the_list_names_models_figures_and_commands(model: Path) -> None:
    out = said("factors", model)
    assert "Model, F32\n  up to 96 tokens: kv 25.0% unscaled, 50.0% with them\n" in out
    assert f"ropebend add-scales {model} auto" in out
    assert f"ropebend serve {model} --factors auto" in out
    assert [one["model"] for one in json.loads(said("factors", "--json"))] == ["Model, F32"]
    info = said("info", model, "--no-speed")
    assert "ready scales kv 25.0% unscaled, 50.0% with them, up to 96 tokens" in info
    assert f"ropebend add-scales {model} auto" in info


def test_auto_is_a_word_for_them(model: Path) -> None:
    info = ModelInfo.read(model)
    scaling = scaling_for(info, ScaleSource(factors=Path("auto")))
    assert scaling is not None
    assert (scaling.layer_scale, scaling.layer_attn_factor) == (FOUND.layer_scale, FOUND.layer_attn_factor)

    said("add-scales", model, "auto", "-o", "plain.gguf")
    carried = ModelInfo.read("plain.gguf").scaling
    assert carried is not None
    assert carried.layer_scale == FOUND.layer_scale
    said("add-scales", model, "none@64", "auto@96", "-o", "plans.gguf")
    carried = ModelInfo.read("plans.gguf").scaling
    assert carried is not None
    assert [p.up_to for p in carried.shorter] + [carried.up_to] == [64, 96]
    assert carried.layer_attn_factor == FOUND.layer_attn_factor


def test_a_file_of_that_name_comes_first(model: Path) -> None:
    LayerScaling.uniform(2.0, 3).save(Path("auto"))
    scaling = scaling_for(ModelInfo.read(model), ScaleSource(factors=Path("auto")))
    assert scaling is not None
    assert scaling.layer_scale == (2.0, 2.0, 2.0)


def test_without_any_the_road_is_named(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "unknown.gguf")
    for words in (("add-scales", path, "auto"), ("factors", path)):
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert isinstance(result.exception, RopebendError)
        assert "there are no ready factors for this model" in str(result.exception)


def test_every_one_that_comes_along_says_what_it_is_and_was_judged() -> None:
    assert ready()
    for one in ready():
        assert one.path.parent == FOLDER
        assert len(one.tensors) == 64
        assert one.scaling.provenance["scores"]["gain_over_uniform"][1] > 0  # low end of the interval
        assert one.n_ctx > 0
        assert one.model in said("factors")
        assert one.figures in said("factors")


def test_those_for_qwen_fit_the_real_file() -> None:
    path = real_model(QWEN)
    assert fitting(path).path.stem == "qwen2.5-coder-0.5b-instruct-q4_k_m"
