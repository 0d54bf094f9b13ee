"""What a search maximises: one task's score, or several with weights or as constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.evaluate import Row
from ropebend.tasks.task import RetrievalTask, Task

#: Share of the answers' probability in a score, the rest is their accuracy: over a few items it moves smoothly where
#: accuracy jumps, and tells candidates apart that get nothing right yet.
SOFT_SHARE = 0.75
#: Price of a broken constraint, per point of accuracy or nat of log-probability: steep, yet a way back leads down it.
PENALTY = 10.0


@dataclass(frozen=True)
class Term:
    """One task of an objective.

    weight         of its score in the sum
    keep           instead of a weight: what it may lose against the unscaled model (accuracy, or the share by which the
                   perplexity may rise)
    depth_weights  of the depths in the mean (None: all alike)
    worst          weight of the worst depth beside the mean, 0 to 1
    """

    task: Task
    weight: float = 1.0
    keep: float | None = None
    depth_weights: tuple[float, ...] | None = None
    worst: float = 0.2

    def score(self, rows: Sequence[Row]) -> float:
        """Text: mean log-probability per token.  Retrieval: (1 - worst) * mean over depths + worst * worst depth, of a
        quarter of the accuracy and three quarters of the answers' mean probability per token, 0 to 1.

        Raises RopebendError for depth weights that are not as many as the depths.
        """
        value = np.array([r.value for r in rows])
        if not isinstance(self.task, RetrievalTask):
            return float(value.mean())
        probability = np.exp([r.logprob for r in rows]).mean(axis=0)
        by_depth = (1 - SOFT_SHARE) * value.mean(axis=0) + SOFT_SHARE * probability
        mean = float(by_depth @ depth_weights(self.depth_weights, len(by_depth)))
        return (1 - self.worst) * mean + self.worst * float(by_depth.min())

    def loss(self, rows: Sequence[Row], unscaled: Sequence[Row]) -> float:
        """By how much the constraint is broken, 0 if it holds."""
        assert self.keep is not None
        lost = float(np.mean([r.value for r in unscaled]) - np.mean([r.value for r in rows]))
        allowed = self.keep if isinstance(self.task, RetrievalTask) else float(np.log1p(self.keep))
        return max(0.0, lost - allowed)


@dataclass(frozen=True)
class Objective:
    """A sum of terms.  Scores are comparable at equal numbers of items only."""

    terms: tuple[Term, ...]

    @property
    def needs_unscaled(self) -> bool:
        """True if a term compares with the unscaled model."""
        return any(term.keep is not None for term in self.terms)

    def score(self, rows: Sequence[Sequence[Row]], unscaled: Sequence[Sequence[Row]]) -> float:
        """rows, unscaled: for each term the rows of the same items, of the candidate and of the unscaled model."""
        total = 0.0
        for term, mine, base in zip(self.terms, rows, unscaled, strict=True):
            if term.keep is None:
                total += term.weight * term.score(mine)
            else:
                total -= PENALTY * term.loss(mine, base)
        return total


def depth_weights(weights: Sequence[float] | None, n_depths: int) -> npt.NDArray[np.float64]:
    """Normalised weights per depth, float64 [n_depths]; None: all alike.

    Raises RopebendError unless there is one number of 0 or more per depth, and not only zeros.
    """
    w = np.ones(n_depths) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n_depths,) or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise RopebendError(f"depth weights: expected {n_depths} numbers >= 0, not all zero, got {weights}")
    return w / w.sum()
