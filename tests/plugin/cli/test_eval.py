"""How long `ropebend eval` measures, what it keeps, and what it says about the result."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from ropebend import Model, RopebendError, UsageError
from ropebend.cli import app
from ropebend.context import Batch, Context
from ropebend.durations import brief, duration, read_duration, short_duration
from ropebend.evaluate import Evaluation, Row, open_evaluator
from ropebend.evaluate.diagnosis import diagnosis
from ropebend.evaluate.pace import Pace
from ropebend.evaluate.results import label
from ropebend.evaluate.stats import accuracy_interval, cluster_bootstrap, mean_interval, sign_flip_p, wilson
from ropebend.runtime import Runtime
from ropebend.tasks import make_task
from ropebend.tasks.kv import KVRetrieval

NEEDLE = str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf")
ONE = Runtime(n_threads=1)


@pytest.fixture(scope="module")
def needle() -> Iterator[Model]:
    with Model(NEEDLE) as model:
        yield model


def run_eval(*args: str, folder: Path) -> tuple[int, str, dict[str, object]]:
    out = folder / "r.json"
    result = CliRunner().invoke(app, ["eval", NEEDLE, "-t", "1", "-o", str(out), *args])
    return result.exit_code, result.output, json.loads(out.read_text()) if out.exists() else {}


# ---- how long it measures


def test_the_same_call_again_says_the_same_from_the_file(tmp_path: Path) -> None:
    args = ("--length", "300", "--samples", "2", "--depths", "0,1")
    _, first, _ = run_eval(*args, folder=tmp_path)
    code, again, _ = run_eval(*args, folder=tmp_path)
    assert code == 0, again
    assert "2 items are in" in again
    assert again.splitlines()[-4:] == first.splitlines()[-4:]


def test_it_ends_when_the_accuracy_is_known(tmp_path: Path) -> None:
    code, said, report = run_eval("--keys", "4", "--depths", "0,1", "--within", "20", folder=tmp_path)
    assert code == 0
    assert "then known to ±20 points" in said
    assert 5 <= int(str(report["samples"])) < 500
    low, high = report["accuracy_interval"]  # type: ignore[misc]
    assert (high - low) / 2 <= 0.2
    _, said, more = run_eval("--keys", "4", "--depths", "0,1", "--within", "15", folder=tmp_path)
    assert f"{report['samples']} items are in" in said  # it goes on
    assert int(str(more["samples"])) > int(str(report["samples"]))
    _, said, again = run_eval("--keys", "4", "--depths", "0,1", "--samples", "6", "--force", folder=tmp_path)
    assert "items are in" not in said
    assert again["samples"] == 6


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], list[float]]:
    """Lets the clock stand still but for decodes, which take so many seconds a token at each time of the clock."""

    def pace(seconds: Callable[[float], float]) -> list[float]:
        now = [0.0]
        real = Context.run

        def run(self: Context, batch: Batch, n: int) -> None:
            real(self, batch, n)
            now[0] += n * seconds(now[0])

        monkeypatch.setattr(Context, "run", run)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        return now

    return pace


def test_it_ends_when_the_time_is_up(tmp_path: Path, paced: Callable[..., list[float]]) -> None:
    now = paced(lambda _: 0.01)
    code, said, report = run_eval("--keys", "28", "--time", "2m", "--within", "0.1", folder=tmp_path)
    assert code == 0
    assert "then 2 minutes hold no more" in said
    assert 60 < now[0] <= 120
    assert 5 <= int(str(report["samples"])) < 20


def test_an_item_in_work_when_the_time_is_up_does_not_count(tmp_path: Path, paced: Callable[..., list[float]]) -> None:
    now = paced(lambda at: 0.01 if at < 50 else 1.0)
    code, said, report = run_eval("--keys", "28", "--time", "2m", "-b", "64", folder=tmp_path)
    assert code == 0
    assert "then 2 minutes hold no more" in said
    assert 120 <= now[0] < 240  # of 1,000 that the item would take
    assert report["interrupted"] is False
    assert 2 <= int(str(report["samples"])) <= 8


def test_a_time_that_holds_no_item_is_refused_before_it_is_over(
    tmp_path: Path, paced: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    now = paced(lambda _: 0.1)
    result = CliRunner().invoke(app, ["eval", NEEDLE, "--keys", "28", "--time", "50s", "-b", "64", "-t", "1"])
    assert isinstance(result.exception, RopebendError)
    said = str(result.exception)
    assert re.search(r"--time: 50 seconds hold no item: one takes about 2 minutes here; --time \d+m would hold", said)
    assert now[0] < 100  # an item takes longer
    assert not [*tmp_path.iterdir()]


def test_the_plan_names_what_it_takes(tmp_path: Path) -> None:
    said = " ".join(run_eval("--keys", "4", "--samples", "3", folder=tmp_path)[1].split())
    assert re.search(r"kv: items of \d+ prompt tokens, 5 questions each; [\d,]+ tokens/s, about \S+ s an item", said)
    assert "3 items, " in said
    assert "Ctrl-C keeps the finished ones" in said


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_and_kill_lose_the_item_in_work_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ropebend.cli", "eval", NEEDLE, "--keys", "30", "--samples", "400", "-t", "1"]
    out = tmp_path / "needle-Q8_0.kv-30.json"
    before = 0
    for kind, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            while run.poll() is None and (not out.exists() or json.loads(out.read_text())["samples"] < before + 3):
                os.sched_yield()
            run.send_signal(kind)
            said, err = run.communicate()
        assert run.returncode == code, err.decode()
        samples = json.loads(out.read_text())["samples"]
        assert samples >= before + 3
        before = samples
    assert b"interrupted" in said
    assert b"the same command again" in said


def test_the_next_command_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model and task, without what only eval takes."""
    model = tmp_path / "my model.gguf"
    model.write_bytes(Path(NEEDLE).read_bytes())
    words = ["eval", str(model), "--keys", "28", "--samples", "8", "-t", "1", f"--output={tmp_path}/r.json", "--force"]
    monkeypatch.setattr(sys, "argv", ["ropebend", *words])
    said = CliRunner().invoke(app, words).output
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    assert shlex.split(line.removeprefix("next: ")) == ["ropebend", "search", str(model), "--keys", "28", "-t", "1"]


