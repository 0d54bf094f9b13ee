"""Running tasks on a model, fast and exactly: `evaluate(evaluator, …)` for a task's first items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.evaluate.perplexity import PerplexityEvaluator
from ropebend.evaluate.retrieval import Answer, RetrievalEvaluator, greedy_answer
from ropebend.model import Model
from ropebend.runtime import Runtime
from ropebend.scaling import LayerScaling
from ropebend.tasks.task import RetrievalTask, Task, TextTask

__all__ = [
    "Answer", "Evaluation", "Evaluator", "PerplexityEvaluator", "RetrievalEvaluator", "Row", "evaluate", "greedy_answer",
    "measure", "open_evaluator",
]  # fmt: skip

DEFAULT_ITEMS = 100

Evaluator = RetrievalEvaluator | PerplexityEvaluator


@dataclass(frozen=True)
class Row:
    """What one item gave, by depth (one column for a text).

    value    1 or 0 for right or wrong; for a text its mean log-probability per token (nats)
    logprob  mean log-probability per token of the expected answers; for a text the same as value
    margin   how close each verdict was, logits
    texts    the greedy answers
    """

    value: tuple[float, ...]
    logprob: tuple[float, ...]
    margin: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Rows of a task's items: arrays [n_items, n_depths].  For a text the only depth is NaN."""

    depths: tuple[float, ...]
    value: npt.NDArray[np.float64]
    logprob: npt.NDArray[np.float64]
    texts: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, task: Task, rows: Iterable[Row]) -> Evaluation:
        """Collect rows.  Raises RopebendError if there are none."""
        rows = list(rows)
        if not rows:
            raise RopebendError("no samples to evaluate")
        depths = task.depths if isinstance(task, RetrievalTask) else (float("nan"),)
        value, logprob = (np.array([getattr(r, name) for r in rows]) for name in ("value", "logprob"))
        return cls(depths, value, logprob, tuple(r.texts for r in rows))

    @property
    def is_text(self) -> bool:
        """True for log-probabilities of a text, False for verdicts."""
        return bool(np.isnan(self.depths[0]))

    @property
    def per_item(self) -> npt.NDArray[np.float64]:
        """Mean over depths, [n_items]: what is resampled."""
        return self.value.mean(axis=1)

    @property
    def mean(self) -> float:
        """Accuracy, or the mean log-probability per token."""
        return float(self.value.mean())


def open_evaluator(model: Model, task: Task, n_items: int | None, runtime: Runtime) -> Evaluator:
    """Prepare the task and make a context for its first n_items (None: 100, or all if there are fewer).

    Raises RopebendError if the task has fewer, or if the context cannot be made.
    """
    task.prepare(model.tokenize)
    if n_items is None:
        n_items = min(DEFAULT_ITEMS, task.n_items or DEFAULT_ITEMS)
    if task.n_items is not None and task.n_items < n_items:
        raise RopebendError(f"{task.name}: {n_items} items wanted, there are {task.n_items}")
    if n_items < 1:
        raise RopebendError("no samples to evaluate")
    if isinstance(task, RetrievalTask):
        return RetrievalEvaluator(model, task, n_items, runtime)
    assert isinstance(task, TextTask)
    return PerplexityEvaluator(model, task, n_items, runtime)


def measure(evaluator: Evaluator, i: int, *, full: bool = True) -> Row:
    """Item i under the scales that are set; full: see `RetrievalEvaluator.run` (inexact tasks always run in full)."""
    if isinstance(evaluator, PerplexityEvaluator):
        logprob = evaluator.run(i)
        return Row((logprob,), (logprob,))
    answers = evaluator.run(i, full=full or not evaluator.task.exact)
    return Row(
        tuple(float(a.correct) for a in answers),
        tuple(a.logprob for a in answers),
        tuple(a.margin for a in answers),
        tuple(a.text for a in answers),
    )


def evaluate(
    evaluator: Evaluator,
    scaling: LayerScaling | None,
    items: range,
    *,
    full: bool = True,
) -> Evaluation:
    """Run items under one scaling."""
    evaluator.set_scaling(scaling)
    return Evaluation.of(evaluator.task, (measure(evaluator, i, full=full) for i in items))
