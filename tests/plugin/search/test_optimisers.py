"""The search cores: reproducible, never ask twice, find what is there to be found."""

from collections.abc import Callable

import numpy as np
import pytest

from ropebend import RopebendError
from ropebend.search.curves import CURVES
from ropebend.search.genetic import GeneticSearch
from ropebend.search.optimiser import Optimiser
from ropebend.search.optimisers import OPTIMISERS, make_optimiser
from ropebend.search.space import Candidate, Space, make_space, uniform_grid
from ropebend.search.spec import Budget

UNIFORM = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


def bowl(target: list[float]) -> Callable[[Candidate], float]:
    return lambda candidate: -float(np.square(np.array(candidate.scales) - target).sum())


def run(optimiser: Optimiser, score: Callable[[Candidate], float], budget: int) -> list[Candidate]:
    asked = []
    while optimiser.n_evaluated < budget:
        candidates = optimiser.ask()
        if not candidates:
            break
        asked += candidates
        optimiser.tell([score(c) for c in candidates])
    return asked


def make(n_layer: int, optimiser: str = "ga", genome: str = "bezier", seed: int = 1) -> Optimiser:
    return make_optimiser(optimiser, make_space(genome, n_layer), seed=seed, uniform_scales=UNIFORM)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("genome", CURVES)
def test_same_seed_same_run_and_nothing_is_asked_twice(name: str, genome: str) -> None:
    score = bowl([1.0, 2.0, 3.0, 2.0, 1.0, 1.0])
    optimiser = make(6, name, genome)
    first = run(optimiser, score, 120)
    assert first == run(make(6, name, genome), score, 120)
    assert len(first) == optimiser.n_evaluated  # all that was measured counts, also what was measured before
    if name != "cma":  # which measures each generation on items of its own
        assert len({c.key for c in first}) == len(first)
    if genome != "uniform":
        assert run(make(6, name, genome, seed=2), score, 120) != first


def test_genomes_that_stand_for_known_scales_are_counted_and_not_asked_for() -> None:
    optimiser = make(6, "random", "uniform")
    asked = run(optimiser, bowl([1.5] * 6), 300)  # of the 501 uniform scales there are
    assert len(asked) == optimiser.n_evaluated >= 300
    assert optimiser.n_repeated > 50


@pytest.mark.parametrize("name", ["ga", "cma"])
def test_it_finds_a_curve_and_beats_every_uniform_scale_and_random_draws(name: str) -> None:
    target = [1.0, 1.0, 1.2, 1.6, 2.2, 2.8, 3.2, 3.4]
    optimiser, lot = make(8, name, seed=5), make(8, "random", seed=5)
    run(optimiser, bowl(target), 400)
    run(lot, bowl(target), 400)
    best_uniform = max(f for (scales, *_), f in optimiser.scores.items() if len(set(scales)) == 1)
    assert optimiser.best.score > best_uniform / 10  # negative: a tenth of the distance
    assert optimiser.best.score > lot.best.score
    assert np.abs(np.array(optimiser.best.candidate.scales) - target).max() < 0.35


@pytest.mark.parametrize(
    ("genome", "target"),
    [
        ("line", [1.5, 2.0, 2.5, 3.0]),
        ("line", [1.0, 1.0, 2.0, 3.0]),
        ("free", [1.0, 3.0, 1.2, 2.5]),
        ("uniform", [2.2] * 4),
    ],
)
def test_each_genome_reaches_what_it_can_stand_for(genome: str, target: list[float]) -> None:
    optimiser = make(4, "ga", genome)
    run(optimiser, bowl(target), 600)
    assert np.abs(np.array(optimiser.best.candidate.scales) - target).max() <= 0.12


def test_a_line_is_a_line_and_a_uniform_scale_is_one() -> None:
    for genome in ("line", "uniform"):
        for candidate in run(make(5, "ga", genome), bowl([3.0, 1.0, 2.0, 1.0, 1.0]), 60):
            values = np.array(candidate.scales)
            inner = values[(values > 1.0) & (values < 6.0)]
            assert (np.abs(np.diff(inner, 2)) < 0.03).all()
            assert candidate.control_points is not None
            assert genome == "line" or len(set(candidate.scales)) == 1


