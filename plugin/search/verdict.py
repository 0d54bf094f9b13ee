"""What a search is worth, in figures and in one honest sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ropebend.evaluate import Evaluation
from ropebend.search.run import Outcome
from ropebend.stats import cluster_bootstrap, mean_interval, sign_flip_p, wilson

MIN_TEST = 10  # items; a bootstrap over fewer says nothing


@dataclass(frozen=True)
class Comparison:
    """Mean of a - b per item, with its 95 % interval and the p-value, paired by item (JSON object, text window)."""

    mean: float
    low: float
    high: float
    p: float


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """a against b on the same items."""
    difference = a.per_item - b.per_item
    return Comparison(float(difference.mean()), *cluster_bootstrap(difference), sign_flip_p(difference))


def figure(result: Evaluation) -> str:
    """Accuracy in percent or perplexity, with its 95 % interval."""
    low, high = mean_interval(result.per_item)
    if result.is_text:
        return f"{np.exp(-result.mean):.2f} [{np.exp(-high):.2f}–{np.exp(-low):.2f}]"
    return f"{result.mean:.1%} [{100 * low:.0f}–{100 * high:.0f}]"


def by_depth(result: Evaluation) -> list[str]:
    """Accuracy at each depth with Wilson's 95 % interval; nothing for a text."""
    if result.is_text:
        return []
    cells = []
    for column in result.value.T:
        low, high = wilson(int(column.sum()), len(column))
        cells.append(f"{column.mean():.0%} [{100 * low:.0f}–{100 * high:.0f}]")
    return cells


def gain(c: Comparison, *, is_text: bool) -> str:
    """A comparison in words: points of accuracy, or the share by which the perplexity falls."""
    if is_text:
        mean, low, high = (100 * np.expm1(-x) for x in (c.mean, c.high, c.low))
        return f"{mean:+.1f} % perplexity ({low:+.1f} to {high:+.1f}), p = {c.p:.2g}"
    return f"{100 * c.mean:+.1f} points ({100 * c.low:+.1f} to {100 * c.high:+.1f}), p = {c.p:.2g}"


def rival(outcome: Outcome) -> tuple[str, str]:
    """What the result must beat, by name and in words: the best uniform scale, or else the unscaled model."""
    if "uniform" in outcome.tests and outcome.spec.genome != "uniform":
        return "uniform", "the best uniform scale"
    return "unscaled", "the unscaled model"


def sentence(mine: Evaluation, theirs: Evaluation, what: str) -> str:
    """The layer scales against `what`, on the same test items."""
    c = compare(mine, theirs)
    figures = gain(c, is_text=mine.is_text)
    if len(mine.value) < MIN_TEST:
        return f"Layer scales against {what}: {figures}, on too few test items to tell."
    if c.low > 0:
        return f"Layer scales beat {what}: {figures} on {len(mine.value)} test items."
    if c.high < 0:
        return f"Layer scales do WORSE than {what}: {figures} on {len(mine.value)} test items. Use the others."
    return f"Layer scales against {what}: {figures} on {len(mine.value)} test items, which is within noise."


def verdict(outcome: Outcome) -> str:
    """The result against the best uniform scale, or else against the unscaled model, on the first task's test items."""
    if not outcome.tests:
        main = outcome.main
        text = f"The search was interrupted: these are the best scales so far ({main.name}), not judged on test items."
        useless = set(main.best.candidate.scales) == {1.0}
        return f"{text} They are all 1, which changes nothing: go on with --resume." if useless else text
    other, what = rival(outcome)
    return sentence(outcome.tests[outcome.spec.label][0], outcome.tests[other][0], what)
