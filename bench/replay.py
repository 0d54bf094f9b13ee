"""What a rule of choosing is worth, found by replaying it on measurements with the items in many orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from ropebend.evaluate import Row
from ropebend.evaluate.stats import cluster_bootstrap
from ropebend.search.objective import Objective
from ropebend.search.space import Candidate


def scorer(
    objective: Objective, rows: dict[Candidate, list[Row]], order: Sequence[int]
) -> Callable[[Sequence[Candidate], int], list[float]]:
    """Scores from the measurements, as if the items had come in this order."""

    def score(candidates: Sequence[Candidate], n_items: int) -> list[float]:
        by_set = [[rows[c][i] for i in order[:n_items]] for c in candidates]
        return [objective.score([got], [got]) for got in by_set]  # nothing to keep, so nothing to compare with

    return score


def rank_agreement(
    scores: npt.NDArray[np.float64], accuracy: npt.NDArray[np.float64], n_items: int, orders: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """How well the mean score on n_items ranks sets, against their accuracy on the later half of each order.

    scores, accuracy: [n_sets, n_items].  Returns Spearman's rho, the mean over the orders, and by how many points of
    accuracy the set of the best score is worse than the best set.
    """
    rhos, lost = [], []
    for order in orders:
        mine, on = scores[:, order[:n_items]].mean(axis=1), order[len(order) // 2 :]
        theirs = accuracy[:, on].mean(axis=1)
        rho = spearmanr(mine, theirs).statistic
        rhos.append(0.0 if np.isnan(rho) else rho)  # all scores alike rank nothing
        lost.append(theirs.max() - theirs[mine.argmax()])
    return float(np.mean(rhos)), 100 * float(np.mean(lost))


def judged(accuracy: npt.NDArray[np.float64], chosen: list[int], judging: list[list[int]]) -> float:
    """Mean accuracy of the sets that were chosen, each on its judging items; accuracy: [n_sets, n_items]."""
    return float(np.mean([accuracy[c, on].mean() for c, on in zip(chosen, judging, strict=True)]))


def regret(
    accuracy: npt.NDArray[np.float64], full: list[int], raced: list[int], judging: list[list[int]]
) -> tuple[float, float, float]:
    """By how many points of accuracy full's choices are better than racing's, with the 95 % interval.

    Resampled are the items: what each says of the choices, averaged over the orders in which it judged.
    """
    lost, times = np.zeros(accuracy.shape[1]), np.zeros(accuracy.shape[1])
    for f, r, on in zip(full, raced, judging, strict=True):
        lost[on] += accuracy[f, on] - accuracy[r, on]
        times[on] += 1
    per_item = 100 * lost[times > 0] / times[times > 0]
    return float(per_item.mean()), *cluster_bootstrap(per_item)
