"""One worker: a model with an evaluator per task, which does jobs; and what whoever hands them out must look like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ropebend.evaluate import Evaluator, Row, open_evaluator
from ropebend.model import Closing, Model
from ropebend.runtime import Runtime
from ropebend.scaling import LayerScaling
from ropebend.tasks.task import Task


@dataclass(frozen=True)
class Job:
    """Items [start, stop) of task number `task` under some scales; full: see `Evaluator.measure`."""

    scaling: LayerScaling | None
    task: int
    start: int
    stop: int
    full: bool


@dataclass(frozen=True)
class Done:
    """Rows of a job, the prompt tokens that went through the model for each, and how long the task's sequences get."""

    rows: tuple[Row, ...]
    n_tokens: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Bench:
    """What a worker needs: the model, the tasks with their numbers of items, how to run."""

    model: str
    tasks: tuple[tuple[Task, int], ...]
    runtime: Runtime


class Worker(Closing):
    """A model and one evaluator per task, made when the task first comes up."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.model = Model(bench.model, n_gpu_layers=bench.runtime.n_gpu_layers)
        self._evaluators: dict[int, Evaluator] = {}

    def evaluator(self, task: int) -> Evaluator:
        """The evaluator of a task."""
        if task not in self._evaluators:
            what, n_items = self.bench.tasks[task]
            self._evaluators[task] = open_evaluator(self.model, what, n_items, self.bench.runtime)
        return self._evaluators[task]

    def run(self, job: Job) -> Done:
        """Do a job."""
        evaluator = self.evaluator(job.task)
        evaluator.set_scaling(job.scaling)
        rows, n_tokens = [], []
        for i in range(job.start, job.stop):
            before = evaluator.n_computed
            rows.append(evaluator.measure(i, full=job.full))
            n_tokens.append(evaluator.n_computed - before)
        return Done(tuple(rows), tuple(n_tokens), evaluator.n_tokens)

    def close(self) -> None:
        """Free contexts and weights."""
        for evaluator in self._evaluators.values():
            evaluator.close()
        self._evaluators.clear()
        self.model.close()


class Executor(Protocol):
    """Does jobs, in any order."""

    n_workers: int

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done]]:
        """Number of each job and what came of it, as they are done."""
        ...

    def close(self) -> None:
        """Stop."""
        ...
