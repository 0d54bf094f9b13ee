"""Whole searches on the bundled model: resumed, in parallel, with constraints, with every method; the same factors."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from small_search import KV, NEEDLE, spec
from typer.testing import CliRunner

from ropebend import LayerScaling, RopebendError
from ropebend.cli import app
from ropebend.cli.search import plan_in_words
from ropebend.errors import UsageError
from ropebend.evaluate import Evaluation, Row
from ropebend.runtime import Runtime
from ropebend.search import Listener, SearchSpec, TaskSpec, run_search, seeds, verdict
from ropebend.search import folder as run_folder
from ropebend.search.cost import Cost, DoesNotFit, cost_of, fitted
from ropebend.search.measure import Measurer
from ropebend.search.objective import Objective, Term, depth_weights
from ropebend.search.optimisers import Scored, race
from ropebend.search.outcome import Generation
from ropebend.search.space import Candidate
from ropebend.search.spec import CONTROLS, OpenName
from ropebend.search.worker import Done, Job
from ropebend.tasks.kv import KVRetrieval
from ropebend.tasks.text import Perplexity

OWN_TASK = """
from ropebend.tasks.kv import KVRetrieval

class Last(KVRetrieval):
    name = "last"

def task(keys):
    return Last(keys=int(keys), depths=[1.0])
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LayerScaling]:
    folder = tmp_path_factory.mktemp("plain")
    started = run_folder.start(folder, spec())
    return folder, run_folder.run_in(folder, started).layers