def test_it_starts_with_all_ones_and_uniform_scales_then_around_the_best_of_them() -> None:
    optimiser = make_optimiser("ga", make_space("bezier", 6), uniform_scales=(1.5, 2.0, 3.0))
    first = optimiser.ask()
    assert [c.scales for c in first] == [(s,) * 6 for s in (1.0, 1.5, 2.0, 3.0)]
    optimiser.tell([bowl([2.0] * 6)(c) for c in first])
    assert {"uniform", "ramp", "bump", "dip"} <= {c.origin.split()[0] for c in optimiser.ask()}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_it_starts_from_given_scales_and_stretches_them(optimiser: str) -> None:
    start = (1.0, 1.8, 2.6, 2.4, 1.6, 1.2)
    o = make_optimiser(optimiser, make_space("bezier", 6), uniform_scales=(1.5, 2.0), start=Candidate(start))
    first = o.ask()
    assert first[0].scales == (1.0,) * 6
    assert np.abs(np.subtract(first[1].scales, start)).max() < 0.1
    assert [c.origin for c in first[2:]] == [f"start, scale × {k}" for k in ("0.8", "0.9", "1.1", "1.25")]
    o.tell([bowl([2.0, *start[1:]])(c) for c in first])
    stretched = [c for c in o.ask() if c.origin.startswith("start stretched")]
    assert [c.scales[2] > first[1].scales[2] for c in stretched] == [False, True, True]
    assert o.best.candidate is first[1]


@pytest.mark.parametrize("genome", CURVES)
def test_the_genome_nearest_to_its_own_scales_stands_for_them(genome: str) -> None:
    rng = np.random.default_rng(3)
    for n_layer in (1, 2, 6, 32):
        space = make_space(genome, n_layer, factor=2.0, factor_range=(1.0, 4.0))
        for _ in range(5):
            wanted = space.express(space.newcomer(rng))
            for found, value in zip(space.express(space.near(wanted)).scales, wanted.scales, strict=True):
                assert found == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize("genome", CURVES)
def test_scales_stay_in_bounds_on_the_grid(genome: str) -> None:
    optimiser = make_optimiser("ga", make_space(genome, 6, max_scale=3.0), uniform_scales=UNIFORM)
    run(optimiser, bowl([9.0, 0.0, 9.0, 0.0, 9.0, 0.0]), 200)
    scales = np.array([s for s, *_ in optimiser.scores])
    assert scales.min() >= 1.0
    assert scales.max() <= 3.0
    assert np.array_equal(scales, scales.round(2))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_factor_is_searched_along(name: str) -> None:
    space = make_space("line", 4, factor=2.0, factor_range=(1.0, 8.0))

    def score(c: Candidate) -> float:
        return -abs(np.log(c.factor / 5.0)) - 0.1 * abs(c.scales[0] - 1.0)

    optimiser = make_optimiser(name, space, seed=1, uniform_scales=(1.5,))
    asked = run(optimiser, score, 300)
    assert asked[0].factor == 2.0
    assert all(1.0 <= c.factor <= 8.0 for c in asked)
    assert optimiser.best.candidate.factor == pytest.approx(5.0, rel=0.1)


def test_the_best_never_gets_worse() -> None:
    ga = make(6, seed=2)
    best = -np.inf
    for _ in range(12):
        ga.tell([bowl([1.0, 3.0, 1.0, 1.0, 2.0, 1.0])(c) for c in ga.ask()])
        assert ga.best.score >= best
        best = ga.best.score
        assert [s.score for s in ga.top(9)] == sorted((s.score for s in ga.top(9)), reverse=True)


def test_a_short_tell_keeps_what_was_measured() -> None:
    ga = make(4)
    ga.ask()
    ga.tell([0.5, 0.25])
    assert ga.n_evaluated == 2
    assert ga.best.score == 0.5
    with pytest.raises(RopebendError, match="nothing has been measured"):
        _ = make(4).best


def test_ask_before_tell_is_a_mistake() -> None:
    ga = make(4)
    ga.ask()
    with pytest.raises(RuntimeError, match="tell the scores"):
        ga.ask()


@pytest.mark.parametrize("n_layer", [1, 2])
@pytest.mark.parametrize("genome", CURVES)
def test_small_models_have_a_search_too(n_layer: int, genome: str) -> None:
    optimiser = make(n_layer, "ga", genome)
    run(optimiser, bowl([2.0] * n_layer), 60)
    assert optimiser.best.candidate.scales == pytest.approx((2.0,) * n_layer, abs=0.1)


def test_mistakes_are_named() -> None:
    for call, message in (
        (lambda: make_space("x", 4), "genome: expected one of bezier"),
        (lambda: make_optimiser("x", make_space("line", 4)), "optimiser: expected one of ga"),
        (lambda: GeneticSearch(make_space("line", 4), population=1), "population: expected 2"),
        (lambda: make_space("line", 4, factor=3.0, factor_range=(4.0, 8.0)), "factor: expected 1"),
    ):
        with pytest.raises(RopebendError, match=message):
            call()


def test_newcomers_stay_in_bounds() -> None:
    for kind in CURVES:
        space: Space = make_space(kind, 7, numbers="both")
        rng = np.random.default_rng(0)
        for _ in range(50):
            genes = space.newcomer(rng)
            assert (genes >= space.low).all()
            assert (genes <= space.high).all()


def test_the_uniform_grid_reaches_past_the_stretch() -> None:
    for stretch in (0.5, 1.0, 2.0, 4.0, 16.0):
        grid = uniform_grid(stretch)
        assert grid[:3] == (1.03, 1.06, 1.1)
        assert grid[-1] >= 1.3 * stretch
        assert (np.diff(grid) > 0).all()
        assert (np.diff(grid) / grid[:-1] < 0.16).all()


