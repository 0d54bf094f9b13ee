"""What a search is worth, in figures and in one honest sentence."""

from __future__ import annotations

from ropebend.evaluate import Evaluation
from ropebend.search.outcome import START, UNSCALED, Outcome
from ropebend.search.spec import MIN_TEST


def rival(outcome: Outcome) -> tuple[str, str]:
    """What the result must beat, by name and in words: the best uniform scale, or else what the search began from, or
    else the unscaled model."""
    if "uniform" in outcome.tests and outcome.spec.genome != "uniform":
        return "uniform", "the best uniform scale"
    if START in outcome.tests:
        return START, "what the search began from"
    return UNSCALED, "the unscaled model"


def sentence(mine: Evaluation, theirs: Evaluation, what: str) -> str:
    """The layer scales against `what`, on the same test items."""
    c = mine.against(theirs)
    figures = mine.gain(c)
    if mine.n_items < MIN_TEST:
        return f"Layer scales against {what}: {figures}, on too few test items to tell."
    if c.low > 0:
        return f"Layer scales beat {what}: {figures} on {mine.n_items} test items."
    if c.high < 0:
        return f"Layer scales do WORSE than {what}: {figures} on {mine.n_items} test items. Use the others."
    return f"Layer scales against {what}: {figures} on {mine.n_items} test items, which is within noise."


def verdict(outcome: Outcome) -> str:
    """The result against its `rival`, on the first task's test items.

    Of a search that was interrupted before them: that there is no judgement.
    """
    if not outcome.tests:
        main = outcome.main
        text = f"The search was interrupted: these are the best scales so far ({main.name}), not judged on test items."
        useless = outcome.layers.is_unscaled
        return f"{text} They are all 1, which changes nothing: go on with --resume." if useless else text
    other, what = rival(outcome)
    line = sentence(outcome.tests[outcome.spec.label][0], outcome.tests[other][0], what)
    if outcome.interrupted:
        n = outcome.tests[UNSCALED][0].n_items
        line += f" Interrupted after {n} of {outcome.spec.test} test items: go on with --resume."
    return line
