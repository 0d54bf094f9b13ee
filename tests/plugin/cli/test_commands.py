"""The commands as a user runs them: output, files, exit codes, no tracebacks."""

import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from llama_cpp.llama_cpp import llama_supports_gpu_offload
from random_models import write_llama
from typer.testing import CliRunner

from ropebend import LayerScaling, RopebendError, UsageError
from ropebend.cli import app
from ropebend.evaluate import RetrievalEvaluator, Row
from ropebend.scaling.rope_method import RopeMethod
from ropebend.search import folder as run_folder

TEXT = ["--task", "perplexity", "--text", "t.txt", "--length", "16"]
NEEDLE = str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf")


def ropebend(*args: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ropebend.cli", *map(str, args)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run


def test_eval_keeps_the_finished_items_on_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RetrievalEvaluator.measure

    def until_the_third(evaluator: RetrievalEvaluator, i: int, *, full: bool = True) -> Row:
        if i == 2:
            raise KeyboardInterrupt
        return whole(evaluator, i, full=full)

    monkeypatch.setattr(RetrievalEvaluator, "measure", until_the_third)
    out = tmp_path / "x.json"
    result = CliRunner().invoke(
        app, ["eval", NEEDLE, "--keys", "3", "--samples", "4", "--depths", "0", "-t", "1", "-o", str(out)]
    )
    assert result.exit_code == 130, result.output
    assert "2 items, then interrupted" in result.output
    saved = json.loads(out.read_text())
    assert (saved["samples"], saved["interrupted"]) == (2, True)
    # both right or both wrong: two items are no proof of either
    low, high = saved["accuracy_interval"]
    assert high - low > 0.5


def test_eval_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    args = ["eval", NEEDLE, "--keys", 5, "--samples", 3, "--depths", "0,.5,1", "--seed", 4, "-t", 1]
    run = ropebend(*args, cwd=tmp_path)
    assert "depth" in run.stdout
    assert "95 % interval" in run.stdout
    report = json.loads((tmp_path / "needle-Q8_0.kv-5.json").read_text())
    assert report["depths"] == [0, 0.5, 1]
    correct = report["correct"]
    assert [len(correct), len(correct[0])] == [3, 3]
    assert report["accuracy"] == pytest.approx(sum(map(sum, correct)) / 9)
    low, high = report["accuracy_interval"]
    assert 0 <= low <= report["accuracy"] <= high <= 1
    assert report["scaling"] is None
    (tmp_path / "two.json").write_text("[2, 2, 2, 2, 2, 2]")
    ropebend(*args, "--factors", "two.json", cwd=tmp_path)  # beside the first, not over it
    assert json.loads((tmp_path / "needle-Q8_0.two.kv-5.json").read_text())["scaling"]["layer_scale"] == [2] * 6
    assert json.loads((tmp_path / "needle-Q8_0.kv-5.json").read_text()) == report
    ropebend(*args, "-o", "again.json", cwd=tmp_path)
    again = json.loads((tmp_path / "again.json").read_text())
    assert {**again, "seconds": 0} == {**report, "seconds": 0}
    more = ropebend(*[5 if a == 3 else a for a in args], cwd=tmp_path)  # nothing is measured twice
    assert "3 items are in needle-Q8_0.kv-5.json already" in more.stderr
    assert json.loads((tmp_path / "needle-Q8_0.kv-5.json").read_text())["correct"][:3] == correct


def test_a_plain_stretch_needs_no_file(tmp_path: Path) -> None:
    args = ["eval", NEEDLE, "--keys", 5, "--samples", 1, "--depths", "0", "-t", 1]
    for flags, name, scaling in (
        (["--scale", "1.5"], "scale1.5", LayerScaling.uniform(1.5, 6, architecture="llama")),
        (["--method", "ntk", "--factor", "2"], "ntk-x2", LayerScaling((1.0,) * 6, "llama", RopeMethod("ntk", 2.0))),
    ):
        ropebend(*args, *flags, cwd=tmp_path)
        by_flags = json.loads((tmp_path / f"needle-Q8_0.{name}.kv-5.json").read_text())
        scaling.save(tmp_path / "f.json")
        ropebend(*args, "--factors", "f.json", cwd=tmp_path)
        by_file = json.loads((tmp_path / "needle-Q8_0.f.kv-5.json").read_text())
        assert by_flags["scaling"] == by_file["scaling"]
        assert by_flags["logprob"] == by_file["logprob"]


def test_perplexity_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One day a girl named Lily went to the park. She saw a big dog! " * 30)
    args = ["eval", NEEDLE, "--task", "perplexity", "--text", "t.txt", "--length", 64, "-t", 1]
    run = ropebend(*args, cwd=tmp_path)
    assert "perplexity  " in run.stdout
    report = json.loads((tmp_path / "needle-Q8_0.perplexity-64.json").read_text())
    low, high = report["perplexity_interval"]
    assert 1 < low <= report["perplexity"] <= high < 100
    assert report["samples"] == len(report["logprob"])


def test_search_writes_factors_that_the_other_commands_take(tmp_path: Path) -> None:
    args = ["search", NEEDLE, "--keys", 8, "--screen", 1, "--finals", "2x2", "--test", 2, "--controls", "uniform"]
    args += ["--budget", 14, "--seed", 3, "-t", 1]
    run = ropebend(*args, "-o", "run", cwd=tmp_path)
    assert "knots cma" in run.stdout
    assert "on too few test items to tell" in run.stdout
    assert "about" in run.stderr  # what it will cost, before
    factors = json.loads((tmp_path / "run/factors.json").read_text())
    assert factors["block_count"] == len(factors["layer_scale"]) == 6
    assert factors["provenance"]["evaluations"]["knots cma"] == 14
    ropebend(*args, "-o", "again", cwd=tmp_path)  # to the bit
    assert (tmp_path / "again/factors.json").read_bytes() == (tmp_path / "run/factors.json").read_bytes()
    assert "holds a search already" in ropebend(*args, "-o", "run", cwd=tmp_path, code=2).stderr

    shown = ropebend("show", "run/factors.json", cwd=tmp_path).stdout
    assert all(f"{i:5d} {s:7.3f}" in shown for i, s in enumerate(factors["layer_scale"]))
    ropebend("add-scales", NEEDLE, "run/factors.json", "-o", "scaled.gguf", cwd=tmp_path)
    from_gguf = ropebend("show", "scaled.gguf", "--json", cwd=tmp_path).stdout
    assert LayerScaling.from_json(json.loads(from_gguf)) == LayerScaling.load(tmp_path / "run/factors.json")
    by_file = ["eval", "scaled.gguf", "--keys", 8, "--samples", 1, "-t", 1, "-o", "a.json"]
    by_factors = ["eval", NEEDLE, "--factors", "run/factors.json", *by_file[2:-1], "b.json"]
    ropebend(*by_file, cwd=tmp_path)
    ropebend(*by_factors, cwd=tmp_path)
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert a["logprob"] == b["logprob"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_writes_the_best_so_far(tmp_path: Path) -> None:
    args = ["search", NEEDLE, "--keys", "8", "--screen", "1", "--budget", "100000", "-t", "1", "-o", "run"]
    command = [sys.executable, "-m", "ropebend.cli", *args]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("uniform, generation 2:"):
                run.send_signal(signal.SIGINT)
                break
        out, err = run.communicate()
    assert run.returncode == 130, err
    assert "interrupted" in out
    assert "ropebend search --resume run" in out
    factors = json.loads((tmp_path / "run/factors.json").read_text())
    assert factors["provenance"]["interrupted"] is True
    assert factors["provenance"]["evaluations"]["uniform"] >= 5
    assert LayerScaling.load(tmp_path / "run/factors.json").n_layer == 6


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_before_there_is_a_best_says_how_to_go_on(tmp_path: Path) -> None:
    args = ["search", NEEDLE, "--keys", "40", "--budget", "100000", "-t", "1", "-o", "run"]
    command = [sys.executable, "-m", "ropebend.cli", *args]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("at most"):  # the plan; comparing the methods is next, and takes many seconds
                run.send_signal(signal.SIGINT)
                break
        out, err = run.communicate()
    assert (run.returncode, out) == (130, "")
    assert err.endswith("stopped before any search; what is measured is kept\ngo on:  ropebend search --resume run\n")
    assert (tmp_path / "run/evaluations.jsonl").read_text().count("\n") >= 2
    assert run_folder.resume(tmp_path / "run")[0].method == "auto"


def test_gpu_layers_without_a_gpu_say_that_they_do_nothing(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf")
    small_eval = ["eval", model, "--keys", 2, "--samples", 1]
    for command, code in ((["doctor", model], 0), (small_eval, 0), (["search", model, "--budget", "x"], 2)):
        run = ropebend(*command, "-t", 1, "--gpu-layers", -1, cwd=tmp_path, code=code)
        assert ("no GPU support" in run.stderr) == (not llama_supports_gpu_offload())


def test_doctor_on_a_plain_and_a_scaled_model(tmp_path: Path) -> None:
    scaled = write_llama(tmp_path / "scaled.gguf", scaling=LayerScaling((1.0, 2.0, 3.0)))
    out = ropebend("doctor", scaled, "-t", 1, cwd=tmp_path).stdout
    assert "scales in the file: scale 1–3" in out
    assert "3 of 3 layers rotate, and each of their rope nodes was found\n" in out
    assert "scales work on this model; --full checks more" in out
    full = ropebend("doctor", scaled, "-t", 1, "--full", "--details", cwd=tmp_path).stdout
    assert "6 rope nodes in layers 0–2" in full
    assert full.count("15 of 15 rope nodes,") == 5  # two decodes, and a K-shift between them; every method too
    assert full.count("bit for bit") == 3
    for text in out, full:
        assert "FAIL" not in text


def test_doctor_on_a_yarn_model_where_the_flag_means_something_else(tmp_path: Path) -> None:
    fields = {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }  # fmt: skip
    path = write_llama(tmp_path / "yarn.gguf", fields=fields)
    out = ropebend("doctor", path, "-t", 1, "--full", "--details", cwd=tmp_path).stdout
    assert out.count("15 of 15 rope nodes,") == 4  # two decodes, and a K-shift between them
    assert "llama.cpp's own flag is no measure for this model, which has YaRN" in out
    assert "method yarn does not go with this model, and is refused" in out


def test_doctor_leaves_out_the_shift_that_llama_cpp_would_abort_in(tmp_path: Path) -> None:
    out = ropebend("doctor", NEEDLE, "--cache-type-k", "bf16", "-t", 1, "--details", cwd=tmp_path).stdout
    assert "12 of 12 rope nodes," in out
    assert "context shift not checked: a K cache of type bf16 cannot be shifted" in out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["show", "none.json"], 1, "error: none.json: No such file or directory"),
        (["show", "bad.json"], 1, "error: bad.json: not JSON"),
        (["eval", "bad.json"], 1, "not a GGUF file"),
        (["eval", NEEDLE, "--task", "x"], 2, "task: expected one of kv, passkey"),
        (["eval", NEEDLE, "--protocol", "x"], 2, "'x' is not one of 'shared', 'published'"),
        (["eval", NEEDLE, "--task-option", "x"], 2, "--task-option: expected name=value"),
        (["search"], 2, "expected a MODEL, or --resume FOLDER"),
        (["search", NEEDLE, "--budget", "5x"], 2, "budget: expected evaluations"),
        (["search", NEEDLE, "--finals", "5"], 2, "--finals: expected SETSxITEMS"),
        (
            ["search", NEEDLE, "--controls", "x"],
            2,
            "--controls: expected some of uniform, attn, scales, line, free, random",
        ),
        (["search", NEEDLE, "--genome", "x"], 2, "'x' is not one of 'bezier'"),
        (["search", NEEDLE, "--start", "two.json"], 1, "start: expected 6 scales, none below 1, got [1.0, 2.0]"),
        (
            ["search", NEEDLE, "--start", "yarn.json", "--method", "none"],
            2,
            "--start: yarn.json is for --method yarn --factor 2; give the",
        ),
        (["search", NEEDLE, "--start", "none.json"], 1, "none.json: No such file"),
        (["search", NEEDLE, "--optimiser", "x"], 2, "'x' is not one of 'cma', 'ga', 'random'"),
        (["search", NEEDLE, "--also", "kv:keys"], 2, "expected NAME:option=value"),
        (["search", NEEDLE, "--method", "ntk", "--factor-range", "2,4"], 2, "--factor-range: expected LOW,HIGH"),
        (["search", NEEDLE, "--executor", "x"], 2, "'x' is not one of 'local', 'ray'"),
        (["search", NEEDLE, "--ray-address", "a:1"], 2, "--ray-address needs --executor ray"),
        (["search", "--resume", "none"], 1, "is none the folder of a search?"),
        (["eval", NEEDLE, "--depths", "0,2"], 2, "--depths: expected numbers in [0, 1]"),
        (["eval", NEEDLE, "--depths", "a"], 2, "--depths: expected numbers separated by commas"),
        (["eval", NEEDLE, "--factors", "f", "--no-scaling"], 2, "contradict"),
        (["eval", NEEDLE, "--scale", "2", "--no-scaling"], 2, "--scale 2 and --no-scaling contradict each other"),
        (["eval", NEEDLE, "--factors", "f", "--method", "ntk"], 2, "--factors and --method ntk contradict each other"),
        (["eval", NEEDLE, "--scale", "0"], 2, "--scale: layer_scale[0]: expected a finite scale in [0.1, 1000], got 0"),
        (["eval", NEEDLE, "--factor", "2"], 2, "--factor needs a --method"),
        (["eval", NEEDLE, "--method", "none"], 2, "'none' is not one of 'linear', 'ntk', 'dynamic-ntk', 'yarn'"),
        (["serve", NEEDLE, "--scale", "2", "--no-scaling"], 2, "--scale 2 and --no-scaling contradict each other"),
        (
            ["eval", NEEDLE, "--factors", "two.json"],
            1,
            "two.json: layer_scale: expected 6 scales, one per block, got 2",
        ),
        (["eval", "none.gguf", "-o", "."], 1, ".: cannot be written: it is a folder"),
        (["eval", NEEDLE, "--data", "x", "--keys", "140"], 2, "--keys has no effect on --data"),
        (["eval", NEEDLE, "--data", "none.gz"], 1, "none.gz: No such file"),
        (["eval", NEEDLE, "--keys", "0"], 2, "--keys"),
        (["search", NEEDLE, "--weights", "1,2"], 2, "--weights: expected one number per depth (5)"),
        (["search", NEEDLE, "--method", "x"], 2, "'x' is not one of 'auto', 'none', 'linear'"),
        (["search", NEEDLE, "--factor", "2"], 2, "--factor needs a --method"),
        (["serve", "bad.json"], 1, "not a GGUF file"),
        (["doctor", "bad.json", "--cache-type-k", "foo"], 2, "cache type: expected one of f32, f16"),
        (["doctor", "bad.json"], 1, "not a GGUF file"),
        (["frobnicate"], 2, "No such command"),
        (["search", NEEDLE, "--seed", "-1"], 2, "'--seed'"),
        (["demo", "--seed", "-1"], 2, "'--seed'"),
        (["search", NEEDLE, "--weights", "inf,1,1,1,1"], 2, "--weights: expected numbers of 0 or more"),
        (["search", NEEDLE, *TEXT, "--depths", "0,1"], 2, "--depths has no effect: a text has no depths"),
        (["search", NEEDLE, *TEXT, "--weights", "1,1,1,1,1"], 2, "--weights has no effect: a text has no depths"),
        (["search", NEEDLE, *TEXT, "--worst", "0.5"], 2, "--worst has no effect: a text has no depths"),
        (["search", NEEDLE, "--also", "kv:keys=3,weight=1,keep=0.1"], 2, "weight has no effect beside keep"),
        (["search", NEEDLE, "--also", "kv:keys=3,weight=nan"], 2, "weight: expected a number of 0 or more, got nan"),
        (["search", NEEDLE, "--transfer", "kv:keys=3,weight=2"], 2, "weight and keep have no effect"),
        (["search", NEEDLE, "-o", "two.json"], 1, "two.json is "),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, message: str
) -> None:
    """In this process, where a command that takes a second to start takes none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("nothing")
    (tmp_path / "two.json").write_text("[1, 2]")
    (tmp_path / "t.txt").write_text("One day. " * 30)
    LayerScaling((1.0,) * 6, rope=RopeMethod("yarn", 2.0)).save(tmp_path / "yarn.json")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, args)
    if isinstance(result.exception, RopebendError):
        assert (result.exception.exit_code, message in " ".join(f"error: {result.exception}".split())) == (code, True)
    else:
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == code
        assert message in " ".join(result.output.split())
    left = [p for p in sorted(tmp_path.iterdir()) if p not in before]
    assert all(p.is_dir() and not any(p.iterdir()) for p in left)  # nothing that is in the way of the next


def test_a_mistake_ends_the_program_without_a_traceback(tmp_path: Path) -> None:
    run = ropebend("search", NEEDLE, "--budget", "5x", cwd=tmp_path, code=2)
    assert run.stderr.startswith("error: budget: expected evaluations")


def test_a_search_that_cannot_begin_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    args = ["search", NEEDLE, "--keys", 3, "--depths", "0", "--budget", 3, "--screen", 1, "--finals", "2x2"]
    args += ["--test", 1, "--controls", "none", "-t", 1, "-o", "run"]
    for wrong in (["--also", "perplexity:text=none.txt"], ["--also", "perplexity:text=short.txt"]):
        ropebend(*args, *wrong, cwd=tmp_path, code=1)
    ropebend(*args, cwd=tmp_path)


def test_a_search_goes_on_from_what_another_has_found(tmp_path: Path) -> None:
    found = LayerScaling((1.0, 2.5, 2.25, 1.75, 1.25, 1.0))
    found.save(tmp_path / "found.json")
    args = ["search", NEEDLE, "--keys", 6, "--depths", "0,1", "--budget", 20, "--population", 6, "--screen", 1]
    args += ["--finals", "3x2", "--test", 2, "--controls", "none", "-t", 1, "--start", "found.json", "-o", "run"]
    assert "\nstart   " in ropebend(*args, cwd=tmp_path).stdout
    assert run_folder.resume(tmp_path / "run")[0].start == found.layer_scale
    log = (tmp_path / "run" / "evaluations.jsonl").read_text()
    assert json.dumps(list(found.layer_scale)) in log
    refused = ropebend("search", "--resume", "run", "--budget", 40, cwd=tmp_path, code=2).stderr
    assert "--budget has no effect on --resume" in refused


def test_flags_without_effect_are_refused() -> None:
    for args, message in (
        (["--data", "x", "--seed", "1"], "--seed has no effect on --data"),
        (["--task", "perplexity", "--text", "x", "--seed", "1"], "--seed: task perplexity has no such option"),
        (["--task", "perplexity", "--text", "x", "--depths", "0,1"], "--depths: task perplexity has no such option"),
    ):
        result = CliRunner().invoke(app, ["eval", NEEDLE, *args])
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)


@pytest.mark.parametrize("command", ["eval", "search", "doctor", "serve"])
def test_more_threads_than_ggml_has_room_for_are_refused(command: str) -> None:
    result = CliRunner().invoke(app, [command, NEEDLE, "-t", "513"])
    assert result.exit_code == 2
    assert "'--threads'" in result.output


def test_truncated_models_are_refused_with_llama_cpps_reason(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(NEEDLE).read_bytes()[:-5000])
    assert "cut.gguf" in ropebend("eval", path, cwd=tmp_path, code=1).stderr
