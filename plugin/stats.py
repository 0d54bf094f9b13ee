"""Intervals for accuracies.  Questions about one JSON are not independent, so resampling is by JSON (cluster)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

Interval = tuple[float, float]
CONFIDENCE = 0.95


def wilson(n_correct: int, n: int) -> Interval:
    """Wilson's interval for a proportion of independent items (one question per JSON)."""
    ci = stats.binomtest(n_correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(ci.low), float(ci.high)


def cluster_bootstrap(per_cluster: npt.NDArray[np.float64], n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile interval of the mean of cluster means (shape [n_clusters]), resampling whole clusters."""
    rng = np.random.default_rng(seed)
    n = len(per_cluster)
    means = per_cluster[rng.integers(n, size=(n_resamples, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_interval(per_cluster: npt.NDArray[np.float64]) -> Interval:
    """`cluster_bootstrap`, or Wilson's interval by cluster where all are right or all wrong: resampling those says
    nothing about what was not drawn.
    """
    if np.isin(per_cluster, (0.0, 1.0)).all() and len(set(per_cluster.tolist())) == 1:
        return wilson(int(per_cluster.sum()), len(per_cluster))
    return cluster_bootstrap(per_cluster)


def sign_flip_p(difference: npt.NDArray[np.float64], n_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a paired test (shape [n_items]): how often random signs give a mean as far from 0."""
    rng = np.random.default_rng(seed)
    observed = abs(difference.mean())
    hits, left = 0, n_resamples
    while left:
        n = min(left, 1000)
        signs = rng.choice([-1.0, 1.0], size=(n, len(difference)))
        hits += int((np.abs((signs * difference).mean(axis=1)) >= observed - 1e-12).sum())
        left -= n
    return (hits + 1) / (n_resamples + 1)
