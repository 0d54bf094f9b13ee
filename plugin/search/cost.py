"""What a run costs, from its first items, and the numbers that fit a budget in time.

The unit is one set of scales on one item of every task of the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ropebend.durations import brief, short_duration
from ropebend.errors import UsageError
from ropebend.search.spec import MIN_TEST, UNIFORM_BUDGET, Budget, SearchSpec, TaskSpec

TEST_SHARE, FINALS_SHARE = 0.3, 0.15  # of a budget in time, at most
MIN_SETS = 20  # that a search worth its name measures
FEW = 2_500  # units that all four controls are worth it from (the standard search takes about as many)
SLACK = 1.1  # measuring may turn out that much slower than the first items were


class DoesNotFit(UsageError):
    """The budget in time is too short.

    budget  one that fits, as for --budget
    """

    def __init__(self, text: str, budget: str):
        super().__init__(text)
        self.budget = budget


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    n_tokens   prompt tokens of a unit
    seconds    that it takes all workers together
    methods    units to find the best extension method
    searches   units of each search that is limited by evaluations, by name
    finals     units of the finals, all searches together
    test       units of the judgement
    context    tokens that a sequence of the first task may reach
    spent      seconds of the run so far
    chat       whether prompts stand in the model's chat template
    """

    n_tokens: float
    seconds: float
    methods: int
    searches: dict[str, int]
    finals: int
    test: int
    context: int
    spent: float
    chat: bool = False

    @property
    def late(self) -> int:
        """Units of finals and judgement."""
        return self.finals + self.test


def cost_of(
    spec: SearchSpec, n_tokens: float, seconds: float, context: int, spent: float, methods: int = 0,
    judging: float | None = None,
) -> Cost:  # fmt: skip
    """The cost of a spec where a unit takes so many tokens and seconds; judging: see `fitted`."""
    budget = Budget.parse(spec.budget)
    searches = {}
    if budget.unit == "evaluations":
        share = int(budget.share(spec.n_shares).amount)
        searches = {
            s.name: spec.screen * (UNIFORM_BUDGET if s.genome == "uniform" and s.name != spec.label else share)
            for s in spec.searches()
        }
    return Cost(n_tokens, seconds, methods, searches, _finals(spec), _test(spec, judging), context, spent)


def rough_cost(spec: SearchSpec, n_tokens: int, seconds: float, context: int, spent: float) -> Cost:
    """The cost as far as one item of the first task tells, before anything is measured."""
    share = sum(_weight(t, spec.tasks[0]) for t in spec.tasks)
    return cost_of(spec, n_tokens * share, seconds * share, context, spent)


def units_to_come(budget: Budget, cost: Cost) -> float:
    """Units of the searches, which a budget in evaluations or tokens holds, of finals and judgement."""
    if budget.unit == "tokens":
        return budget.amount / max(cost.n_tokens, 1) + cost.late
    return cost.methods + sum(cost.searches.values()) + cost.late


def total_seconds(spec: SearchSpec, cost: Cost) -> float:
    """Seconds that are to come."""
    budget = Budget.parse(spec.budget)
    if budget.unit == "seconds":
        return max(0.0, budget.amount - cost.spent)
    return units_to_come(budget, cost) * cost.seconds


def total_units(spec: SearchSpec, n_tokens: float, seconds: float) -> float:
    """Units that a budget holds, about."""
    budget = Budget.parse(spec.budget)
    per_unit = {"seconds": seconds, "tokens": n_tokens}.get(budget.unit)
    return budget.amount / max(per_unit, 1e-9) if per_unit is not None else budget.amount * spec.screen


def _finals(spec: SearchSpec) -> int:
    units, known = 0, spec.screen
    for n_sets, n_items in spec.finals:
        units += n_sets * max(n_items - known, 0)
        known = max(known, n_items)
    return units * len(spec.searches()) + max(known - spec.screen, 0)  # and the unscaled model beside them


def _test(spec: SearchSpec, judging: float | None) -> int:
    n_judged = len(spec.searches()) + 1 + (spec.start is not None or spec.method == "auto")
    if judging is None:
        weights = [_weight(t, spec.tasks[0]) for t in (*spec.tasks, *spec.transfer)]
        judging = sum(weights) / sum(weights[: len(spec.tasks)])
    return math.ceil(n_judged * spec.test * judging)


def _weight(task: TaskSpec, first: TaskSpec) -> float:
    """What an item of a task costs beside one of the first task, as far as lengths tell."""
    mine, its = (t.options.get("length") for t in (task, first))
    return mine / its if isinstance(mine, int) and isinstance(its, int) else 1.0


def _least(spec: SearchSpec, judging: float | None) -> int:
    """Units below which there is no search worth its name."""
    full = len([s for s in spec.searches() if s.genome != "uniform" or s.name == spec.label])
    few = len(spec.searches()) - full
    return _finals(spec) + _test(spec, judging) + spec.screen * (MIN_SETS * full + MIN_SETS // 2 * few)


def fitted(spec: SearchSpec, seconds: float, spent: float, judging: float | None = None) -> SearchSpec:
    """The spec with its `open` numbers made as large as a budget in time allows, and no larger than they are.

    seconds  of a unit
    spent    seconds that are gone already
    judging  units that judging one set on one item takes: answers are decoded to their end there, and transfer tasks
             come on top; None: as the lengths of the prompts tell

    Raises DoesNotFit if the least is too much.
    """
    budget = Budget.parse(spec.budget)
    if budget.unit != "seconds":
        return spec.model_copy(update={"open": None})
    time = budget.amount - spent
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        found = _sized(spec, share * time / (SLACK * seconds), judging)
        if _least(found, judging) * seconds * SLACK <= time:
            return found.model_copy(update={"open": None})
    needed = spent + _least(found, judging) * seconds * SLACK
    fits = short_duration(needed)
    raise DoesNotFit(
        f"--budget {spec.budget} is too short: an item takes {brief(seconds)} seconds here, so that {spec.budget} hold "
        f"{max(0, int(time / seconds))} measurements, and the least that makes a search takes "
        f"{_least(found, judging)}; "
        f"--budget {fits} fits, and shorter prompts take less",
        fits,
    )


def _sized(spec: SearchSpec, units: float, judging: float | None) -> SearchSpec:
    """The open numbers for so many units in all."""
    change: dict[str, Any] = {}

    def so_far() -> SearchSpec:
        return spec.model_copy(update=change)

    if "controls" in (spec.open or ()):
        change["controls"] = spec.controls if units >= FEW else tuple(c for c in spec.controls if c == "uniform")
    if "test" in (spec.open or ()):
        per_item = _test(so_far().model_copy(update={"test": 1}), judging)
        change["test"] = _between(MIN_TEST, TEST_SHARE * units / per_item, spec.test)
    rest = units * (1 - FINALS_SHARE) - _test(so_far(), judging)
    if "screen" in (spec.open or ()):
        change["screen"] = _between(2, rest / (4 * MIN_SETS * so_far().n_shares), spec.screen)
    if "finals" in (spec.open or ()):
        screen = so_far().screen
        n_items = _between(2 * screen, units / 40, 24)
        each = FINALS_SHARE * units / len(so_far().searches())
        change["finals"] = ((_between(2, each / (n_items - screen), 24), n_items),)
    return so_far()


def _between(low: int, value: float, high: int) -> int:
    return max(low, min(int(value), high)) if high >= low else high
