"""The command, as a user sees it: exit code, text and files."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType
from random_models import write_llama
from typer.testing import CliRunner

from ropebend.cli import app

Cli = Callable[..., tuple[int, str, str]]
Script = Callable[..., "subprocess.CompletedProcess[str]"]
MakeModel = Callable[..., Path]


def state(folder: Path) -> dict[str, Any]:
    """Every name in the folder with its inode and bytes; a link with where it points."""
    return {p.name: os.readlink(p) if p.is_symlink() else (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}


def scales(path: Path) -> list[float] | None:
    field = GGUFReader(path).fields.get("ropebend.layer_scale")
    return field.contents() if field else None


def room(path: Path) -> int:
    """Bytes that the file spends on room for later changes."""
    fields = GGUFReader(path).fields
    return sum(part.nbytes for k, f in fields.items() if k.startswith("ropebend.room.") for part in f.parts)


# ---- as a script


def test_script_writes_beside_the_model(script: Script, model: Path, factors: Path, contents: Callable[[Path], Any]):
    before = model.read_bytes()
    done = script(model.name, factors, cwd=model.parent)
    assert (done.returncode, done.stderr) == (0, "")
    result = model.with_name("model.ropebend.gguf")
    assert done.stdout == (
        "model.ropebend.gguf: 3 layers, scale 1–4, yarn ×2.5; "
        f"{result.stat().st_size:,} bytes, verified\n"
        f"{room(result):,} bytes of room: --in-place changes these scales without a rewrite from now on.\n"
        "Next:  ropebend show model.ropebend.gguf\n"
        "       ropebend serve model.ropebend.gguf\n"
    )
    assert model.read_bytes() == before
    assert scales(result) == [1.0, 1.25, 4.0]
    assert GGUFReader(result).fields["ropebend.rope.original_context"].contents() == 64
    assert contents(result)["tensors"] == contents(model)["tensors"]
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.gguf", "model.ropebend.gguf"]


def test_as_a_module_and_back(script: Script, model: Path, factors: Path):
    module = ("-m", "ropebend.convert.add_scales")
    assert script(model, factors, "-o", model.with_name("a b.gguf"), python=module).returncode == 0
    done = script(model.with_name("a b.gguf"), "--remove", python=module)
    assert (done.returncode, done.stderr) == (0, "")
    assert ": removed 6 ropebend keys; " in done.stdout
    assert model.with_name("a b.plain.gguf").read_bytes() == model.read_bytes()


def test_errors_have_no_traceback(script: Script, model: Path, factors: Path):
    done = script(model, factors, "-o", model)
    assert done.returncode == 2
    assert done.stderr == f"error: {model}: is the input itself; use --in-place to replace it, or -o for another file\n"
    assert done.stdout == ""


def test_where_ropebend_is_not_installed(script: Script, model: Path):
    done = script(model, python=("-I", "-S"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "run `make` in the ropebend repository, then .venv/bin/python convert/add_scales.py" in done.stderr


def test_the_bar_shows_on_a_terminal_only(model: Path, factors: Path):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "ropebend.convert.add_scales", str(model), str(factors)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(ours, 4096):
                shown += chunk
        os.close(ours)
    assert process.returncode == 0
    size = model.with_name("model.ropebend.gguf").stat().st_size / 1024
    assert b"writing" in shown
    assert f"{size:.1f}/{size:.1f} KiB".encode() in shown


def test_help_describes_every_option(cli: Cli):
    code, out, _ = cli("--help")
    assert code == 0
    for word in ("factors.json", "--output", "--in-place", "--force", "--remove", "--dry-run", "Exit codes"):
        assert word in out


# ---- which file is written


def test_an_existing_output_needs_force(cli: Cli, model: Path, factors: Path):
    out = model.with_name("model.ropebend.gguf")
    out.write_bytes(b"mine")
    before = state(model.parent)
    code, _, err = cli(model, factors)
    assert (code, err) == (1, f"error: {out}: exists; use --force to overwrite it, or -o for another file\n")
    assert state(model.parent) == before
    assert cli(model, factors, "--force")[0] == 0
    assert scales(out) == [1.0, 1.25, 4.0]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_the_input_as_output_is_refused(
    cli: Cli, model: Path, factors: Path, link: Callable[[Path, Path], None], force: list[str]
):
    """gguf-py's own gguf_new_metadata zeroes every tensor in this case, and exits 0."""
    other = model.with_name("other.gguf")
    link(other, model)
    before = state(model.parent)
    for a, b in ((model, model), (model, other), (other, model), (other, other)):
        code, _, err = cli(a, factors, "-o", b, *force)
        assert code == 2
        assert "is the input itself" in err
    assert state(model.parent) == before


