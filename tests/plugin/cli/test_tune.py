"""`ropebend tune`: the whole job on the bundled model, going on after an end, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_search import NEEDLE
from typer.testing import CliRunner, Result

from ropebend import LayerScaling, RopebendError, UsageError
from ropebend.cli import app, search_view, tuning
from ropebend.evaluate import Evaluation, RetrievalEvaluation
from ropebend.model_info import ModelInfo
from ropebend.search import Listener
from ropebend.search import folder as run_folder
from ropebend.search.optimisers import Scored
from ropebend.search.outcome import UNSCALED, Found, Outcome
from ropebend.search.space import Candidate
from ropebend.search.spec import SearchSpec, TaskSpec
from ropebend.tune import plan, result
from ropebend.tune.state import Asked, State

CTX = 1600  # needle, trained at 1,024, gets next to nothing right there


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, args)])


def stderr(outcome: Result) -> str:
    return re.sub(r"\s+", " ", outcome.output)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same road in seconds: few items, two depths, and a search by number of sets instead of the time left."""
    whole = plan.search_spec

    def few(asked: Asked, state: State, seconds: float, n_ctx_train: int) -> SearchSpec:
        sizes: dict[str, Any] = {"budget": "3", "open": None, "screen": 1, "finals": ((1, 1),), "test": 2}
        more = {"controls": (), "optimiser": "ga", "population": 6}
        return whole(asked, state, seconds, n_ctx_train).model_copy(update={**sizes, **more})

    monkeypatch.setattr(plan, "search_spec", few)
    monkeypatch.setattr(plan, "DEPTHS", (0.0, 0.5))
    monkeypatch.setattr(plan, "SPEED_SECONDS", 0.05)
    monkeypatch.setattr(result, "MIN_TEST", 2)
    monkeypatch.setattr(tuning, "BASELINE_ITEMS", 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_model_to_a_scaled_model_with_an_end_between(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = search_view.search_with_progress

    class Impatient(Listener):
        def stage(self, stage: str) -> None:
            if stage.startswith("finals"):
                raise KeyboardInterrupt

    def stopped(folder: Path, spec: SearchSpec) -> Outcome:
        return run_folder.run_in(folder, spec, Impatient())

    monkeypatch.setattr(search_view, "search_with_progress", stopped)
    out = small / "out.gguf"
    first = run(NEEDLE, "--ctx", str(CTX), "-o", out, "-t", "1", "--time", "20m")
    assert first.exit_code == 130, first.output
    for words in (
        "trained at 1,024 tokens",
        "the plan for 1,600 tokens, beyond",
        "20 minutes in all",
        "each layer's scale",
    ):
        assert words in stderr(first).replace("trained at ", "trained at ")
    assert "taken: kv" in first.output
    assert not out.exists()
    folder = small / "needle-Q8_0.tune-1600"
    go_on = next(line for line in first.output.splitlines() if line.startswith("go on:"))
    assert shlex.split(go_on.removeprefix("go on:")) == ["ropebend", "tune", "--resume", folder.name]
    page = (folder / "report.html").read_text()
    assert f"ropebend tune --resume {folder.name}" in page
    assert "search --resume" not in page
    state = json.loads((folder / "tune.json").read_text())
    assert state["task"]["name"] == "kv"
    assert state["short"]["options"]["length"] == 800
    assert 0 < state["spent"] < 1200

    monkeypatch.setattr(search_view, "search_with_progress", real)
    done = run("--resume", folder)
    assert done.exit_code == 0, done.output
    assert "What does it lose" not in done.output  # known already
    assert re.search(r"on \d items: .*(linear|ntk|yarn) ×\d.*; the search begins from", stderr(done)), stderr(done)
    scaling = ModelInfo.read(out).scaling
    assert scaling is not None
    assert scaling.is_judged
    assert scaling.n_ctx is not None
    if scaling.shorter:
        assert scaling.at(1024) is None
        assert "none@1024" in done.output
    assert not scaling.is_unscaled
    assert re.search(r"against unscaled: \+\d+\.\d points .* at 1,600 tokens", done.output)
    assert "the next best:" in done.output
    assert f"ropebend serve {out} -c {CTX}" in done.output
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    html = (folder / "report.html").read_text()
    assert f"serve {out} -c {CTX}" in html.replace("&#39;", "'")
    assert "By length and depth" in html
    again = run(NEEDLE, "--ctx", str(CTX), "-o", small / "other.gguf")
    assert isinstance(again.exception, UsageError)
    assert f"go on with `ropebend tune --resume {folder.name}`" in str(again.exception)
    taken = run(NEEDLE, "--ctx", str(CTX), "-o", out, "--folder", "elsewhere")
    assert isinstance(taken.exception, RopebendError)
    assert not (small / "elsewhere").exists()


def test_where_nothing_is_lost_it_says_so_and_writes_nothing(small: Path) -> None:
    done = run(NEEDLE, "--ctx", "200", "-o", small / "out.gguf", "-t", "1")
    assert done.exit_code == 0, done.output
    assert "Nothing to tune at 200 tokens; nothing was written." in done.output
    assert re.search(r"^  kv: everything right: nothing to win here$", done.output, re.MULTILINE)
    assert re.search(
        r"^  passkey: \d+% of the easy items right: the task is beyond this model$", done.output, re.MULTILINE
    )
    assert f"longer: ropebend tune {NEEDLE} --ctx 400" in done.output
    assert not (small / "out.gguf").exists()


def test_a_time_that_holds_no_search_is_refused_with_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(NEEDLE, "--ctx", "4k", "--time", "10s", "-t", "1")
    assert isinstance(done.exception, UsageError)
    again = shlex.split(str(done.exception).splitlines()[-1])
    assert again[:5] == ["ropebend", "tune", NEEDLE, "--ctx", "4096"]
    assert re.fullmatch(r"\d+(\.5)?[mh]", again[-1])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([NEEDLE], "--ctx is missing: the length in tokens"),
        ([], "expected a MODEL, or --resume FOLDER"),
        ([NEEDLE, "--ctx", "2k", "--time", "soon"], "--time: expected a time such as"),
        (["--resume", "x", "--ctx", "2k"], "--ctx has no effect on --resume"),
        (["--resume", "x"], "is x the folder of a tune?"),
    ],
)
def test_what_cannot_be_is_said(args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*args)
    assert isinstance(done.exception, RopebendError)
    assert message in str(done.exception)
    assert not [*tmp_path.iterdir()]


