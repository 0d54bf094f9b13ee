#!/usr/bin/env python3
"""Prefill by --ubatch-size and --flash-attn, interleaved: bench/ubatch.py MODEL.gguf."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ropebend import Context, Model
from ropebend.runtime import available_threads


def main(
    model: Annotated[Path, typer.Argument(help="GGUF.")],
    tokens: Annotated[int, typer.Option(min=64, help="Of the prompt.")] = 1024,
    sizes: Annotated[str, typer.Option(help="Tokens per graph, between commas.")] = "64,128,256,512",
    rounds: Annotated[int, typer.Option(min=1, help="Each measures every setting once.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads (0: all this process may use).")] = 0,
    gpu_layers: Annotated[int, typer.Option(min=-1, help="Layers on the GPU (-1: all).")] = 0,
) -> None:
    """Print tokens per second, and each setting's speed / the default's (ubatch 256, no flash attention)."""
    options = [*itertools.product((False, True), map(int, sizes.split(",")))]
    default = (False, 256)
    options += [default] * (default not in options)
    spent: dict[tuple[bool, int], list[float]] = {option: [] for option in options}
    with Model(model, n_gpu_layers=gpu_layers) as loaded:
        prompt = np.random.default_rng(0).integers(0, loaded.n_vocab, tokens).tolist()
        for number in range(rounds + 1):
            for flash, size in options:
                with Context(
                    loaded, n_ctx=tokens + 64, n_batch=max(512, size), n_ubatch=size, flash_attn=flash, scaling=None,
                    n_threads=threads or available_threads(), hooked=False,
                ) as context:  # fmt: skip
                    context.decode(prompt[:size], 0)  # warms up
                    context.clear()
                    started = time.perf_counter()
                    context.decode(prompt, 0)
                    context.logits()
                    if number:
                        spent[flash, size].append(time.perf_counter() - started)
    for (flash, size), seconds in spent.items():
        ratio = np.median(np.array(spent[default]) / np.array(seconds))
        name = f"ubatch {size}{', flash attention' if flash else ''}"
        print(f"{name:28} {tokens / np.median(seconds):8,.0f} tokens/s  {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