def test_wrong_times_are_named(tmp_path: Path) -> None:
    for flag, value, message in (
        ("--time", "5x", "--time: expected a time such as 90s"),
        ("--depths", "nan", "--depths: expected numbers in"),
    ):
        result = CliRunner().invoke(app, ["eval", NEEDLE, flag, value])
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)


def test_durations_in_words() -> None:
    assert [duration(s) for s in (1, 59.6, 150, 7000, 90000, 10**6)] == [
        "1 second", "60 seconds", "2 minutes", "1.9 hours", "25.0 hours", "11.6 days",
    ]  # fmt: skip
    assert [brief(v) for v in (0.3612, 7.54, 98.7, 99.5, 131.4, 2345.0)] == ["0.36", "7.5", "99", "100", "131", "2,345"]
    assert [read_duration(t) for t in ("90s", "1.5 h", "20m", "20", "0s", "m")] == [90, 5400, 1200, None, None, None]
    for s in (1, 61, 700, 10_000, 11_000, 10**6):
        assert s <= (read_duration(short_duration(s)) or 0) <= max(60, 2 * s)


def test_pace_learns_that_later_tokens_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    assert pace.predict(100) == 0.0
    pace.start()
    for start in range(0, 2048, 512):
        now += sum(1e-3 + 1e-6 * (start + i + 0.5) for i in range(512))
        pace.add(512, start)
    assert pace.predict(8192) == pytest.approx(8192e-3 + 1e-6 * 8192**2 / 2, rel=1e-6)


# ---- what it says


def evaluated(task: KVRetrieval, accuracy: Sequence[float], n: int, texts: Sequence[str] = ()) -> Evaluation:
    rng = np.random.default_rng(0)
    rows = [
        Row(
            tuple((rng.random(len(accuracy)) < accuracy).astype(float).tolist()),
            (-1.0,) * len(accuracy),
            (),
            tuple(texts),
        )
        for _ in range(n)
    ]
    return Evaluation.of(task, rows)


def test_results_are_explained() -> None:
    task = KVRetrieval(keys=75)
    for accuracy, n, easy, words in (
        ((1, 1, 1, 1, 1), 20, 1.0, "Everything right: scales have nothing to win here; take longer prompts, say"),
        ((0, 0, 0, 0, 0), 20, 1.0, "Nothing right, though it can do easy items"),
        ((0, 0, 0, 0, 0), 20, 0.0, "beyond the model"),
        ((1, 0.3, 0.3, 0.3, 1), 60, 1.0, "Loses the middle: 1.00 at the ends, 0."),
        ((0, 0.3, 0.5, 0.7, 1), 60, 1.0, "Loses what stands far back"),
        ((1, 0.7, 0.5, 0.3, 0), 60, 1.0, "Loses what stands last"),
        ((0.6, 0.6, 0.6, 0.6, 0.6), 60, 1.0, "Much the same at every depth: 0."),
        ((0.5, 0.5, 0.5, 0.5, 0.5), 2, 1.0, "Too few items to tell"),
    ):  # fmt: skip
        assert words in diagnosis(task, evaluated(task, accuracy, n), easy)
    same = evaluated(task, (1, 0, 0, 0, 0), 20, [f"{'the first value of all'} and on"] * 5)
    assert diagnosis(task, same).startswith("It recites: mostly the same answer whatever is asked")