def test_in_place(cli: Cli, model: Path, factors: Path, contents: Callable[[Path], Any]):
    model.chmod(0o640)
    before = contents(model)
    code, out, err = cli(model, factors, "--in-place")
    assert (code, err) == (0, "")
    assert out.startswith(f"{model}: 3 layers")
    after = contents(model)
    del before["aligned"], after["aligned"]
    assert before == after
    assert scales(model) == [1.0, 1.25, 4.0]
    assert model.stat().st_mode & 0o777 == 0o640
    assert list(model.parent.iterdir()) == [model]


def test_in_place_through_a_symbolic_link_replaces_the_file_not_the_link(cli: Cli, model: Path, factors: Path):
    folder = model.parent / "links"
    folder.mkdir()
    link = folder / "link.gguf"
    link.symlink_to("../model.gguf")
    assert cli(link, factors, "--in-place")[0] == 0
    assert os.readlink(link) == "../model.gguf"
    assert not model.is_symlink()
    assert scales(model) == [1.0, 1.25, 4.0]
    assert list(folder.iterdir()) == [link]


def test_in_place_leaves_other_hard_links_alone_and_says_so(cli: Cli, model: Path, factors: Path):
    other = model.with_name("other.gguf")
    other.hardlink_to(model)
    original = model.read_bytes()
    code, out, _ = cli(model, factors, "--in-place")
    assert code == 0
    assert "those names still hold the old file" in out
    assert other.read_bytes() == original
    assert scales(model) == [1.0, 1.25, 4.0]


def test_scales_that_are_there_are_replaced(cli: Cli, model: Path, factors: Path):
    once = model.with_name("once.gguf")
    assert "replaced" not in cli(model, factors, "-o", once)[1]
    other = factors.with_name("other.json")
    other.write_text("[2, 2, 2]")
    twice = model.with_name("twice.gguf")
    code, out, _ = cli(once, other, "-o", twice)
    assert code == 0
    assert "(replaced the scales it carried)" in out
    assert scales(twice) == [2.0, 2.0, 2.0]
    third = model.with_name("third.gguf")
    assert cli(twice, factors, "-o", third)[0] == 0
    assert third.read_bytes() == once.read_bytes()


# ---- removing


def test_adding_and_removing_in_place_gives_the_original_bytes(cli: Cli, make_model: MakeModel, factors: Path):
    model = make_model(alignment=4096)
    original = model.read_bytes()
    assert cli(model, factors, "--in-place")[0] == 0
    assert model.read_bytes() != original
    assert cli(model, "--remove", "--in-place")[0] == 0
    assert model.read_bytes() == original


def test_nothing_to_remove(cli: Cli, model: Path):
    before = state(model.parent)
    code, out, err = cli(model, "--remove", "--in-place")
    assert (code, err) == (0, "")
    assert out == f"{model}: carries no ropebend keys, nothing to remove; left as it is\n"
    code, out, err = cli(model, "--remove")
    assert (code, out) == (1, "")
    assert err == f"error: {model}: carries no ropebend keys, nothing to remove; nothing was written\n"
    assert state(model.parent) == before


def test_broken_scales_can_be_removed_too(cli: Cli, make_model: MakeModel):
    model = make_model(more={"ropebend.layer_scale": ("not numbers", GGUFValueType.STRING)})
    assert cli(model, "--remove", "--in-place")[0] == 0
    assert scales(model) is None


# ---- dry run


@pytest.mark.parametrize("extra", [[], ["--in-place"]])
def test_dry_run_writes_nothing(cli: Cli, model: Path, factors: Path, extra: list[str]):
    before = state(model.parent)
    code, out, err = cli(model, factors, "--dry-run", *extra)
    assert (code, err) == (0, "")
    assert state(model.parent) == before
    planned = out.splitlines()
    result = model if extra else model.with_name("model.ropebend.gguf")
    assert cli(model, factors, *extra)[0] == 0
    assert planned[0].startswith(f"would write {result}: {result.stat().st_size:,} bytes (")
    assert "  ropebend.layer_scale, 56 bytes: [1.0, 1.25, 4.0]" in planned
    assert planned[-1] == "dry run: nothing was written"


def test_dry_run_of_a_replacement_and_a_removal(cli: Cli, model: Path, factors: Path):
    cli(model, factors, "--in-place")
    bare = factors.with_name("bare.json")
    bare.write_text("[1, 1, 1]")
    out = cli(model, bare, "--in-place", "--dry-run")[1]
    assert out.startswith(f"would change {model} in place: the new keys fit, nothing else is written\n")
    assert "  replace ropebend.layer_scale\n" in out
    assert "  remove ropebend.provenance\n" in out
    assert "  remove ropebend.layer_scale\n" in cli(model, "--remove", "--dry-run")[1]


