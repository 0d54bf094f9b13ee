"""A search on a model: the main one and its controls under the same rules, finals, and the judgement on test items."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ropebend.errors import RopebendError
from ropebend.evaluate import Evaluation
from ropebend.model import check_supported
from ropebend.model_info import ModelInfo
from ropebend.scaling import LayerScaling
from ropebend.search.measure import Measurer
from ropebend.search.objective import Objective
from ropebend.search.optimisers import Optimiser, make_optimiser, race
from ropebend.search.outcome import Cost, Found, Generation, Listener, Outcome
from ropebend.search.space import USUAL_TOP, Candidate, make_space, uniform_grid
from ropebend.search.spec import UNIFORM_BUDGET, Budget, SearchSpec
from ropebend.search.worker import Bench
from ropebend.search.workers import open_executor
from ropebend.tasks.task import Task

N_KEPT = 24  # candidates of a search that are kept for the report, at least


def run_search(spec: SearchSpec, log: Path | None = None, listener: Listener | None = None) -> Outcome:
    """Search as the spec says.  What `log` holds counts as measured, so a killed run goes on where it was.

    Ctrl-C ends it early with what is there.  Raises RopebendError if the model cannot take scales, if `spec.start` does
    not fit it, or if a task has too few items.
    """
    listener = listener or Listener()
    info = ModelInfo.read(spec.model)
    if spec.start is not None and (len(spec.start) != info.n_layer or min(spec.start) < 1):
        raise RopebendError(f"start: expected {info.n_layer} scales, none below 1, got {list(spec.start)}")
    objective = spec.objective()
    tasks = (*(t.task for t in objective.terms), *(t.make() for t in spec.transfer))
    with open_measurer(spec, info, objective, tasks, spec.n_search + spec.test, log, listener) as measurer:
        return _Run(spec, info, tasks, measurer, listener).go()


@contextmanager
def open_measurer(
    spec: SearchSpec, info: ModelInfo, objective: Objective, tasks: Sequence[Task], n_items: int, log: Path | None,
    listener: Listener | None = None,
) -> Iterator[Measurer]:  # fmt: skip
    """What measures as the spec says, on n_items of each task (those of the objective first).

    Raises RopebendError if the model cannot take scales.
    """
    base = LayerScaling((1.0,) * info.n_layer, info.architecture, spec.rope)
    check_supported(info, base)
    base = base.with_original_context(info.n_ctx_train)
    bench = Bench(spec.model, tuple((t, n_items) for t in tasks), spec.runtime)
    note = (listener or Listener()).note
    with (
        closing(open_executor(bench, spec.executor, spec.workers, spec.ray_address, note)) as executor,
        closing(Measurer(objective, base, executor, log)) as measurer,
    ):
        yield measurer


class _Run:
    def __init__(
        self, spec: SearchSpec, info: ModelInfo, tasks: tuple[Task, ...], measurer: Measurer, listener: Listener
    ):
        self.spec, self.info, self.tasks = spec, info, tasks
        self.measurer, self.listener = measurer, listener
        self.found: dict[str, Found] = {}
        self.tests: dict[str, list[Evaluation]] = {}
        self.started = time.monotonic()
        self.searches_end = float("inf")

    def go(self) -> Outcome:
        cost = self._calibrate()
        interrupted = False
        optimisers: dict[str, Optimiser] = {}
        stretch = cost.context / self.info.n_ctx_train / self.spec.factor
        try:
            for name, genome, optimiser in self.spec.searches():
                optimisers[name] = self._optimiser(genome, optimiser, stretch)
                self._search(name, optimisers[name])
            for name, optimiser_ in optimisers.items():
                self._finals(self.found[name], optimiser_)
            self._test()
        except KeyboardInterrupt:
            interrupted = True
            for name, o in optimisers.items():
                found = self.found.setdefault(name, Found(name))
                if not found.ranked and o.n_evaluated:
                    found.ranked, found.n_items = o.top(N_KEPT), self.spec.screen
            self.found = {name: f for name, f in self.found.items() if f.ranked}
            if not self.found:
                raise
        outcome = Outcome(
            self.spec, self.info, self.tasks, self.found, self.tests, self.measurer.base, cost.context,
            self.measurer.n_tokens, time.monotonic() - self.started, interrupted,
        )  # fmt: skip
        return replace(outcome, layers=self.measurer.scaling(outcome.main.best.candidate))

    def _calibrate(self) -> Cost:
        """Time the first item (after one more that warms everything up) and say what the whole will cost."""
        spec, measurer = self.spec, self.measurer
        indices = range(len(self.measurer.objective.terms))
        measurer.rows([None], indices, range(1))
        tokens, measured, before = measurer.n_tokens, measurer.n_measured, time.monotonic()
        measurer.rows([None], indices, range(1, 2))
        seconds = time.monotonic() - before if measurer.n_measured > measured else 0.0
        tokens = measurer.n_tokens - tokens
        budget = Budget.parse(spec.budget)
        n_searches = len(spec.searches())
        n_search = None
        if budget.unit == "evaluations":
            n_search = int(budget.amount) * spec.screen
            n_search += UNIFORM_BUDGET * spec.screen if "uniform" in spec.controls else 0
        n_judged = n_searches + 1 + (spec.start is not None)
        n_late = n_searches * sum(n * k for n, k in spec.finals) + n_judged * spec.test * len(self.tasks)
        cost = Cost(tokens, seconds / measurer.executor.n_workers, n_search, n_late, measurer.lengths[0])
        if budget.unit == "seconds":  # finals and tests have their part of it, but never more than half
            self.searches_end = time.monotonic() + max(budget.amount - cost.late_seconds, budget.amount / 2)
        self.listener.started(cost)
        return cost

    def _optimiser(self, genome: str, name: str, stretch: float) -> Optimiser:
        spec = self.spec
        grid = uniform_grid(stretch)
        space = make_space(
            genome, self.info.n_layer, max_scale=max(USUAL_TOP, grid[-1], *(spec.start or ())), factor=spec.factor,
            factor_range=spec.factor_range,
        )  # fmt: skip
        return make_optimiser(
            name, space, seed=spec.seed, population=spec.population, uniform_scales=grid, start=spec.start
        )

    def _search(self, name: str, optimiser: Optimiser) -> None:
        """Generations until this search's share of the budget is spent."""
        spec, measurer = self.spec, self.measurer
        found = self.found[name] = Found(name)
        budget = Budget.parse(spec.budget)
        if budget.unit == "seconds":  # an equal part of what the ones before have left
            n_to_come = len(spec.searches()) - len(self.found) + 1
            budget = Budget((self.searches_end - time.monotonic()) / n_to_come, "seconds")
        else:
            budget = budget.share(len([s for s in spec.searches() if s[1] != "uniform"]) or 1)
        limit = float("inf")
        if optimiser.space.name == "uniform" and name != spec.label:
            limit = UNIFORM_BUDGET
        elif budget.unit == "evaluations":
            limit = budget.amount
        began, tokens = time.monotonic(), measurer.n_tokens
        self.listener.stage(name, int(limit) * spec.screen if limit < float("inf") else 0)
        while optimiser.n_evaluated < limit:
            spent = {"seconds": time.monotonic() - began, "tokens": measurer.n_tokens - tokens}
            if optimiser.n_evaluated and spent.get(budget.unit, 0) >= budget.amount:
                break  # not before the first generation: there is always something to choose from
            candidates = optimiser.ask()
            if not candidates:
                break
            if limit < float("inf"):
                candidates = candidates[: int(limit) - optimiser.n_evaluated]
            try:
                scores = measurer.scores(candidates, spec.screen, lambda n: self.listener.items(name, n))
            except KeyboardInterrupt:
                # results count in the order in which they were asked: the first ones that are complete
                complete = []
                for candidate in candidates:
                    if not measurer.is_known(candidate, spec.screen):
                        break
                    complete.append(candidate)
                optimiser.tell(measurer.scores(complete, spec.screen) if complete else [])
                found.n_evaluated = optimiser.n_evaluated
                raise
            optimiser.tell(scores)
            found.n_evaluated, found.n_repeated = optimiser.n_evaluated, optimiser.n_repeated
            state = Generation(
                name, optimiser.generation, optimiser.n_evaluated, optimiser.best.score, float(np.mean(scores))
            )
            found.history.append(state)
            self.listener.generation(state)

    def _finals(self, found: Found, optimiser: Optimiser) -> None:
        """Race the best of a search on more items."""
        stage, finals = f"finals: {found.name}", self.spec.finals

        def score(candidates: Sequence[Candidate], n_items: int) -> list[float]:
            self.listener.stage(stage, len(candidates) * n_items)
            return self.measurer.scores(candidates, n_items, lambda n: self.listener.items(stage, n))

        found.ranked = race(optimiser.top(max([N_KEPT, *(n for n, _ in finals)])), finals, score)
        found.n_items = finals[-1][1] if finals else self.spec.screen

    def _test(self) -> None:
        items = range(self.spec.n_search, self.spec.n_search + self.spec.test)
        judged: dict[str, Candidate | None] = {"unscaled": None}
        if self.spec.start is not None:
            judged["start"] = Candidate(self.spec.start, self.spec.factor)
        judged |= {name: f.best.candidate for name, f in self.found.items()}
        candidates = [*judged.values()]
        self.listener.stage("test", len(set(candidates)) * len(self.tasks) * len(items))
        rows = self.measurer.rows(
            candidates, range(len(self.tasks)), items, full=True, on_item=lambda n: self.listener.items("test", n)
        )
        for name, by_task in zip(judged, rows, strict=True):
            self.tests[name] = [Evaluation.of(t, r) for t, r in zip(self.tasks, by_task, strict=True)]