def test_names_tell_sizes_apart(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One day. " * 100)
    assert label(KVRetrieval(keys=75)) == "kv-75"
    assert label(KVRetrieval(keys=75, protocol="published")) == "kv-75-published"
    assert label(make_task("perplexity", {"text": str(tmp_path / "t.txt"), "length": 64})) == "perplexity-64"


# ---- intervals


def test_intervals_do_not_collapse() -> None:
    """Items that are all alike say something about themselves only."""
    for p in (0.0, 0.2, 0.6, 1.0):
        value = np.tile((np.arange(5) < 5 * p).astype(float), (4, 1))
        low, high = accuracy_interval(value)
        assert low <= p <= high
        assert high - low > 0.3
    assert accuracy_interval(np.array([[1.0], [0.0], [1.0]])) == pytest.approx(wilson(2, 3))  # one question an item
    assert accuracy_interval(np.array([[1.0, 0.0]])) == pytest.approx(wilson(0.5, 1))
    assert mean_interval(np.array([1.0])) is None
    low, high = mean_interval(np.array([1.0, 2.0, 4.0])) or (0, 0)
    assert (low + high) / 2 == pytest.approx(7 / 3)


def test_intervals_hold_what_they_promise() -> None:
    """Items that share their luck, few of them: the true mean is in nearly 95 % of the intervals."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        p = np.clip(rng.normal(0.6, 0.25, (12, 1)), 0, 1)
        low, high = accuracy_interval((rng.random((12, 5)) < p).astype(float))
        held.append(low <= 0.59 <= high)  # the clipped mean is a little under 0.6
    assert np.mean(held) > 0.92


def test_wilson_agrees_with_scipy() -> None:
    for k, n in ((0, 5), (3, 7), (50, 100)):
        expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n) == pytest.approx((expected.low, expected.high))
        assert wilson(k + 1e-9, n) == pytest.approx((expected.low, expected.high), abs=1e-6)  # our own formula


def test_paired_tests() -> None:
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.ones(5)) == pytest.approx(2 / 32)  # of all 32 signs two are as far from 0
    low, high = cluster_bootstrap(np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]))
    assert 0 <= low < 4 / 6 < high <= 1
    assert cluster_bootstrap(np.array([0.5])) == (0.5, 0.5)


# ---- lead-ins


def test_the_lead_in_is_what_makes_answers_likeliest(needle: Model) -> None:
    task = KVRetrieval(keys=4, depths=[0.0, 1.0])
    with open_evaluator(needle, task, 1, ONE) as evaluator:
        assert evaluator.lead_in == ' "'
        assert evaluator.easy == 1.0
        logprob = {}
        for lead_in in (' "', " ", '"', "\n", ""):
            tokens = needle.tokenize(task.easy_item(0).questions[0].prompt)
            gold = needle.tokenize(lead_in + task.easy_item(0).questions[0].answers[0], add_special=False)
            with Context(needle, n_ctx=512, n_threads=1, scaling=None) as context:
                context.decode(tokens + gold, 0, all_logits=True)
                rows = context.all_logits(len(tokens) + len(gold))[len(tokens) - 1 : -1].astype(np.float64)
            logprob[lead_in] = sum(r[t] - np.logaddexp.reduce(r) for r, t in zip(rows, gold, strict=True))
    assert max(logprob, key=lambda k: logprob[k]) == evaluator.lead_in


def test_lead_ins_of_a_models_own_hold_nothing_of_the_item() -> None:
    from ropebend.evaluate.lead_in import may_lead

    questions = [KVRetrieval(keys=2, depths=[0.0]).item(i).questions[0] for i in (0, 1)]
    mine, other = questions[0], questions[1].prompt
    assert may_lead(" The corresponding value is ", mine, other)
    assert not may_lead(f" The value of {mine.prompt.split('Key: ')[1][1:9]} is ", mine, other)
    assert not may_lead(" x" * 30, mine, other)
