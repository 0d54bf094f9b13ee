"""A search on a model: the main one and its controls under the same rules, finals, and the judgement on test items."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ropebend.errors import RopebendError
from ropebend.evaluate import Evaluation, RetrievalEvaluation, Row
from ropebend.evaluate.diagnosis import other_size, recites
from ropebend.evaluate.pace import Pace
from ropebend.model import check_supported
from ropebend.model_info import ModelInfo
from ropebend.scaling import LayerScaling
from ropebend.search.cost import Cost, cost_of, fitted, rough_cost, total_seconds, total_units, units_to_come
from ropebend.search.measure import Measurer
from ropebend.search.objective import Objective
from ropebend.search.optimiser import Optimiser
from ropebend.search.optimisers import make_optimiser, race
from ropebend.search.outcome import START, UNSCALED, Found, Generation, Listener, Outcome, Progress
from ropebend.search.space import USUAL_TOP, Candidate, make_space, uniform_grid
from ropebend.search.spec import MIN_TEST, UNIFORM_BUDGET, Budget, SearchPlan, SearchSpec
from ropebend.search.stretches import SHARE, Base, Comparison, in_words
from ropebend.search.worker import Bench, Computed
from ropebend.search.workers import open_executor
from ropebend.tasks.task import RetrievalTask, Task

N_KEPT = 24  # candidates of a search that are kept for the report, at least
LONG_ITEM = 10.0  # seconds
FORESEEN_IN = 4.0  # seconds of prompt tokens that tell what an item takes
BLIND = 0.05  # nats per token: less is no slope to climb
FIRST, METHODS = "first items", "methods"


def run_search(
    spec: SearchSpec, log: Path | None = None, listener: Listener | None = None,
    settle: Callable[[SearchSpec], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """Search as the spec says.  What `log` holds counts as measured, so a killed run goes on where it was.

    log     a file of JSON lines, one an item measured, which is appended to; None: no log
    settle  is called with the spec once its `open` numbers are fixed

    Ctrl-C ends it early with what is there; where no candidate is measured yet, KeyboardInterrupt is raised.

    Raises RopebendError if the model cannot be read or cannot take scales, if `spec.start` does not fit it, if a task
    has too few items, or if the log cannot be read or written; UsageError for a budget, task or option that cannot be;
    DoesNotFit, a UsageError, if a budget in time is too short.
    """
    listener = listener or Listener()
    started = time.monotonic()
    info = ModelInfo.read(spec.model)
    if spec.start is not None and (len(spec.start) != info.n_layer or min(spec.start) < spec.min_scale):
        raise RopebendError(
            f"start: expected {info.n_layer} scales, none below {spec.min_scale:g}, got {list(spec.start)}"
        )
    objective = spec.objective()
    tasks = (*(t.task for t in objective.terms), *(t.make() for t in spec.transfer))
    n_items = spec.n_search + spec.test
    with open_measurer(spec, info, objective, tasks, n_items, log, listener, started) as measurer:
        return _Run(spec, info, tasks, measurer, listener, settle).go()


@contextmanager
def open_measurer(
    spec: SearchSpec, info: ModelInfo, objective: Objective, tasks: Sequence[Task], n_items: int, log: Path | None,
    listener: Listener | None = None, started: float | None = None,
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
        closing(Measurer(objective, base, executor, log, started)) as measurer,
    ):
        yield measurer


class _Run:
    def __init__(
        self, spec: SearchSpec, info: ModelInfo, tasks: tuple[Task, ...], measurer: Measurer, listener: Listener,
        settle: Callable[[SearchSpec], None],
    ):  # fmt: skip
        self.spec, self.info, self.tasks = spec, info, tasks
        self.measurer, self.listener, self.settle = measurer, listener, settle
        self.found: dict[str, Found] = {}
        self.tests: dict[str, list[Evaluation]] = {}
        self.end = math.inf  # on the measurer's clock
        self.stage = ""
        self.units = 0.0  # of what was asked so far
        self.unit_tokens = 0  # of the item in work
        self.item_units = 1 / len(spec.tasks)  # what the items in work count
        self.judging: float | None = None  # units that judging one set on one item takes
        self.owed = 0.0  # seconds of what is measured whether the budget in time holds it or not
        self.pace = Pace()  # of the first items
        self.foreseen: Cost | None = None
        self.comparison = Comparison()
        self.method_tokens = 0  # that went into it

    def go(self) -> Outcome:
        self._calibrate()
        interrupted = False
        optimisers: dict[str, Optimiser] = {}
        try:
            self._settle_method()
            stretch = self.cost.context / self.info.n_ctx_train / self.spec.factor
            for plan in self.spec.searches():
                optimisers[plan.name] = self._optimiser(plan, stretch)
                self._search(plan.name, optimisers[plan.name])
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
            self.spec, self.info, self.tasks, self.found, self.tests, self._seen(), self.measurer.base,
            self.cost.context, self.measurer.n_tokens, self.measurer.seconds, interrupted,
            self._left() if interrupted else 0.0,
        )  # fmt: skip
        return replace(outcome, layers=self.measurer.scaling(outcome.main.best.candidate))

    def _calibrate(self) -> None:
        """Measure the unscaled model's first items (the first of all warms everything up) and settle what follows."""
        measurer = self.measurer
        indices = range(len(measurer.objective.terms))
        measurer.executor.on_tokens = self._foresee
        for i in range(2):
            measurer.rows([None], indices, range(i, i + 1))
            if measurer.cost(0)[1] > LONG_ITEM:  # what warming up takes is nothing beside that
                break
        tokens, seconds = (sum(x) for x in zip(*(measurer.cost(t) for t in indices), strict=True))
        self.judging = self._judge_first(seconds)
        seconds /= measurer.executor.n_workers
        self._check_tasks()
        stretch = measurer.lengths[0] / self.info.n_ctx_train if self.spec.method == "auto" else 0.0
        n_units = SHARE * total_units(self.spec, tokens, seconds)
        self.comparison = Comparison.sized(self.info, stretch, n_units)
        if self.spec.open is not None:
            spent = measurer.seconds + self.comparison.n_units * seconds
            self.spec = fitted(self.spec, seconds, spent, self.judging)
            self.settle(self.spec)
        context, methods = measurer.lengths[0], self.comparison.n_units
        cost = cost_of(self.spec, tokens, seconds, context, measurer.spent, methods, self.judging)
        self.cost = replace(cost, chat=measurer.chat)
        budget = Budget.parse(self.spec.budget)
        if budget.unit == "seconds":
            self.end = budget.amount
        measurer.executor.on_tokens = self._computed
        self.listener.started(self.spec, self.cost)

    def _judge_first(self, seconds: float) -> float | None:
        """Judge the unscaled model on the first test item of every task and say how many units (of so many seconds)
        that took; None where the first test item may move when numbers are fitted to a time: only CMA-ES has a pool of
        fixed size before it."""
        spec, measurer = self.spec, self.measurer
        if spec.optimiser != "cma":
            return None
        tasks, first = range(len(self.tasks)), spec.n_search
        measurer.rows([None], tasks, range(first, first + 1), full=True)
        return sum(measurer.cost(t, full=True)[1] for t in tasks) / max(seconds, 1e-9)

    def _foresee(self, done: Computed) -> None:
        """Say what the first item promises, where it takes long."""
        if done.n_tokens == 0:
            self.pace.start()
            return
        spent = self.measurer.spent
        if self.foreseen is None:
            self.pace.add(done.n_tokens, done.position)
            seconds = self.pace.predict(done.length) * done.of / done.length  # several prompts, or one
            if self.pace.seconds < FORESEEN_IN or seconds < LONG_ITEM:
                return
            self.foreseen = rough_cost(self.spec, done.of, seconds, done.length, spent)
            self.listener.foreseen(self.spec, self.foreseen)
        left = max(0.0, total_seconds(self.spec, self.foreseen) - (spent - self.foreseen.spent))
        self.listener.progress(Progress(FIRST, spent / max(spent + left, 1e-9), left))

    def _check_tasks(self) -> None:
        """Say so where the model can do nothing, or already does everything, before a search spends hours on it."""
        for i, term in enumerate(self.measurer.objective.terms):
            if not isinstance(term.task, RetrievalTask) or term.keep is not None:
                continue
            n = len(self.measurer.known(i))
            if self.measurer.easy.get(i) == 0:
                self.listener.note(
                    f"warning: {term.task.name}: this model answers none of the easy items: the task is beyond it, and "
                    "scales cannot help; take another --task"
                )
            elif self._recites(i, term.task):
                self.listener.note(
                    f"warning: {term.task.name}: the unscaled model recites, mostly the same answer whatever is asked, "
                    f"so this is no retrieval; take an easier task{other_size(term.task, 0.5, ' or ')}"
                )
            elif all(all(row.value) for row in self.measurer.known(i)):
                self.listener.note(
                    f"warning: {term.task.name}: the unscaled model has all answers of the first {n} items right, so "
                    f"there may be nothing to win; take longer prompts{other_size(term.task, 2, ', say ')}"
                )

    def _recites(self, number: int, task: RetrievalTask) -> bool:
        """Whether it does inside the window; beyond it, that is what scales may mend."""
        judged = self.measurer.known(number, full=True)
        if self.measurer.lengths[number] > self.info.n_ctx_train or not judged:
            return False
        result = Evaluation.of(task, judged[:1])
        return isinstance(result, RetrievalEvaluation) and recites(task, result, self.spec.n_search)

    # ---- how far it is

    @property
    def unit(self) -> float:
        """Seconds of a unit, all workers together, as measured so far."""
        indices = range(len(self.measurer.objective.terms))
        return sum(self.measurer.cost(t)[1] for t in indices) / self.measurer.executor.n_workers or self.cost.seconds

    def _left(self) -> float:
        """Seconds that are left."""
        budget = Budget.parse(self.spec.budget)
        if budget.unit == "seconds":
            return max(0.0, budget.amount - self.measurer.seconds, self.owed)
        return max(0.0, units_to_come(budget, self.cost) - self.units) * self.unit

    def _item(self) -> None:
        self.units += self.item_units
        self.unit_tokens = 0
        self._tell(0.0)

    def _computed(self, done: Computed) -> None:
        """Some tokens of the item in work."""
        self.unit_tokens += done.n_tokens
        self._tell(self.item_units * min(1.0, self.unit_tokens / max(done.of, 1)))

    def _tell(self, part: float) -> None:
        left = max(0.0, self._left() - part * self.unit)
        spent = self.measurer.seconds
        self.listener.progress(Progress(self.stage, spent / max(spent + left, 1e-9), left))

    def _begin(self, stage: str) -> None:
        self.stage = stage
        if Budget.parse(self.spec.budget).unit == "evaluations":  # a stage may have taken less than was foreseen
            names = [plan.name for plan in self.spec.searches()]
            before = names.index(stage) if stage in names else len(names)
            self.units = float(self.cost.methods + sum(self.cost.searches[n] for n in names[:before]))
            if stage.startswith("finals"):
                self.units += self.cost.finals * names.index(stage.removeprefix("finals: ")) / len(names)
            elif stage == "test":
                self.units += self.cost.finals
        self.listener.stage(stage)

    # ---- the stages

    def _settle_method(self) -> None:
        """What the scales multiply, and where the search begins, where the spec leaves it open."""
        if self.spec.method != "auto":
            return
        base = Base()
        if self.comparison.bases:
            self.stage = METHODS
            self.listener.stage(METHODS)
            ranked = self.comparison.measure(self.measurer, self._item)
            base = ranked[0].base
            self.listener.note(in_words(ranked, self.comparison.n_items))
        change: dict[str, Any] = {"method": base.method}
        if base.scale > 1:
            candidate = base.candidate(self.info.n_layer)
            change |= {"start": candidate.scales, "start_attn": candidate.attn}
        self.spec = self.spec.model_copy(update=change)
        self.method_tokens = self.measurer.n_tokens if self.comparison.bases else 0

    def _optimiser(self, plan: SearchPlan, stretch: float) -> Optimiser:
        spec = self.spec
        grid = uniform_grid(stretch)
        room = 2 * max(spec.start or (1.0,))  # single layers may want far more than all of them alike
        space = make_space(
            plan.genome, self.info.n_layer, numbers=plan.numbers,
            max_scale=max(USUAL_TOP, grid[-1], room), min_scale=spec.min_scale, factor=spec.factor,
            factor_range=spec.factor_range, held=spec.begin,
        )  # fmt: skip
        return make_optimiser(
            plan.optimiser, space, seed=spec.seed, population=spec.population, uniform_scales=grid, start=spec.begin
        )

    def _search(self, name: str, optimiser: Optimiser) -> None:
        """Generations until this search's share of the budget is spent."""
        spec, measurer = self.spec, self.measurer
        found = self.found[name] = Found(name)
        budget = Budget.parse(spec.budget)
        if budget.unit == "seconds":  # an equal part of what the ones before have left
            n_to_come = len(spec.searches()) - len(self.found) + 1
            left = self.end - self.cost.late * self.unit - measurer.seconds
            budget = Budget(left / n_to_come, "seconds")
        else:
            if budget.unit == "tokens":  # what the methods took comes out of it
                budget = Budget(max(1.0, budget.amount - self.method_tokens), "tokens")
            budget = budget.share(spec.n_shares)
        limit = math.inf
        if optimiser.space.name == "uniform" and name != spec.label:
            limit = UNIFORM_BUDGET
        elif budget.unit == "evaluations":
            limit = budget.amount
        began, tokens = measurer.seconds, measurer.n_tokens
        self._begin(name)
        while optimiser.n_evaluated < limit:
            spent = {"seconds": measurer.seconds - began, "tokens": measurer.n_tokens - tokens}.get(budget.unit, 0)
            if optimiser.n_evaluated and spent >= budget.amount:
                break  # not before the first generation: there is always something to choose from
            items = optimiser.items(spec.screen, spec.n_search)
            candidates = optimiser.ask()
            if not candidates:
                break
            if limit < math.inf:
                candidates = candidates[: int(limit) - optimiser.n_evaluated]
            if budget.unit == "seconds":  # no more than the time is there for
                n_fit = int((budget.amount - spent) / max(self.unit * spec.screen, 1e-9))
                candidates = candidates[: max(n_fit, 1 if optimiser.n_evaluated else 2)]
            try:
                scores = measurer.scores(candidates, items, self._item)
            except KeyboardInterrupt:
                # results count in the order in which they were asked: the first ones that are complete
                complete = self._complete(candidates, items)
                optimiser.tell(measurer.scores(complete, items) if complete else [])
                found.n_evaluated = optimiser.n_evaluated
                raise
            optimiser.tell(scores)
            found.n_evaluated, found.n_repeated = optimiser.n_evaluated, optimiser.n_repeated
            if not found.history:
                self._warn_if_blind(candidates)
            state = Generation(
                name, optimiser.generation, optimiser.n_evaluated, optimiser.best.score, float(np.mean(scores))
            )
            found.history.append(state)
            self.listener.generation(state)

    def _complete(self, candidates: Sequence[Candidate], items: Sequence[int]) -> list[Candidate]:
        return [*itertools.takewhile(lambda c: not self.measurer.n_missing(c, items), candidates)]

    def _warn_if_blind(self, candidates: Sequence[Candidate]) -> None:
        """Say so once where nothing is right under any of the first scales and they do not move the probabilities."""
        if len(self.found) > 1 or not isinstance(self.tasks[0], RetrievalTask):
            return
        rows = [r[0] for r in self.measurer.rows(candidates, [0], range(self.spec.screen))]
        logprob = np.array([[r.logprob for r in by_item] for by_item in rows]).mean(axis=(1, 2))
        if not any(any(r.value) for by_item in rows for r in by_item) and np.ptp(logprob) < BLIND:
            self.listener.note(
                f"warning: no answer is right under any of the first {len(candidates)} sets of scales, and their "
                f"probabilities move by {np.ptp(logprob):.2f} nats only: the search has nothing to go by. Take "
                f"shorter prompts{other_size(self.tasks[0], 0.5, ', say ')} or an easier task, then --start from there"
            )

    def _finals(self, found: Found, optimiser: Optimiser) -> None:
        """Race the best of a search on more items."""
        self._begin(f"finals: {found.name}")
        stages = self.spec.finals
        if self.end < math.inf:  # where measuring is slower than it was at first, fewer enter
            n_to_come = sum(1 for f in self.found.values() if not f.ranked)
            time = (self.end - self.measurer.seconds - self.cost.test * self.unit) / n_to_come
            wanted = self.cost.finals / len(self.found) * self.unit
            if time < wanted:
                stages = tuple((max(2, int(n * max(time, 0.0) / wanted)), k) for n, k in stages)

        def score(candidates: Sequence[Candidate], n_items: int) -> list[float]:
            self.measurer.rows([None], range(len(self.measurer.objective.terms)), range(n_items), on_item=self._item)
            return self.measurer.scores(candidates, range(n_items), self._item)

        found.ranked = race(optimiser.top(max([N_KEPT, *(n for n, _ in stages)])), stages, score)
        found.n_items = stages[-1][1] if stages else self.spec.screen

    def _test(self) -> None:
        """Judge item by item, so that at any moment all are judged on the same ones."""
        spec = self.spec
        judged: dict[str, Candidate | None] = {UNSCALED: None}
        if spec.begin is not None:
            judged[START] = spec.begin
        judged |= {name: f.best.candidate for name, f in self.found.items()}
        self._begin("test")
        if self.judging is not None:
            self.item_units = self.judging / len(self.tasks)
        rows: dict[str, list[list[Row]]] = {name: [[] for _ in self.tasks] for name in judged}
        try:
            for i in range(spec.n_search, spec.n_search + spec.test):
                before = self.measurer.seconds
                got = self.measurer.rows(
                    [*judged.values()], range(len(self.tasks)), range(i, i + 1), full=True, on_item=self._item
                )
                for name, by_task in zip(judged, got, strict=True):
                    for kept, news in zip(rows[name], by_task, strict=True):
                        kept += news
                took = self.measurer.seconds - before
                self.owed = took * (MIN_TEST - len(rows[UNSCALED][0]))
                if self.measurer.seconds + took > self.end and len(rows[UNSCALED][0]) >= MIN_TEST:
                    break
        finally:
            if rows[UNSCALED][0]:
                for name, by_task in rows.items():
                    self.tests[name] = [Evaluation.of(t, r) for t, r in zip(self.tasks, by_task, strict=True)]

    def _seen(self) -> dict[str, Evaluation]:
        """On the items of the search itself, as many as all winners were measured on."""
        n = min(f.n_items for f in self.found.values())
        judged: dict[str, Candidate | None] = {UNSCALED: None, **{k: f.best.candidate for k, f in self.found.items()}}
        if any(self.measurer.n_missing(c, range(n)) for c in judged.values()):
            return {}
        got = self.measurer.rows([*judged.values()], [0], range(n))
        return {k: Evaluation.of(self.tasks[0], by_task[0]) for k, by_task in zip(judged, got, strict=True)}