def test_a_run_folder_holds_everything(plain: tuple[Path, LayerScaling]) -> None:
    folder, layers = plain
    assert LayerScaling.load(folder / "factors.json") == layers
    provenance = json.loads((folder / "factors.json").read_text())["provenance"]
    assert provenance["evaluations"]["bezier ga"] == 16
    assert len(provenance["model"]["sha256"]) == 64
    assert set(provenance["scores"]["test"]) == {"unscaled", "uniform", "bezier ga"}
    for name in ("scales.png", "scores.png", "accuracy.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert "http" not in html.replace("http-equiv", "")  # nothing from outside
    assert "on too few test items to tell" in html


def test_two_workers_find_the_same_factors_as_one(plain: tuple[Path, LayerScaling], tmp_path: Path) -> None:
    started = run_folder.start(tmp_path, spec(workers=2, runtime=Runtime(n_threads=2)))
    layers = run_folder.run_in(tmp_path, started).layers
    assert layers.layer_scale == plain[1].layer_scale
    assert layers.provenance["scores"] == plain[1].provenance["scores"]


def test_workers_run_a_task_of_your_own(tmp_path: Path) -> None:
    """Its classes can be imported nowhere, so they travel with it."""
    (tmp_path / "mine.py").write_text(OWN_TASK)
    mine = (TaskSpec(name=str(tmp_path / "mine.py"), options={"keys": "4"}),)
    one, two = (run_search(spec(tasks=mine, budget="8", workers=n, runtime=Runtime(n_threads=n))) for n in (1, 2))
    assert one.layers == two.layers
    assert one.tests["unscaled"][0].value.tolist() == two.tests["unscaled"][0].value.tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("lines", [2, 14, 40])
def test_killed_and_resumed_it_ends_in_the_same_factors(
    plain: tuple[Path, LayerScaling], tmp_path: Path, lines: int
) -> None:
    """SIGKILL once the log has so many lines, and a torn line at its end; then --resume."""
    run_folder.start(tmp_path, spec())
    log = tmp_path / "evaluations.jsonl"
    command = [sys.executable, "-m", "ropebend.cli", "search", "--resume", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while run.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
            os.sched_yield()
        run.send_signal(signal.SIGKILL)
        run.communicate()
    measured = log.read_bytes()
    with open(log, "ab") as f:
        f.write(b'{"scales": [1.0, 1.')
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert log.read_bytes().startswith(measured[: measured.rfind(b"\n") + 1])
    assert (tmp_path / "factors.json").read_bytes() == (plain[0] / "factors.json").read_bytes()


def measurements(log: Path) -> list[dict[str, Any]]:
    """The lines of a log but for their times."""
    return [{**json.loads(line), "seconds": 0, "elapsed": 0} for line in log.read_text().splitlines()]


def test_a_budget_in_tokens_resumes_where_it_was(tmp_path: Path) -> None:
    """What was read from the log has its price, too: the search ends where the uninterrupted one ends."""
    whole = run_search(spec(budget="9ktok", test=1), tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    for n in (1, len(lines) // 2, len(lines)):
        (tmp_path / "cut.jsonl").write_text("".join(lines[:n]))
        again = run_search(spec(budget="9ktok", test=1), tmp_path / "cut.jsonl")
        assert {name: f.n_evaluated for name, f in again.found.items()} == {
            name: f.n_evaluated for name, f in whole.found.items()
        }
        assert again.layers.layer_scale == whole.layers.layer_scale
        assert again.n_tokens == whole.n_tokens
        assert measurements(tmp_path / "cut.jsonl") == measurements(tmp_path / "log.jsonl")


def test_resuming_refuses_what_is_not_the_same(tmp_path: Path) -> None:
    with pytest.raises(RopebendError, match=r"is .* the folder of a search"):
        run_folder.resume(tmp_path)
    model = tmp_path / "m.gguf"
    model.write_bytes(Path(NEEDLE).read_bytes())
    run_folder.start(tmp_path, spec(model=str(model)))
    with pytest.raises(RopebendError, match="holds a search already; go on with `ropebend search --resume"):
        run_folder.start(tmp_path, spec())
    model.write_bytes(Path(NEEDLE).read_bytes() + b"x")
    with pytest.raises(RopebendError, match="not the file any more"):
        run_folder.resume(tmp_path)
    parts = [tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    parts[0].write_bytes(Path(NEEDLE).read_bytes())
    parts[1].write_bytes(b"x")
    run_folder.start(tmp_path / "split", spec(model=str(parts[0])))
    parts[1].write_bytes(b"y")
    with pytest.raises(RopebendError, match="not the file any more"):
        run_folder.resume(tmp_path / "split")
    (tmp_path / "config.json").write_text('{"format": "x"}')
    with pytest.raises(RopebendError, match="not a search's configuration"):
        run_folder.resume(tmp_path)
    (tmp_path / "evaluations.jsonl").write_text('{"scales": 1}\n')
    with pytest.raises(RopebendError, match=r"evaluations\.jsonl: line 1: not a measurement"):
        run_search(spec(), tmp_path / "evaluations.jsonl")


@pytest.mark.parametrize(("method", "factor"), [("linear", 2.0), ("ntk", 2.0), ("dynamic-ntk", 2.0), ("yarn", 2.0)])
def test_methods_with_their_factor_searched_along(method: str, factor: float) -> None:
    outcome = run_search(
        spec(method=method, factor=factor, factor_range=(1.0, 4.0), genome="free", optimiser="cma", budget="30")
    )
    assert outcome.layers.rope.method == method
    factors = {s.candidate.factor for s in outcome.main.ranked}
    assert all(1.0 <= f <= 4.0 for f in factors)
    assert outcome.layers.rope.factor == outcome.main.best.candidate.factor


def test_all_controls_second_tasks_and_transfer(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One day a girl named Lily went to the park. She saw a big dog! " * 30)
    text = {"text": str(tmp_path / "t.txt"), "length": 64}
    started = run_folder.start(
        tmp_path,
        spec(
            tasks=(KV, TaskSpec(name="perplexity", options=text, keep=0.05)),
            transfer=(TaskSpec.parse("kv:keys=8,depths=0/1"), TaskSpec(name="perplexity", options=text)),
            controls=("uniform", "line", "free", "random"), budget="40", test=3,
        ),
    )  # fmt: skip
    outcome = run_folder.run_in(tmp_path, started)
    assert list(outcome.tests) == ["unscaled", "uniform", "line", "free", "random", "bezier ga"]
    assert [len(by_task) for by_task in outcome.tests.values()] == [4] * 6
    assert [f.n_evaluated for f in outcome.found.values()][1:] == [10] * 4
    html = (tmp_path / "report.html").read_text()
    assert html.count("(transfer: not searched on)") == 2
    assert html.count("<th>perplexity</th>") == 2


def test_budgets_in_tokens_and_time_end_a_search() -> None:
    assert run_search(spec(budget="3ktok")).main.n_evaluated < 60
    seen: list[str] = []
    costs: list[Cost] = []

    class Stages(Listener):
        def started(self, spec: SearchSpec, cost: Cost) -> None:
            costs.append(cost)

        def stage(self, stage: str) -> None:
            seen.append(stage)

    outcome = run_search(spec(budget="0.000001s"), listener=Stages())
    assert len(outcome.main.history) == 1  # there is always something to choose from
    assert seen == ["uniform", "bezier ga", "finals: uniform", "finals: bezier ga", "test"]
    assert (costs[0].finals, costs[0].test) == (2 * 3 * 1, 3 * 2)  # of two searches; of three sets of scales


def test_a_budget_in_time_holds_all_of_a_run() -> None:
    """Whatever an item costs: judging, finals and at least a small search fit, or the run is refused with a budget."""
    standard = spec(budget="20m", controls=CONTROLS, screen=6, finals=((24, 24),), test=100, open=get_args(OpenName))
    before = 10**9
    for seconds in (0.01, 0.1, 0.3, 1.0, 3.0, 6.0, 7.5):
        sized = fitted(standard, seconds, spent=10.0)
        assert sized.open is None
        cost = cost_of(sized, 1000, seconds, 300, 10.0)
        late = 10 + (cost.finals + cost.test) * seconds
        assert late + 20 * sized.screen * sized.n_shares * seconds <= 1200
        assert sized.test >= 10
        assert sized.test + sized.n_search <= before  # dearer items, fewer of them
        before = sized.test + sized.n_search
    assert fitted(standard, 0.01, spent=10.0).model_copy(update={"open": standard.open}) == standard
    with pytest.raises(
        DoesNotFit, match="too short: an item takes 1e\\+02 seconds here, so that 20m hold 11"
    ) as caught:
        fitted(standard, 100.0, spent=10.0)
    again = standard.model_copy(update={"budget": caught.value.budget})
    assert fitted(again, 100.0, spent=10.0).test == 10
    fixed = standard.model_copy(update={"open": ("controls",)})  # what was asked for by name is not changed
    with pytest.raises(DoesNotFit):
        fitted(fixed, 3.0, spent=10.0)


def test_a_search_ends_within_its_time() -> None:
    """Also where measuring turns out slower than the first items were."""
    standard = spec(budget="8s", screen=6, finals=((24, 24),), test=100, open=get_args(OpenName))
    outcome = run_search(standard)
    assert outcome.seconds < 8.5
    assert len(outcome.tests["unscaled"][0].value) >= 10
    assert outcome.spec.open is None


def test_the_plan_is_said_in_words() -> None:
    cost = cost_of(spec(budget="60s"), 1000, 0.5, 300, 2.0)
    text = "\n".join(plan_in_words(spec(budget="60s"), cost))
    assert "2,000 tokens/s, 0.5 s for a set of scales on an item" in text
    assert "at most 58 seconds, of which 6 seconds for finals and judgement" in text
    text = "\n".join(plan_in_words(spec(budget="50ktok"), cost_of(spec(budget="50ktok"), 1000, 0.5, 300, 2.0)))
    assert "at most 31 seconds, of which 6 seconds" in text
    assert "0.062 M prompt tokens" in text


def test_an_interrupted_search_has_a_report_too(tmp_path: Path) -> None:
    class Impatient(Listener):
        def stage(self, stage: str) -> None:
            if stage.startswith("finals"):
                raise KeyboardInterrupt

    outcome = run_folder.run_in(tmp_path, run_folder.start(tmp_path, spec()), Impatient())
    assert outcome.interrupted
    assert LayerScaling.load(tmp_path / "factors.json") == outcome.layers
    html = (tmp_path / "report.html").read_text()
    assert "not judged on test items" in html
    assert html.count("data:image/png;base64,") == 3
    assert "<td>unscaled</td>" in html
    assert "--resume" in html


def test_the_best_so_far_may_be_a_control(tmp_path: Path) -> None:
    class Impatient(Listener):
        def generation(self, state: Generation) -> None:
            if state.search == "bezier ga":
                raise KeyboardInterrupt

    outcome = run_search(spec(), None, Impatient())
    scores = {name: f.best.score for name, f in outcome.found.items()}
    assert set(scores) == {"uniform", "bezier ga"}
    assert outcome.main.name == max(scores, key=lambda name: scores[name])
    assert outcome.layers.layer_scale == outcome.main.best.candidate.scales
    assert f"the best scales so far ({outcome.main.name})" in verdict(outcome)


# ---- objective, measurer, verdict: the arithmetic


def rows(*values: Sequence[float]) -> list[Row]:
    return [Row(tuple(v), tuple(-1e9 for _ in v)) for v in values]


def test_scores_weigh_depths_and_the_worst_one() -> None:
    task = KVRetrieval(keys=2, depths=[0.0, 1.0])
    got = rows([1, 0], [1, 1])
    assert Term(task, worst=0.0).score(got) == pytest.approx(0.75)
    assert Term(task, worst=0.5).score(got) == pytest.approx(0.5 * 0.75 + 0.5 * 0.5)
    assert Term(task, depth_weights=(3, 1), worst=0.0).score(got) == pytest.approx(0.875)
    soft = Term(task, worst=0.0).score([Row((0.0, 0.0), (0.0, 0.0))])
    assert soft == pytest.approx(0.1)


def test_constraints_cost_only_when_broken(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x" * 100)
    text = Term(Perplexity(text=tmp_path / "t.txt", length=8), keep=0.05)
    kv = Term(KVRetrieval(keys=2, depths=[0.0, 1.0]), worst=0.0, weight=2.0)
    objective = Objective((kv, text))
    base = [rows([0, 0]), rows([-2.0])]
    assert objective.score([rows([1, 1]), rows([-2.0 - np.log(1.05)])], base) == pytest.approx(2.0)
    assert objective.score([rows([1, 1]), rows([-2.0 - np.log(1.05) - 0.1])], base) == pytest.approx(1.0)
    kept = Objective((Term(kv.task, keep=0.25),))
    assert kept.score([rows([1, 0])], [rows([1, 1])]) == pytest.approx(-2.5)


def test_depth_weights() -> None:
    assert depth_weights(None, 4).tolist() == [0.25] * 4
    assert depth_weights([1, 3], 2).tolist() == [0.25, 0.75]
    for bad in ([1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(RopebendError, match="depth weights"):
            depth_weights(bad, 2)


class Recorder:
    """An executor that says what it was asked for, in reverse order."""

    n_workers = 1
    on_tokens = None

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, jobs: Sequence[Job]) -> Any:
        self.jobs += jobs
        for i in reversed(range(len(jobs))):
            yield i, Done(Row((float(jobs[i].item),), (0.0,)), 10, 0.5, 99)

    def close(self) -> None:
        pass


def test_nothing_is_measured_twice_not_even_after_a_restart(tmp_path: Path) -> None:
    objective = Objective((Term(KVRetrieval(keys=2, depths=[0.0])),))
    base = LayerScaling((1.0, 1.0), "llama")
    a, b = Candidate((1.5, 1.0)), Candidate((1.5, 1.0), control_points=((0, 1),) * 4)
    log = tmp_path / "log.jsonl"
    first = Recorder()
    measurer = Measurer(objective, base, first, log)
    assert [r.value[0] for r in measurer.rows([a], [0], range(20))[0][0]] == list(range(20))
    assert [j.item for j in first.jobs] == list(range(20))
    measurer.rows([b], [0], range(22))  # the same scales
    assert [j.item for j in first.jobs[20:]] == [20, 21]
    ones = Candidate((1.0, 1.0))  # the unscaled model
    measurer.rows([a, b, None, None, ones], [0], range(23))  # and each thing once where it is asked for twice
    assert [(j.item, j.scaling is None) for j in first.jobs[22:]] == [(22, False), *((i, True) for i in range(23))]
    measurer.close()
    second = Recorder()
    measurer = Measurer(objective, base, second, log)
    got = measurer.rows([a, None], [0], range(22))
    assert [r.value[0] for r in got[0][0]] == list(range(22))
    assert second.jobs == []
    assert [r.value[0] for r in got[1][0]] == list(range(22))
    assert (measurer.n_tokens, measurer.lengths) == (440, {0: 99})
    assert measurer.n_missing(a, 23) == 1
    assert measurer.cost(0) == (10, 0.5)
    measurer.close()


def test_a_race_scores_fewer_candidates_on_more_items_and_compares_at_equal_numbers_only() -> None:
    a, b, c, d = entrants = [Candidate((s,)) for s in (1.0, 1.1, 1.2, 1.3)]
    table = {2: [0.5, 0.9, 0.7, 0.9], 10: [9.0, 0.4, 0.4, 0.6]}
    asked: list[tuple[list[Candidate], int]] = []

    def score(candidates: Sequence[Candidate], n_items: int) -> list[float]:
        asked.append((list(candidates), n_items))
        return [table[n_items][entrants.index(c)] for c in candidates]

    known = [Scored(c, 0.0) for c in entrants]
    ranked = race(known, ((4, 2), (3, 10)), score)
    assert asked == [([a, b, c, d], 2), ([b, d, c], 10)]  # of equal ones the earlier stays ahead
    assert [(s.candidate, s.score) for s in ranked] == [(d, 0.6), (b, 0.4), (c, 0.4)]
    assert race(known, (), score) == known


def test_comparisons_are_paired_by_item() -> None:
    task = KVRetrieval(keys=2, depths=[0.0, 1.0])
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 2, (40, 2))
    worse = hard * (rng.random((40, 2)) < 0.6)
    a, b = (Evaluation.of(task, rows(*x.tolist())) for x in (hard, worse))
    c = a.against(b)
    assert 0 < c.low < c.mean < c.high
    assert c.p < 0.01
    same = a.against(a)
    assert (same.mean, same.p) == (0.0, 1.0)


def test_the_verdict_follows_the_interval() -> None:
    outcome = run_search(spec(budget="8"))
    task = KVRetrieval(keys=2, depths=[0.0, 1.0])
    good, bad = (Evaluation.of(task, rows(*([x, x] for _ in range(12)))) for x in (1.0, 0.0))
    for mine, theirs, words in ((good, bad, "beat"), (bad, good, "WORSE"), (good, good, "within noise")):
        outcome.tests.update({"uniform": [theirs], "bezier ga": [mine]})
        assert words in verdict(outcome)


def test_repeated_under_several_seeds_and_resumed(tmp_path: Path) -> None:
    """Each seed is a search of its own, with its own items; the summary goes over all of them."""
    folder = tmp_path / "runs"
    flags = ["--keys", "6", "--depths", "0,1", "--controls", "uniform", "--budget", "16", "--screen", "1", "-t", "1"]
    flags += ["--finals", "3x2", "--test", "6", "--population", "6", "--repeat", "2", "--seed", "4"]
    command = [sys.executable, "-m", "ropebend.cli", "search"]

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *args], capture_output=True, text=True, check=False)

    first = run(NEEDLE, *flags, "-o", str(folder))
    assert first.returncode == 0, first.stderr
    assert "By seed: " in first.stdout
    parts = [folder / "seed-4", folder / "seed-5"]
    assert seeds.folders_in(folder) == parts
    configs = [json.loads((p / "config.json").read_text())["search"] for p in parts]
    assert [c["tasks"][0]["options"]["seed"] for c in configs] == ["search-4", "search-5"]
    html = (folder / "report.html").read_text()
    assert "2 seeds" in html
    assert "seed 5" in html

    factors = [(p / "factors.json").read_bytes() for p in parts]
    (parts[1] / "factors.json").unlink()
    log = parts[1] / "evaluations.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))  # as if killed in the second search
    again = run("--resume", str(folder))
    assert again.returncode == 0, again.stderr
    assert [(p / "factors.json").read_bytes() for p in parts] == factors
    assert again.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]

    refused = run(NEEDLE, *flags, "-o", str(folder))
    assert refused.returncode == 2
    assert "holds searches already" in refused.stderr


def test_force_leaves_nothing_of_the_seeds_before(tmp_path: Path) -> None:
    seeds.start(tmp_path, [spec(seed=s) for s in (1, 2, 3)])
    with pytest.raises(UsageError, match="holds searches already"):
        seeds.start(tmp_path, [spec()])
    assert [f for f, _ in seeds.start(tmp_path, [spec(seed=s) for s in (1, 2)], force=True)] == [
        tmp_path / "seed-1", tmp_path / "seed-2",
    ]  # fmt: skip
    assert seeds.folders_in(tmp_path) == [tmp_path / "seed-1", tmp_path / "seed-2"]
    assert seeds.start(tmp_path, [spec()], force=True)[0][0] == tmp_path
    assert seeds.folders_in(tmp_path) == []
    with pytest.raises(UsageError, match="holds a search already"):
        seeds.start(tmp_path, [spec(seed=s) for s in (1, 2)])


@pytest.mark.parametrize("name", ["config.json", "factors.json", "evaluations.jsonl", "report.html"])
def test_only_folders_of_ours_are_cleaned(tmp_path: Path, name: str) -> None:
    """Hugging Face's model folders hold a config.json, too."""
    (tmp_path / name).write_text('{"model_type": "llama"}')
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "thesis.txt").write_text("years of work")
    (tmp_path / "seed-2").write_text("a file")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for specs in ([spec()], [spec(seed=s) for s in (1, 3)]):
        with pytest.raises(UsageError, match=f"holds {name}, which is not of a search of ours"):
            seeds.start(tmp_path, specs, force=True)
    for command in (["demo"], ["search", NEEDLE, "--force"], ["search", NEEDLE, "--force", "--repeat", "2"]):
        result = CliRunner().invoke(app, [*command, "-o", str(tmp_path)])
        assert isinstance(result.exception, UsageError)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_seeds_keep_clear_of_what_is_not_theirs(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "thesis.txt").write_text("years of work")
    seeds.start(tmp_path, [spec(seed=s) for s in (1, 2)])  # beside it
    seeds.start(tmp_path, [spec(seed=3)], force=True)
    assert [p.name for p in (tmp_path / "seed-1").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "seed-2").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "seed-2").write_text("a file")
    with pytest.raises(UsageError, match="seed-2: is a file, expected a folder"):
        seeds.start(other, [spec(seed=s) for s in (1, 2)], force=True)
    assert [p.name for p in other.iterdir()] == ["seed-2"]
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        seeds.start(other / "seed-2", [spec()], force=True)


def test_any_number_of_seeds_has_its_colours(tmp_path: Path) -> None:
    outcome = run_search(spec(budget="8", controls=()))
    many = [replace(outcome, spec=outcome.spec.model_copy(update={"seed": s})) for s in range(9)]
    seeds.write_summary(tmp_path, many)
    assert "9 seeds" in (tmp_path / "report.html").read_text()


def test_seeds_are_pooled_by_item() -> None:
    """Of three items each: 1 of 3 and 2 of 3 make 3 of 6."""

    def of(values: Sequence[float]) -> Evaluation:
        rows = [Row((v,), (-1.0,)) for v in values]
        return Evaluation.of(KVRetrieval(keys=4, depths=[0.5]), rows)

    class Stub:
        def __init__(self, *values: float):
            self.tests = {"unscaled": [of([0.0, 0.0, 0.0])], "bezier ga": [of(values)]}

    both = seeds.pooled([Stub(1, 0, 0), Stub(1, 1, 0)])  # type: ignore[list-item]
    assert both["bezier ga"].value[:, 0].tolist() == [1, 0, 0, 1, 1, 0]
    assert both["bezier ga"].against(both["unscaled"]).mean == 0.5
