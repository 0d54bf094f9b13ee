"""`info` and `show` on any GGUF, and what the bare command says."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from random_models import write_llama
from typer.testing import CliRunner

from ropebend import LayerScaling
from ropebend.cli import COMMANDS, app
from ropebend.scaling import ShorterPlan

JUDGED: dict[str, Any] = {"scores": {"test": {"bezier ga": 1}}}
BY_LENGTH = LayerScaling(
    (1.0, 1.5, 2.0),
    "llama",
    layer_attn_factor=(1.0, 1.25, 0.75),
    provenance={"n_ctx": 512, **JUDGED},
    shorter=(ShorterPlan(128, None), ShorterPlan(256, LayerScaling((1.0, 1.25, 1.0), "llama", provenance=JUDGED))),
    up_to=512,
)


def said(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_info_names_what_matters_and_the_next_command(tmp_path: Path) -> None:
    fields = {
        "general.size_label": "1.2K", "general.file_type": 0, "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 32,
        "llama.attention.sliding_window": 64,
    }  # fmt: skip
    path = write_llama(tmp_path / "a b.gguf", fields=fields, chat_template="{{ tools }}{{ messages }}")
    out = said("info", path, "--no-speed")
    for expected in (
        "random-3x64", "llama, 1.2K, 3 layers, width 64, F32", "trained at   128 tokens",
        "rope         base 10,000, YaRN ×4 from 32", "look back 64 tokens only",
        "has a template, knows tools", "scalable     yes", "none in the file", f"ropebend eval '{path}'",
    ):  # fmt: skip
        assert expected in out, out


def test_info_measures_the_speed_and_shows_scales(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", scaling=BY_LENGTH)
    out = said("info", path, "-t", 1)
    assert "tokens/s prefill" in out
    assert "up to 128 tokens unscaled; up to 256 tokens scale 1–1.25; beyond scale 1–2, attention factor" in out
    assert f"serve it:    ropebend serve {path}" in out


@pytest.mark.parametrize(
    ("arch", "why"),
    [("gemma3n", "'gemma3n' is not supported"), ("mamba", "'mamba' has no RoPE"), ("bert", "'bert' has no RoPE")],
)
def test_models_that_cannot_be_scaled_are_explained_and_no_error(tmp_path: Path, arch: str, why: str) -> None:
    w = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    w.add_block_count(2)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    for command in ("info", "show"):
        out = said(command, tmp_path / "m.gguf")
        assert f"scalable     no: general.architecture: {why}" in out
        assert "tokens/s" not in out


def test_files_that_are_no_models_are_explained(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    w.add_type("adapter")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    assert "it is of type 'adapter', a LoRA adapter: write the scales into its base model" in said(
        "info", tmp_path / "lora.gguf"
    )
    (tmp_path / "x.gguf").write_text("nothing")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "x.gguf")])
    assert "not a GGUF file" in str(result.exception)


def test_show_prints_both_numbers_of_every_plan(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", scaling=BY_LENGTH)
    BY_LENGTH.save(tmp_path / "f.json")
    for file in (path, tmp_path / "f.json"):
        out = said("show", file)
        assert "up to 128 tokens:\n  unscaled, bit for bit" in out
        assert "up to 256 tokens:\nlayer   scale\n    0   1.000  ▏\n    1   1.250  " in out
        assert "beyond, meant for up to 512 tokens:\nlayer   scale  attention\n" in out
        assert "    2   2.000      0.750  " + "█" * 40 + "▏" in out
        assert LayerScaling.from_json(json.loads(said("show", file, "--json"))) == BY_LENGTH
    plain = write_llama(tmp_path / "plain.gguf")
    assert "none in the file" in said("show", plain)
    assert json.loads(said("show", plain, "--json")) is None


def test_the_bare_command_shows_the_road() -> None:
    out = said()
    places = [out.index(f"ropebend {command} ") for command in ("info", "eval", "serve")]
    assert places == sorted(places)
    for command in COMMANDS:
        help_text = said(command, "--help")
        assert help_text.strip()
        first = (help_text.split("\n\n")[1]).strip()
        assert first.endswith((".", ":")) or "." in first, (command, first)