def test_budgets() -> None:
    assert Budget.parse("300") == Budget(300, "evaluations")
    assert Budget.parse("5Mtok") == Budget(5e6, "tokens")
    assert Budget.parse("1.5h") == Budget(5400, "seconds")
    assert Budget.parse("90 s").share(3) == Budget(30, "seconds")
    assert Budget.parse("100").share(3) == Budget(33, "evaluations")
    for bad in ("", "0", "1.5", "10x", "-3", "m"):
        with pytest.raises(RopebendError, match="budget: expected evaluations"):
            Budget.parse(bad)


def both(scales: list[float], attn: list[float]) -> Callable[[Candidate], float]:
    return lambda c: (
        -float(np.square(np.array(c.scales) - scales).sum() + np.square(np.array(c.number("attn")) - attn).sum())
    )


@pytest.mark.parametrize("name", ["ga", "cma"])
def test_both_numbers_are_searched_together(name: str) -> None:
    target = [1.0, 1.6, 1.6, 1.2, 1.0, 1.0], [1.1, 1.0, 0.9, 1.2, 1.3, 1.0]
    optimiser = make_optimiser(name, make_space("free", 6, numbers="both"), seed=2, uniform_scales=UNIFORM)
    asked = run(optimiser, both(*target), 800)
    assert {"uniform"} < {c.origin.split()[0] for c in asked}
    assert np.abs(np.array(optimiser.best.candidate.scales) - target[0]).max() < 0.25
    assert np.abs(np.array(optimiser.best.candidate.number("attn")) - target[1]).max() < 0.15


def test_one_number_leaves_the_other_alone() -> None:
    for candidate in run(make(6), bowl([1.5] * 6), 60):
        assert candidate.attn is None
    space = make_space("bezier", 6, numbers="attn")
    for candidate in run(make_optimiser("cma", space, uniform_scales=UNIFORM), both([1.0] * 6, [1.2] * 6), 60):
        assert set(candidate.scales) == {1.0}


def test_its_steps_are_those_that_the_model_bears() -> None:
    def fragile(c: Candidate) -> float:  # as a trained model inside its window: the least stretch costs
        return 1.0 - 10 * float(np.square(np.array(c.scales) - 1.0).mean())

    def stretched(c: Candidate) -> float:  # beyond it
        return 1.0 - 0.1 * float(np.square(np.array(c.scales) - 2.5).mean())

    spreads = []
    for score in (fragile, stretched):
        optimiser = make(6, "cma", "knots")
        for _ in range(2):
            optimiser.tell([score(c) for c in optimiser.ask()])
        spreads.append(np.std([c.scales for c in optimiser.ask()], axis=0).mean())
    assert spreads[0] < 0.06 < 0.2 < spreads[1]


@pytest.mark.parametrize("number", ["scale", "both"])
def test_its_sweep_tries_ramps_and_bumps_where_there_is_little_to_lose(number: str) -> None:
    space = make_space("knots", 6, numbers=number)
    for score, tried in ((0.1, True), (0.9, False)):
        optimiser = make_optimiser("cma", space, seed=1, uniform_scales=UNIFORM)
        optimiser.tell([score for _ in optimiser.ask()])
        shapes = {c.origin: c.scales for c in optimiser.ask()}
        assert {f"bump at {i}" for i in range(6)} <= shapes.keys() or not tried
        assert ("bump at 1" in shapes) == ("ramp up" in shapes) == tried
        if tried:
            assert shapes["bump at 1"] == (1.0, 2.0, 1.0, 1.0, 1.0, 1.0)


def test_each_generation_has_items_of_its_own() -> None:
    optimiser = make(6, "cma")
    seen = []
    for _ in range(5):
        seen.append(optimiser.items(3, 12))
        optimiser.tell([bowl([1.5] * 6)(c) for c in optimiser.ask()])
    assert seen == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert optimiser.items(3, 12) == [0, 1, 2]
    assert make(6, "ga").items(3, 12) == [0, 1, 2]


def test_what_cma_ends_in_is_the_centre_not_the_luckiest_sample() -> None:
    rng = np.random.default_rng(4)
    optimiser = make(6, "cma", "free")
    target = [1.2, 1.8, 1.5, 1.2, 1.6, 1.4]
    run(optimiser, lambda c: bowl(target)(c) + float(rng.normal(0, 0.3)), 600)
    assert optimiser.best.candidate.origin.startswith("centre")
    assert {c.candidate.origin.split()[0] for c in optimiser.top(3)} == {"centre", "mean"}
    middle = next(c.candidate for c in optimiser.top(3) if c.candidate.origin.startswith("mean"))
    assert np.abs(np.array(middle.scales) - target).mean() < 0.2