def test_dry_run_finds_the_same_errors(cli: Cli, model: Path, factors: Path):
    bare = factors.with_name("bare.json")
    bare.write_text("[1, 1]")
    assert cli(model, bare, "--dry-run") == cli(model, bare)
    model.with_name("model.ropebend.gguf").touch()
    assert cli(model, factors, "--dry-run")[0] == 1


# ---- what is refused


def refused(cli: Cli, folder: Path, *args: object) -> tuple[int, str]:
    before = state(folder)
    code, out, err = cli(*args)
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert state(folder) == before
    return code, err.removeprefix("error: ").rstrip("\n")


def test_usage(cli: Cli, model: Path, factors: Path):
    folder = model.parent
    assert refused(cli, folder, model) == (2, "a factors file is needed (or --scale, --method, or --remove)")
    assert refused(cli, folder, model, factors, "--remove") == (2, f"--remove takes no factors file, got {factors}")
    code, err = refused(cli, folder, model, factors, "--in-place", "-o", folder / "x.gguf")
    assert (code, err) == (2, "--in-place and -o contradict each other: give one of them")
    code, err = refused(cli, folder, model, factors, "--in-place", "--force")
    assert (code, err) == (2, "--in-place replaces nothing but the model itself: leave out --force")
    code, err = refused(cli, folder, model, factors, "--in-place", "--shards", "link")
    assert (code, err) == (2, "--in-place leaves the other parts of a split model as they are: leave out --shards")


FACTORS: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "factors.json: not JSON: line 1 column 2"),
    "format": ('{"layer_scale": [1, 1, 1]}', "factors.json: format: expected 'ropebend/1' or 'ropebend/2', got None"),
    "scale": ("[1, 0, 1]", "factors.json: layer_scale[1]: expected a finite scale in [0.1, 1000], got 0.0"),
    "count": ("[1, 1, 1, 1]", "model.gguf: layer_scale: expected 3 scales, one per block, got 4"),
    "architecture": (
        json.dumps({"format": "ropebend/1", "architecture": "qwen2", "layer_scale": [1, 1, 1]}),
        "model.gguf: architecture: the scales were made for 'qwen2', the model is 'llama'",
    ),
}


@pytest.mark.parametrize(("text", "expected"), FACTORS.values(), ids=FACTORS)
def test_bad_factors(cli: Cli, model: Path, factors: Path, text: str, expected: str):
    factors.write_text(text)
    code, err = refused(cli, model.parent, model, factors)
    assert code == 1
    assert expected in err


def test_missing_files(cli: Cli, model: Path, factors: Path):
    folder = model.parent
    code, err = refused(cli, folder, folder / "no.gguf", factors)
    assert (code, err) == (1, f"{folder / 'no.gguf'}: No such file or directory")
    code, err = refused(cli, folder, model, folder / "no.json")
    assert (code, err) == (1, f"{folder / 'no.json'}: No such file or directory")


def test_not_a_gguf_and_a_truncated_one(cli: Cli, model: Path, factors: Path):
    code, err = refused(cli, model.parent, factors, factors)
    assert (code, err) == (
        1,
        f"{factors}: not a GGUF file: expected it to start with b'GGUF', got {factors.read_bytes()[:4]!r}",
    )
    os.truncate(model, model.stat().st_size - 100)
    code, err = refused(cli, model.parent, model, factors)
    assert code == 1
    assert f"{model}: truncated: tensor 'blk.1.ffn.weight' ends at byte" in err


@pytest.mark.parametrize("kind", [{"endian": GGUFEndian.BIG}, {"version": 2}, {"tensors": False}, {"alignment": 8}])
def test_all_kinds_of_gguf_go_through_and_back(cli: Cli, make_model: MakeModel, factors: Path, kind: dict[str, Any]):
    model = make_model(**kind)
    original = model.read_bytes()
    assert cli(model, factors, "--in-place")[0] == 0
    assert scales(model) == [1.0, 1.25, 4.0]
    other = factors.with_name("other.json")
    other.write_text("[2, 2, 2]")
    assert "changed in place, no tensor was touched" in cli(model, other, "--in-place")[1]
    assert scales(model) == [2.0, 2.0, 2.0]
    assert cli(model, "--remove", "--in-place")[0] == 0
    assert model.read_bytes() == original


# ---- for scripts