# ---- what is written


def outcome_of(long: dict[str, float], short: dict[str, float], **changes: Any) -> Outcome:
    """Results of ten items of two questions each; a number is the share that is right."""

    def of(share: float) -> Evaluation:
        value = (np.arange(20) < round(20 * share)).astype(float)
        value = np.random.default_rng(7).permutation(value).reshape(10, 2)
        return RetrievalEvaluation((0.0, 1.0), value, np.zeros((10, 2)))

    spec = SearchSpec(model=NEEDLE, tasks=(TaskSpec(name="kv"),), start=(1.5,) * 6, **changes)
    info = ModelInfo.read(NEEDLE)
    found = {
        name: Found(name, [Scored(Candidate((scale,) * 6, 1.0), 0.5)])
        for name, scale in (("uniform", 1.2), (spec.label, 1.3))
    }
    tests = {name: [of(long[name]), of(short[name])] for name in long}
    task = spec.tasks[0].make()
    return Outcome(
        spec, info, (task, task), found, tests, {}, LayerScaling.uniform(1.3, 6), CTX, 0, 0.0, False
    )  # fmt: skip


MAIN = SearchSpec(model="", tasks=()).label


def test_the_layer_scales_are_written_where_they_help() -> None:
    long = {UNSCALED: 0.1, "start": 0.7, "uniform": 0.75, MAIN: 0.8}
    chosen = result.winner(outcome_of(long, {**long, MAIN: 0.05}), CTX, 800)
    assert chosen is not None
    assert chosen.name == MAIN
    assert chosen.scaling.at(1024) is None  # short prompts would lose
    assert chosen.scaling.at(1025) is not None
    gains = result.winner(outcome_of(long, long), CTX, 800)
    assert gains is not None
    assert gains.up_to is None
    assert gains.scaling.at(100) is not None
    inside = result.winner(outcome_of(long, {**long, MAIN: 0.05}), 1000, 500)
    assert inside is not None
    assert inside.up_to == 500


def test_what_is_plainer_and_clearly_better_is_written_instead() -> None:
    long = {UNSCALED: 0.1, "start": 0.95, "uniform": 0.2, MAIN: 0.4}
    chosen = result.winner(outcome_of(long, long), CTX, 800)
    assert chosen is not None
    assert chosen.name == "start"
    assert set(chosen.scaling.layer_scale) == {1.5}
    assert chosen.scaling.provenance["chosen"] == "start"


def test_nothing_is_written_where_nothing_clearly_helps() -> None:
    long = {UNSCALED: 0.5, "start": 0.5, "uniform": 0.4, MAIN: 0.5}
    assert result.winner(outcome_of(long, long), CTX, 800) is None
