"""One worker: a model with an evaluator per task, which does jobs; and what whoever hands them out must look like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ropebend.evaluate import Evaluator, Row, open_evaluator
from ropebend.model import Closing, Model
from ropebend.runtime import Runtime
from ropebend.scaling import LayerScaling
from ropebend.tasks.task import Task


class Computed(NamedTuple):
    """What a decode of an item has computed.

    n_tokens  prompt tokens, 0 where the item begins
    position  of the first
    of        prompt tokens that the item takes in all
    length    tokens that a sequence may reach
    """

    n_tokens: int
    position: int
    of: int
    length: int


OnTokens = Callable[[Computed], None]


@dataclass(frozen=True)
class Job:
    """An item of task number `task` under some scales; full: see `Evaluator.measure`."""

    scaling: LayerScaling | None
    task: int
    item: int
    full: bool


@dataclass(frozen=True)
class Done:
    """What came of a job.

    n_tokens  prompt tokens that went through the model
    seconds   that it took
    length    tokens that a sequence of the task may reach
    easy      share of the task's easy questions that the unscaled model answers; None where that is not known
    chat      whether the prompt stood in the model's chat template
    """

    row: Row
    n_tokens: int
    seconds: float
    length: int
    easy: float | None = None
    chat: bool = False


@dataclass(frozen=True)
class Bench:
    """What a worker needs: the model, the tasks with their numbers of items, how to run."""

    model: str
    tasks: tuple[tuple[Task, int], ...]
    runtime: Runtime


class Worker(Closing):
    """A model and one evaluator per task, made when the task first comes up.

    on_tokens  is told what each decode has computed
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.model = Model(bench.model, **bench.runtime.model)
        self.on_tokens: OnTokens | None = None
        self._evaluators: dict[int, Evaluator] = {}
        self._set: dict[int, LayerScaling | None] = {}  # what each evaluator runs under

    def evaluator(self, task: int) -> Evaluator:
        if task not in self._evaluators:
            what, n_items = self.bench.tasks[task]
            self._evaluators[task] = open_evaluator(self.model, what, n_items, self.bench.runtime)
        return self._evaluators[task]

    def run(self, job: Job) -> Done:
        evaluator = self.evaluator(job.task)
        if (tell := self.on_tokens) is not None:
            size = evaluator.n_to_compute(job.item), evaluator.n_tokens
            evaluator.on_tokens = lambda n_tokens, position: tell(Computed(n_tokens, position, *size))
            tell(Computed(0, 0, *size))
        else:
            evaluator.on_tokens = None
        started, before = time.monotonic(), evaluator.n_computed
        if job.task not in self._set or self._set[job.task] != job.scaling:
            self._set.pop(job.task, None)
            evaluator.set_scaling(job.scaling)
            self._set[job.task] = job.scaling
        row = evaluator.measure(job.item, full=job.full)
        return Done(
            row, evaluator.n_computed - before, time.monotonic() - started, evaluator.n_tokens, evaluator.easy,
            evaluator.chat,
        )  # fmt: skip

    def close(self) -> None:
        """Free contexts and weights."""
        for evaluator in self._evaluators.values():
            evaluator.close()
        self._evaluators.clear()
        self.model.close()


class Executor(Protocol):
    """Does jobs, in any order.

    on_tokens  is told what each decode has computed; only where the work is done in this process
    """

    n_workers: int
    on_tokens: OnTokens | None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done]]:
        """Number of each job and what came of it, as they are done."""
        ...

    def close(self) -> None:
        """Stop."""
        ...
