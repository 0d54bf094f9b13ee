"""Intervals and tests.  Questions about one item (a JSON object, say) are not independent: the item is what counts.

scipy.stats takes longer to import than an evaluation to begin: only comparisons need it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

Interval = tuple[float, float]
CONFIDENCE = 0.95
N_RESAMPLES = 10_000


def wilson(n_correct: float, n: float) -> Interval:
    """Wilson's score interval for `n_correct` of `n` independent questions (1927); n may be an effective number."""
    z2, p = special.ndtri((1 + CONFIDENCE) / 2) ** 2, n_correct / n
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return (0.0 if p == 0 else float(middle - half)), (1.0 if p == 1 else float(middle + half))


def accuracy_interval(value: npt.NDArray[np.float64]) -> Interval:
    """Wilson's interval, 95 %, for the mean of `value` (shape [n_items, n_questions], each 0 to 1).

    Its n is the number of independent questions that these are worth: p (1 - p) / variance of the mean over items, made
    smaller for few items by the ratio of the t quantiles (Korn and Graubard, 1998), but no less than the items and no
    more than the questions there are.  Unlike a bootstrap it does not collapse where all items are alike.
    """
    n_items, n_questions = value.shape
    p = float(value.mean())
    worth = float(n_items)
    if n_items > 1:
        variance = float(value.mean(axis=1).var(ddof=1)) / n_items
        tail = (1 + CONFIDENCE) / 2
        few = (special.stdtrit(n_items * n_questions - 1, tail) / special.stdtrit(n_items - 1, tail)) ** 2
        if variance > 0:
            worth = few * p * (1 - p) / variance
        elif 0 < p < 1:
            worth = few * n_items * n_questions
        worth = min(max(worth, n_items), n_items * n_questions)
    return wilson(p * worth, worth)


def mean_interval(per_item: npt.NDArray[np.float64]) -> Interval | None:
    """Student's interval for the mean of `per_item` (shape [n_items]); None for a single one, which says nothing."""
    n = len(per_item)
    if n < 2:
        return None
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) * per_item.std(ddof=1) / np.sqrt(n))
    return float(per_item.mean()) - half, float(per_item.mean()) + half


def cluster_bootstrap(per_item: npt.NDArray[np.float64], seed: int = 0) -> Interval:
    """Percentile interval of the mean of `per_item` (shape [n_items]), resampling whole items; a single one is both its
    ends.
    """
    if len(per_item) < 2:
        return float(per_item[0]), float(per_item[0])
    from scipy import stats

    found = stats.bootstrap(
        (per_item,), np.mean, confidence_level=CONFIDENCE, n_resamples=N_RESAMPLES, method="percentile", rng=seed
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def sign_flip_p(difference: npt.NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p-value of a paired test (shape [n_items]): how often other signs give a mean as far from 0.

    All signs where there are few items, random ones else.
    """
    if not difference.any():
        return 1.0
    from scipy import stats

    found = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=N_RESAMPLES, vectorized=True, rng=seed
    )
    return float(found.pvalue)
