"""The search core: reproducible, never measures twice, finds what is there to be found."""

import numpy as np
import pytest

from ropebend import RopebendError
from ropebend.search.ga import Candidate, GeneticSearch
from ropebend.search.run import depth_weights, uniform_grid


def bowl(target: list[float]):  # type: ignore[no-untyped-def]
    def fitness(candidate: Candidate) -> float:
        return -float(np.square(np.array(candidate.scales) - target).sum())

    return fitness


def run(ga: GeneticSearch, fitness, budget: int) -> list[tuple[float, ...]]:  # type: ignore[no-untyped-def]
    asked = []
    while ga.n_evaluated < budget:
        candidates = ga.ask()
        asked += [c.scales for c in candidates]
        ga.tell([fitness(c) for c in candidates])
    return asked


def test_same_seed_same_run_another_seed_another() -> None:
    fitness = bowl([1.0, 2.0, 3.0, 2.0, 1.0, 1.0])
    runs = [run(GeneticSearch(6, seed=seed), fitness, 150) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_no_scales_are_asked_twice() -> None:
    asked = run(GeneticSearch(4, seed=3), bowl([1.0, 1.5, 2.0, 2.5]), 300)
    assert len(asked) == len(set(asked))


def test_it_finds_a_curve_and_beats_every_uniform_scale() -> None:
    ga = GeneticSearch(8, seed=5)
    target = [1.0, 1.0, 1.2, 1.6, 2.2, 2.8, 3.2, 3.4]
    run(ga, bowl(target), 400)
    best_uniform = max(f for scales, f in ga.memo.items() if len(set(scales)) == 1)
    assert ga.best.fitness > best_uniform / 10  # negative: a tenth of the distance
    assert np.abs(np.array(ga.best.scales) - target).max() < 0.35


def test_it_starts_with_all_ones_and_uniform_scales() -> None:
    first = GeneticSearch(5, uniform_scales=(1.5, 2.0)).ask()
    assert [c.scales for c in first] == [(1.0,) * 5, (1.5,) * 5, (2.0,) * 5]


def test_the_second_generation_goes_out_from_the_best_uniform_scale() -> None:
    ga = GeneticSearch(6, uniform_scales=(1.5, 2.0, 3.0))
    ga.tell([bowl([2.0] * 6)(c) for c in ga.ask()])
    origins = {c.origin.split()[0] for c in ga.ask()}
    assert {"uniform", "ramp", "bump", "dip"} <= origins


def test_scales_and_genes_stay_in_bounds() -> None:
    ga = GeneticSearch(6, seed=0, max_scale=3.0)
    run(ga, bowl([9.0, 0.0, 9.0, 0.0, 9.0, 0.0]), 200)
    scales = np.array(list(ga.memo))
    assert scales.min() >= 1.0
    assert scales.max() <= 3.0
    assert np.array_equal(scales, scales.round(2))


def test_elites_survive() -> None:
    ga = GeneticSearch(6, seed=2)
    best = -np.inf
    for _ in range(12):
        ga.tell([bowl([1.0, 3.0, 1.0, 1.0, 2.0, 1.0])(c) for c in ga.ask()])
        assert ga.best.fitness >= best
        best = ga.best.fitness
        assert len(ga.top(100)) <= max(16, ga.n_evaluated if ga.generation < 3 else 16)


def test_a_short_tell_keeps_what_was_measured() -> None:
    ga = GeneticSearch(4)
    ga.ask()
    ga.tell([0.5, 0.25])
    assert ga.n_evaluated == 2
    assert ga.best.fitness == 0.5
    with pytest.raises(RopebendError, match="nothing has been measured"):
        _ = GeneticSearch(4).best


def test_ask_before_tell_is_a_mistake() -> None:
    ga = GeneticSearch(4)
    ga.ask()
    with pytest.raises(RuntimeError, match="tell the fitness"):
        ga.ask()


def test_single_layer_models_have_a_search_too() -> None:
    ga = GeneticSearch(2, seed=1)
    run(ga, bowl([1.0, 2.0]), 60)
    assert ga.best.scales == pytest.approx((1.0, 2.0), abs=0.1)


def test_depth_weights() -> None:
    assert depth_weights(None, 4).tolist() == [0.25] * 4
    assert depth_weights([1, 3], 2).tolist() == [0.25, 0.75]
    for bad in ([1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(RopebendError, match="depth weights"):
            depth_weights(bad, 2)


def test_the_uniform_grid_reaches_past_the_stretch() -> None:
    for stretch in (0.5, 1.0, 2.0, 4.0, 16.0):
        grid = uniform_grid(stretch)
        assert grid[0] == 1.1
        assert grid[-1] >= 1.3 * stretch
        assert (np.diff(grid) > 0).all()
        assert (np.diff(grid) / grid[:-1] < 0.16).all()
