"""The arithmetic of a search: objective, measurer, race, verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_search import spec

from ropebend import LayerScaling, RopebendError
from ropebend.evaluate import Evaluation, Row
from ropebend.search import run_search, verdict
from ropebend.search.measure import Measurer
from ropebend.search.objective import SOFT_SHARE, Objective, Term, depth_weights
from ropebend.search.optimiser import Scored
from ropebend.search.optimisers import race
from ropebend.search.space import Candidate
from ropebend.search.worker import Done, Job
from ropebend.tasks.kv import KVRetrieval
from ropebend.tasks.text import Perplexity


def rows(*values: Sequence[float]) -> list[Row]:
    return [Row(tuple(v), tuple(-1e9 for _ in v)) for v in values]


def test_scores_weigh_depths_and_the_worst_one() -> None:
    task = KVRetrieval(keys=2, depths=[0.0, 1.0])
    got = rows([1, 0], [1, 1])
    hard = 1 - SOFT_SHARE
    assert Term(task, worst=0.0).score(got) == pytest.approx(hard * 0.75)
    assert Term(task, worst=0.5).score(got) == pytest.approx(hard * (0.5 * 0.75 + 0.5 * 0.5))
    assert Term(task, depth_weights=(3, 1), worst=0.0).score(got) == pytest.approx(hard * 0.875)
    soft = Term(task, worst=0.0).score([Row((0.0, 0.0), (0.0, 0.0))])
    assert soft == pytest.approx(SOFT_SHARE)
    assert Term(task, worst=0.0).score([Row((1.0, 1.0), (0.0, 0.0))]) == pytest.approx(1.0)


def test_constraints_cost_only_when_broken(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x" * 100)
    text = Term(Perplexity(text=tmp_path / "t.txt", length=8), keep=0.05)
    kv = Term(KVRetrieval(keys=2, depths=[0.0, 1.0]), worst=0.0, weight=2.0)
    objective = Objective((kv, text))
    base = [rows([0, 0]), rows([-2.0])]
    hard = 1 - SOFT_SHARE
    assert objective.score([rows([1, 1]), rows([-2.0 - np.log(1.05)])], base) == pytest.approx(2.0 * hard)
    assert objective.score([rows([1, 1]), rows([-2.0 - np.log(1.05) - 0.1])], base) == pytest.approx(2.0 * hard - 1.0)
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
    assert measurer.n_missing(a, range(23)) == 1
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
