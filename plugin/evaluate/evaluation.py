"""What measurements say: rows of a task's items, made into figures, intervals and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.evaluate.stats import accuracy_interval, cluster_bootstrap, mean_interval, sign_flip_p, wilson
from ropebend.tasks.task import RetrievalTask, Task

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What one item gave: tuples of [n_questions], one per depth (one column for a text).

    value    the score, 0 to 1; for a text its mean log-probability per token (nats)
    logprob  mean log-probability per token of the expected answers (nats); for a text the same as value
    margin   how close each verdict was, logits; () where that is not known, as for a text
    texts    the greedy answers; () for a text
    """

    value: tuple[float, ...]
    logprob: tuple[float, ...]
    margin: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Mean of a - b per item, with its 95 % interval and the p-value, paired by item (JSON object, text window).

    mean, low, high  of accuracy, 0 to 1, or of log-probability per token (nats): above 0, a is better.  The interval is
                     a percentile bootstrap over items
    p                two-sided, of a sign-flip test by item
    """

    mean: float
    low: float
    high: float
    p: float


class Evaluation:
    """Rows of a task's items; each kind of task says how its figures are written.

    measure  what the figure is, as a word
    value    float64 [n_items, n_questions]: see `Row`
    logprob  float64 [n_items, n_questions], nats per token
    """

    measure: ClassVar[str]  # what the figure is
    value: Array
    logprob: Array

    @staticmethod
    def of(task: Task, rows: Iterable[Row]) -> Evaluation:
        """Collect the rows of a task's items, in order.  Raises RopebendError if there are none."""
        rows = list(rows)
        if not rows:
            raise RopebendError("no samples to evaluate")
        value, logprob = (np.array([getattr(r, name) for r in rows]) for name in ("value", "logprob"))
        if isinstance(task, RetrievalTask):
            return RetrievalEvaluation(task.depths, value, logprob, tuple(r.texts for r in rows))
        return TextEvaluation(value, logprob)

    @property
    def n_items(self) -> int:
        """Items, or windows of a text."""
        return len(self.value)

    @property
    def per_item(self) -> Array:
        """Mean over the questions, float64 [n_items]: what is resampled."""
        return self.value.mean(axis=1)

    @property
    def mean(self) -> float:
        """What is maximised: accuracy, 0 to 1, or the mean log-probability per token (nats)."""
        return float(self.value.mean())

    def against(self, other: Evaluation) -> Comparison:
        """This one minus another one on the same items, in the same order: that they are is not checked."""
        difference = self.per_item - other.per_item
        return Comparison(float(difference.mean()), *cluster_bootstrap(difference), sign_flip_p(difference))

    def pooled(self, others: Sequence[Evaluation]) -> Evaluation:
        """The items of this one and of others, one after another, without the answers' texts."""
        raise NotImplementedError

    # ---- how it is written

    @property
    def figure(self) -> float:
        """The mean as people know it: accuracy, 0 to 1, or perplexity."""
        raise NotImplementedError

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the figure, (low, high); None where a single item says nothing about it."""
        raise NotImplementedError

    @property
    def columns(self) -> list[str]:
        """Names of the cells of `by_depth`."""
        return []

    def in_words(self) -> str:
        """The figure with its interval."""
        raise NotImplementedError

    def by_depth(self) -> list[str]:
        """The figure at each depth with its interval; nothing for a text."""
        return []

    def gain(self, c: Comparison) -> str:
        """A comparison of two of this kind in words."""
        raise NotImplementedError

    def range_of_gains(self, means: Sequence[float]) -> str:
        """From the least to the largest of some `Comparison.mean`."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Figures and every verdict, for files."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """Above the figures of a table, where they do not stand by depth."""
        return self.measure


