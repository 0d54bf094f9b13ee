"""Pictures: accuracy by depth before and after, and the scales over depth."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ropebend.evaluate import Evaluation
from ropebend.files import write_bytes
from ropebend.scaling import LayerScaling
from ropebend.stats import wilson

COLOURS = ("#8a8a8a", "#2f7fc1", "#d1495b")


def accuracy_and_scales(
    path: str | Path, title: str, results: Sequence[tuple[str, Evaluation]], layers: LayerScaling, uniform: LayerScaling
) -> None:
    """Write a PNG: left accuracy by depth with 95 % intervals, right the scale of each layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, result), colour in zip(results, COLOURS, strict=True):
        n = len(result.correct)
        mean = result.correct.mean(axis=0)
        low, high = np.array([wilson(int(c.sum()), n) for c in result.correct.T]).T
        left.errorbar(
            result.depths, 100 * mean, 100 * np.array([np.maximum(mean - low, 0), np.maximum(high - mean, 0)]),
            label=f"{name} ({result.accuracy:.0%})", color=colour, marker="o", capsize=3,
        )  # fmt: skip
    left.set(xlabel="depth of the asked pair", ylabel="correct answers, %", ylim=(-3, 103), xticks=results[0][1].depths)
    left.legend(loc="best", frameon=False)
    depth = np.arange(layers.n_layer)
    right.axhline(1.0, color=COLOURS[0], linewidth=1)
    right.plot(depth, uniform.layer_scale, color=COLOURS[1], linestyle="--", label="best uniform")
    right.plot(depth, layers.layer_scale, color=COLOURS[2], marker="o", label="layer scales")
    right.set(xlabel="layer", ylabel="RoPE scale (2 halves freq_scale)")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="best", frameon=False)
    figure.suptitle(title)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    write_bytes(path, data.getvalue())
