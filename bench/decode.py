#!/usr/bin/env python3
"""Decode speed hooked (both numbers of each layer set) / unhooked, interleaved: python bench/decode.py [model.gguf]."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import table
import typer

from ropebend import Context, Model, RopeMethod
from ropebend.scaling.plan import stretched

NEEDLE = Path(str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf"))


def compare(model: Model, rounds: int, tokens: int, threads: int) -> None:
    """Print the median ratio of the speeds and its spread."""
    n = model.info.n_layer
    scales, factors = ([1.0 + step * (i % 5) for i in range(n)] for step in (0.1, 0.05))
    plan = stretched(scales, RopeMethod(), None, factors)
    options: dict[str, Any] = {"n_ctx": tokens + 64, "n_threads": threads}
    with (
        Context(model, scaling=None, **options) as hooked,
        Context(model, hooked=False, **options) as bare,
    ):
        hooked.switch_plan(plan)
        speeds: dict[str, list[float]] = {"hooked": [], "unhooked": []}
        for i in range(rounds + 1):
            pair = [("hooked", hooked), ("unhooked", bare)]
            for name, context in pair if i % 2 else reversed(pair):
                context.clear()
                started = time.perf_counter()
                for pos in range(tokens):
                    context.decode([pos % 100 + 4], pos)
                context.logits()  # a GPU may still be computing the last one
                if i > 0:  # the first round warms up
                    speeds[name].append(tokens / (time.perf_counter() - started))
    print(f"{Path(model.info.path).name}, {threads} thread(s), {rounds} rounds of {tokens} single-token decodes")
    print(f"hooked {np.median(speeds['hooked']):,.0f} tokens/s, unhooked {np.median(speeds['unhooked']):,.0f} tokens/s")
    print(f"hooked / unhooked: {table.spread(np.array(speeds['hooked']) / np.array(speeds['unhooked']), 3)}")


def main(
    model: Annotated[Path, typer.Argument(help="GGUF (default: the bundled needle).", show_default=False)] = NEEDLE,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each decodes hooked and unhooked.")] = 30,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded one by one per round.")] = 200,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Print the median ratio of the speeds and its spread."""
    with Model(model) as loaded:
        compare(loaded, rounds, tokens, threads)


if __name__ == "__main__":
    typer.run(main)