@dataclass(frozen=True)
class RetrievalEvaluation(Evaluation):
    """Accuracies by depth.

    depths          where the answers stand, 0 first, 1 last; () where they stand nowhere in particular
    value, logprob  float64 [n_items, n_questions]
    texts           the greedy answers by item and question; () if pooled
    """

    measure = "accuracy"

    depths: tuple[float, ...]
    value: Array
    logprob: Array
    texts: tuple[tuple[str, ...], ...] = ()

    def pooled(self, others: Sequence[Evaluation]) -> RetrievalEvaluation:
        """See `Evaluation.pooled`."""
        return RetrievalEvaluation(
            self.depths,
            np.concatenate([e.value for e in (self, *others)]),
            np.concatenate([e.logprob for e in (self, *others)]),
        )

    @property
    def figure(self) -> float:
        """Accuracy, 0 to 1."""
        return self.mean

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of as many questions as the items are worth: see `accuracy_interval`."""
        return accuracy_interval(self.value)

    def interval_at(self, depth: int) -> tuple[float, float]:
        """Wilson's interval at depth number `depth` (from 0), 95 %."""
        return wilson(float(self.value[:, depth].sum()), self.n_items)

    @property
    def columns(self) -> list[str]:
        """The depths, as text."""
        return [f"{d:g}" for d in self.depths]

    def in_words(self) -> str:
        """In percent."""
        low, high = self.interval
        return f"{self.mean:.1%} [{100 * low:.0f}–{100 * high:.0f}]"

    def by_depth(self) -> list[str]:
        """In percent."""
        if not self.depths:
            return []
        intervals = map(self.interval_at, range(len(self.depths)))
        means = self.value.mean(axis=0)
        return [f"{m:.0%} [{100 * low:.0f}–{100 * high:.0f}]" for m, (low, high) in zip(means, intervals, strict=True)]

    def gain(self, c: Comparison) -> str:
        """In points of accuracy."""
        return f"{100 * c.mean:+.1f} points ({100 * c.low:+.1f} to {100 * c.high:+.1f}), p = {c.p:.2g}"

    def range_of_gains(self, means: Sequence[float]) -> str:
        """In points of accuracy."""
        return f"{100 * min(means):+.1f} to {100 * max(means):+.1f} points"

    def to_json(self) -> dict[str, Any]:
        """Accuracies, verdicts, log-probabilities and answers."""
        depths = range(len(self.depths))
        return {
            "samples": self.n_items,
            "depths": list(self.depths),
            "accuracy": self.mean,
            "accuracy_interval": list(self.interval),
            "accuracy_by_depth": self.value.mean(axis=0).tolist() if self.depths else [],
            "accuracy_by_depth_interval": [list(self.interval_at(d)) for d in depths],
            "correct": [[int(v) if v == int(v) else v for v in row] for row in self.value.tolist()],
            "logprob": self.logprob.round(5).tolist(),
            "answers": [list(row) for row in self.texts],
        }


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """Log-probabilities of a text's windows; written as perplexity.

    value, logprob  the same, float64 [n_windows, 1], nats per token
    """

    measure = "perplexity"

    value: Array
    logprob: Array

    def pooled(self, others: Sequence[Evaluation]) -> TextEvaluation:
        """See `Evaluation.pooled`."""
        value = np.concatenate([e.value for e in (self, *others)])
        return TextEvaluation(value, value)

    @property
    def figure(self) -> float:
        """Perplexity: e to the mean negative log-probability per token."""
        return float(np.exp(-self.mean))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's, by window, of the perplexity; None for a single window."""
        found = mean_interval(self.per_item)
        return None if found is None else (float(np.exp(-found[1])), float(np.exp(-found[0])))

    def in_words(self) -> str:
        """Perplexity with its interval."""
        if self.interval is None:
            return f"{self.figure:.2f} [one window: no interval]"
        low, high = self.interval
        return f"{self.figure:.2f} [{low:.2f}–{high:.2f}]"

    def gain(self, c: Comparison) -> str:
        """The share by which the perplexity falls."""
        mean, low, high = (100 * np.expm1(-x) for x in (c.mean, c.high, c.low))
        return f"{mean:+.1f} % perplexity ({low:+.1f} to {high:+.1f}), p = {c.p:.2g}"

    def range_of_gains(self, means: Sequence[float]) -> str:
        """In percent of perplexity."""
        low, high = (100 * np.expm1(-x) for x in (max(means), min(means)))
        return f"{low:+.1f} to {high:+.1f} % perplexity"

    def to_json(self) -> dict[str, Any]:
        """Perplexity, and the log-probability of every window."""
        return {
            "samples": self.n_items,
            "perplexity": self.figure,
            "perplexity_interval": list(self.interval) if self.interval is not None else None,
            "logprob": self.logprob[:, 0].tolist(),
        }