def test_json(cli: Cli, model: Path, factors: Path):
    expected = {
        "ok": True,
        "dry_run": True,
        "action": "written",
        "input": str(model),
        "output": str(model.with_name("model.ropebend.gguf")),
        "bytes_shared": None,
        "verified": None,
        "layer_scale": [1.0, 1.25, 4.0],
        "method": "yarn",
        "factor": 2.5,
        "removed": [],
        "parts": {},
    }
    code, out, err = cli(model, factors, "--json", "--dry-run")
    planned = json.loads(out)
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    assert {k: planned[k] for k in expected} == expected
    assert planned["bytes_needed"] <= planned["size"] < planned["bytes_free"]
    assert len(planned["added"]) == 6
    result = model.with_name("model.ropebend.gguf")
    facts = json.loads(cli(model, factors, "--json", "--no-verify")[1])
    assert (facts["dry_run"], facts["action"], facts["verified"]) == (False, "written", False)
    assert facts["size"] == planned["size"] == result.stat().st_size
    assert facts["room"] == planned["room"] == room(result)
    factors.write_text("[1, 1, 1]")
    assert json.loads(cli(result, factors, "--in-place", "--json", "--dry-run")[1])["action"] == "edited"
    facts = json.loads(cli(result, factors, "--in-place", "--json")[1])
    assert (facts["action"], facts["size"]) == ("edited", result.stat().st_size)
    assert facts["removed"] == ["ropebend.rope.original_context", "ropebend.provenance"]
    for extra in ([], ["--dry-run"]):
        assert json.loads(cli(result, factors, "--in-place", "--json", *extra)[1])["action"] == "unchanged"
    facts = json.loads(cli(result, "--remove", "--json")[1])
    assert (facts["layer_scale"], facts["added"], len(facts["removed"])) == (None, [], 4)
    assert json.loads(cli(model, "--remove", "--in-place", "--json")[1])["action"] == "unchanged"


def test_errors_as_json(cli: Cli, model: Path, factors: Path):
    for args in ((model,), (model, factors, "-o", model), (model.with_name("no"), factors)):
        plain = cli(*args)
        code, out, err = cli(*args, "--json")
        assert (code, err) == (plain[0], plain[2])
        assert json.loads(out) == {"ok": False, "error": err.removeprefix("error: ").rstrip("\n")}


def test_not_verified_says_so(cli: Cli, model: Path, factors: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ropebend.convert.job.verify", lambda *_: pytest.fail("verified"))
    assert " bytes, not verified (--no-verify)\n" in cli(model, factors, "--no-verify")[1]


def test_the_same_scales_again_change_nothing(cli: Cli, model: Path, factors: Path):
    cli(model, factors, "--in-place")
    before = state(model.parent)
    expected = f"{model}: carries these scales already; left as it is\n"
    assert cli(model, factors, "--in-place") == (0, expected, "")
    assert cli(model, factors, "--in-place", "--dry-run")[1] == expected + "dry run: nothing was written\n"
    assert state(model.parent) == before


def test_a_file_name_that_is_not_unicode(script: Script, model: Path, factors: Path):
    name = os.fsencode(model.parent) + b"/m\xff.gguf"
    os.rename(model, name)
    done = script(os.fsdecode(name), factors)
    assert (done.returncode, done.stderr) == (0, "")
    assert "m\\udcff.ropebend.gguf: 3 layers" in done.stdout


@pytest.mark.parametrize("name", ["-dash.gguf", "two words.gguf", "it's $HOME;x.gguf", "--version"])
def test_every_printed_command_can_be_pasted(
    cli: Cli, tmp_path: Path, factors: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    write_llama(Path(name))
    code, out, _ = cli("--", name, factors)
    assert code == 0
    commands = re.findall(r"^(?:Next: )? +(ropebend .*)$", out, re.MULTILINE)
    assert [shlex.split(c)[1] for c in commands] == ["show", "serve"]
    shown = CliRunner().invoke(app, shlex.split(commands[0])[1:])
    assert shown.exit_code == 0, shown.output
    assert "layer   scale" in shown.output


@pytest.mark.parametrize(
    ("scales", "more", "expected"),
    [
        ([1, 1, 1], {}, "every scale is 1"),
        ([1, 2, 1], {}, "never judged on unseen items"),
        ([1, 2, 1], {"n_ctx": 256}, "needs a stretch of 4, no layer has more than 2"),
        ([1, 2, 1], {"n_ctx": 256, "scores": {"test": {"bezier ga": 1}}}, None),  # judged there, whatever theory says
        ([1, 4, 1], {"n_ctx": 256, "scores": {"test": {"bezier ga": 1}}}, None),
    ],
)
def test_scales_that_promise_little_are_written_with_a_warning(
    cli: Cli, model: Path, tmp_path: Path, scales: list[float], more: dict[str, Any], expected: str | None
):
    factors = tmp_path / "f.json"
    factors.write_text(json.dumps({"format": "ropebend/1", "layer_scale": scales, "provenance": more}))
    for extra in ([], ["--dry-run", "--force"]):
        code, _, err = cli(model, factors, *extra)
        assert code == 0
        assert (err.startswith("warning: ") and expected in err) if expected else err == ""
    told = json.loads(cli(model, factors, "--json", "--force")[1])["warnings"]
    assert "".join(f"warning: {t}\n" for t in told) == err
