"""What an evaluation means, in a sentence: can it be trusted, where does the model fail, what to measure instead."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from ropebend.evaluate.evaluation import Evaluation, RetrievalEvaluation
from ropebend.tasks.task import RetrievalTask, Task

NEARLY = 0.03  # of all answers: no more are wrong, or right
WIDE = 0.4  # an interval of that width tells nothing
CLEAR = 0.2  # difference between depths that is worth a word
START, SAME = 12, 0.7  # characters by which answers are told apart; share of an item's answers that are one
SIZES = ("keys", "length", "documents", "lines")


def diagnosis(task: Task, result: Evaluation, easy: float | None = None) -> str:
    """A sentence about a result; "" where there is nothing to say.

    easy  share of the task's easy questions that this model answers; None: not known
    """
    if not isinstance(result, RetrievalEvaluation) or not isinstance(task, RetrievalTask):
        return ""
    low, high = result.interval
    if recites(task, result):
        return (
            "It recites: mostly the same answer whatever is asked, so this is no retrieval; take an easier task"
            f"{other_size(task, 0.5, ' or ')}."
        )
    if result.mean <= NEARLY and high < WIDE:
        if easy == 0:
            return (
                "Nothing right, and not on the easy items either: this task is beyond the model; take another --task."
            )
        known = "though it can do easy items" if easy else "at this length"
        shorter = other_size(task, 0.5, ", say ")
        return f"Nothing right, {known}: a search would find nothing to go by; take shorter prompts{shorter}."
    if high - low > WIDE or result.n_items < 3:
        return f"Too few items to tell: between {low:.0%} and {high:.0%}."
    if result.mean >= 1 - NEARLY:
        return f"Everything right: scales have nothing to win here; take longer prompts{other_size(task, 2, ', say ')}."
    return f"{_by_depth(result)}; a search may help."


def recites(task: RetrievalTask, result: RetrievalEvaluation, first: int = 0) -> bool:
    """True if most questions about an item, which have different answers, get one and the same.

    first  number of the first item that was measured
    """
    shares = []
    for i, texts in enumerate(result.texts, first):
        if texts and len({q.answers for q in task.item(i).questions}) > 1:
            starts = Counter(t.strip(' \n"')[:START] for t in texts if len(t) > START)
            shares.append(max(starts.values(), default=0) / len(texts))
    return result.mean < 0.5 and len(shares) > 0 and float(np.mean(shares)) >= SAME


def _by_depth(result: RetrievalEvaluation) -> str:
    if not result.depths:
        return f"{result.mean:.2f} right"
    means = dict(zip(result.depths, result.value.mean(axis=0).tolist(), strict=True))
    if len(means) < 2 or any(math.isnan(d) for d in means):
        return f"{result.mean:.2f} right"
    order = sorted(means)
    first, last = means[order[0]], means[order[-1]]
    middle = float(np.mean([means[d] for d in order[1:-1]])) if len(order) > 2 else None
    if middle is not None and min(first, last) - middle >= CLEAR:
        return f"Loses the middle: {(first + last) / 2:.2f} at the ends, {middle:.2f} between"
    if last - first >= CLEAR:
        return f"Loses what stands far back: {first:.2f} at the beginning, {last:.2f} at the end"
    if first - last >= CLEAR:
        return f"Loses what stands last: {first:.2f} at the beginning, {last:.2f} at the end"
    return f"Much the same at every depth: {result.mean:.2f}"


def other_size(task: Task, factor: float, before: str) -> str:
    """Another size of the same task, as a flag."""
    config = task.config()
    name = next((s for s in SIZES if isinstance(config.get(s), int)), None)
    return f"{before}--{name} {max(1, round(config[name] * factor))}" if name is not None else ""
