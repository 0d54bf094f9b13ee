"""Pictures, as PNG bytes: accuracy by depth, the scales over depth, the best score by generation."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ropebend.evaluate import RetrievalEvaluation
from ropebend.search.outcome import Found

COLOURS = ("#8a8a8a", "#2f7fc1", "#5aa469", "#c7923e", "#8e6bbf", "#d1495b")
N_RUNNERS_UP = 8


def _png(title: str, width: float, draw: Callable[[Any], None]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, 4.2), layout="constrained")
    draw(axes)
    figure.suptitle(title, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    return data.getvalue()


def accuracy(title: str, results: Mapping[str, RetrievalEvaluation]) -> bytes:
    """Accuracy by depth with 95 % intervals; the last result in red."""

    def draw(axes: Any) -> None:
        for (name, result), colour in zip(results.items(), _colours(len(results)), strict=True):
            mean = result.value.mean(axis=0)
            low, high = np.array([result.interval_at(d) for d in range(len(mean))]).T
            axes.errorbar(
                result.depths, 100 * mean, 100 * np.array([np.maximum(mean - low, 0), np.maximum(high - mean, 0)]),
                label=f"{name} ({result.mean:.0%})", color=colour, marker="o", capsize=3,
            )  # fmt: skip
        depths = next(iter(results.values())).depths
        axes.set(xlabel="depth of the answer", ylabel="correct answers, %", ylim=(-3, 103), xticks=depths)
        axes.legend(loc="best", frameon=False)

    return _png(title, 7, draw)


AXES = {"scale": "RoPE scale (2 halves freq_scale)", "attn": "attention factor (its square multiplies the logits)"}


def numbers(title: str, found: Mapping[str, Found], main: str | None, number: str) -> bytes:
    """A number ("scale" or "attn") of each winner by layer; of the main search (if there is one) the runners-up too."""

    def draw(axes: Any) -> None:
        axes.axhline(1.0, color=COLOURS[0], linewidth=1)
        for (name, f), colour in zip(found.items(), _colours(len(found) + 1)[1:], strict=True):
            depth = np.arange(len(f.best.candidate.scales))
            if name == main:
                for scored in f.ranked[1 : 1 + N_RUNNERS_UP]:
                    axes.plot(depth, scored.candidate.number(number), color=colour, linewidth=0.7, alpha=0.4)
            style = {"marker": "o"} if name == main else {"linestyle": "--", "linewidth": 1.2}
            axes.plot(depth, f.best.candidate.number(number), color=colour, label=name, **style)
        axes.set(xlabel="layer", ylabel=AXES[number])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best", frameon=False)

    return _png(title, 7, draw)


def scores(title: str, found: Mapping[str, Found]) -> bytes:
    """Best score after each generation, by evaluations."""

    def draw(axes: Any) -> None:
        for (name, f), colour in zip(found.items(), _colours(len(found) + 1)[1:], strict=True):
            axes.plot(
                [g.n_evaluated for g in f.history], [g.best for g in f.history], color=colour, label=name, marker="."
            )
        axes.set(xlabel="sets of scales measured", ylabel="best score of the generation's items")
        axes.legend(loc="best", frameon=False)

    return _png(title, 7, draw)


def _colours(n: int) -> list[str]:
    """n colours, the last one always the red of the result, the first one the grey of the unscaled model."""
    first, *between, last = COLOURS
    if n < 2:
        return [last]
    return [first, *itertools.islice(itertools.cycle(between), n - 2), last]
