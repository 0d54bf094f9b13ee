#!/usr/bin/env python3
"""Decode speed hooked / unhooked, interleaved: python bench/decode.py [model.gguf]."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ropebend import Context, LayerScaling, Model


def main(
    model: Annotated[Path | None, typer.Argument(help="GGUF (default: the bundled needle).")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; each decodes hooked and unhooked.")] = 30,
    tokens: Annotated[int, typer.Option(help="Tokens decoded one by one per round.")] = 200,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Print the median ratio of the speeds and its spread."""
    path = model or Path(str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf"))
    with Model(path) as loaded:
        scaling = LayerScaling(tuple(1.0 + 0.1 * (i % 5) for i in range(loaded.info.n_layer)))
        options = {"n_ctx": tokens + 64, "n_threads": threads}
        with (
            Context(loaded, scaling=scaling, **options) as hooked,
            Context(loaded, hooked=False, **options) as bare,
        ):
            speeds: dict[str, list[float]] = {"hooked": [], "unhooked": []}
            for i in range(rounds + 1):
                pair = [("hooked", hooked), ("unhooked", bare)]
                for name, context in pair if i % 2 else reversed(pair):
                    context.clear()
                    started = time.perf_counter()
                    for pos in range(tokens):
                        context.decode([pos % 100 + 4], pos)
                    if i > 0:  # the first round warms up
                        speeds[name].append(tokens / (time.perf_counter() - started))
    ratio = np.array(speeds["hooked"]) / np.array(speeds["unhooked"])
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    print(f"{path.name}, {threads} thread(s), {rounds} rounds of {tokens} single-token decodes")
    print(f"hooked {np.median(speeds['hooked']):,.0f} tokens/s, unhooked {np.median(speeds['unhooked']):,.0f} tokens/s")
    print(f"hooked / unhooked: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    typer.run(main)
