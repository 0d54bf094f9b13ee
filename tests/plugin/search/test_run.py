"""Whole searches on the bundled model: resumed, in parallel, with constraints, with every method; the same factors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_search import KV, NEEDLE, spec

from ropebend import LayerScaling, RopebendError
from ropebend.runtime import Runtime
from ropebend.search import Listener, TaskSpec, run_search, verdict
from ropebend.search import folder as run_folder
from ropebend.search.outcome import Generation
from ropebend.search.verdict import rival

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


BOTH = {"numbers": "both", "genome": "knots", "optimiser": "cma", "population": None, "budget": "60"}


def test_both_numbers_are_found_written_and_judged_beside_the_scales_alone(tmp_path: Path) -> None:
    controls = ("uniform", "attn", "scales")
    outcome = run_folder.run_in(tmp_path, run_folder.start(tmp_path, spec(**BOTH, controls=controls)))
    assert list(outcome.tests) == ["unscaled", *controls, "knots cma"]
    found = {name: f.best.candidate for name, f in outcome.found.items()}
    assert found["scales"].attn is None
    assert set(found["attn"].scales) == {1.0}
    assert found["uniform"].is_uniform
    written = LayerScaling.load(tmp_path / "factors.json")
    assert written.layer_attn_factor == outcome.layers.layer_attn_factor == found["knots cma"].number("attn")
    best = written.provenance["scores"]["best_uniform"]
    assert best == {name: found["uniform"].number(name)[0] for name in ("scale", "attn")}
    again, _ = run_folder.resume(tmp_path)
    assert run_folder.run_in(tmp_path, again).layers == outcome.layers


def test_beyond_the_trained_length_it_begins_from_the_best_method(tmp_path: Path) -> None:
    long = TaskSpec(name="kv", options={"keys": 48, "depths": [0.0, 1.0]})
    wanted = spec(**{**BOTH, "budget": "8"}, tasks=(long,), method="auto", controls=("scales",))
    whole = run_folder.run_in(tmp_path / "whole", run_folder.start(tmp_path / "whole", wanted))
    lines = (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines(keepends=True)
    assert {"ntk", "yarn"} <= {json.loads(line).get("method") for line in lines}
    assert list(whole.tests) == ["unscaled", "start", "scales", "knots cma"]
    begin = whole.spec.begin
    assert begin is not None
    assert begin.is_uniform
    assert begin.scales[0] > 1
    assert whole.layers.rope.method == whole.spec.method != "auto"
    attn = round(begin.number("attn")[0], 2)
    assert {round(v, 2) for v in whole.found["scales"].best.candidate.number("attn")} == {attn}  # the base's own
    assert rival(whole)[0] == "start"  # no uniform control: what it began from is to be beaten, not the unscaled model
    assert "what the search began from: " in verdict(whole)
    for n in (5, len(lines) // 2, len(lines)):
        part = tmp_path / str(n)
        run_folder.start(part, wanted)
        (part / "evaluations.jsonl").write_text("".join(lines[:n]))
        again, _ = run_folder.resume(part)
        outcome = run_folder.run_in(part, again)
        assert outcome.layers.layer_scale == whole.layers.layer_scale
        assert outcome.layers.rope == whole.layers.rope
        assert outcome.n_tokens == whole.n_tokens


def test_within_the_trained_length_there_is_no_method() -> None:
    outcome = run_search(spec(method="auto", budget="4"))
    assert (outcome.spec.method, outcome.spec.begin) == ("none", None)
    assert "start" not in outcome.tests


def test_an_older_run_folder_moves_the_scales_alone(tmp_path: Path) -> None:
    run_folder.start(tmp_path, spec())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["search"]["numbers"], config["search"]["min_scale"], config["search"]["start_attn"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run_folder.resume(tmp_path)[0] == spec(model=config["search"]["model"])


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


def test_a_task_without_depths_has_a_report(tmp_path: Path) -> None:
    task = TaskSpec(name="longeval", options={"length": 400, "protocol": "published"})
    started = run_folder.start(tmp_path, spec(tasks=(task,), budget="2", controls=(), finals=((1, 1),), test=1))
    run_folder.run_in(tmp_path, started)
    assert "data:image/png" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "accuracy.png").exists()
