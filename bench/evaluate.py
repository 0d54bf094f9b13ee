#!/usr/bin/env python3
"""Queries per second of the fast evaluation / llama-cpp-python asked question by question, interleaved."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import llama_cpp
import numpy as np
import typer

from ropebend import Model
from ropebend.evaluate import DEPTHS, KVEvaluator
from ropebend.tasks import kv


def main(
    keys: Annotated[int, typer.Option(help="Key-value pairs per JSON object.")] = 56,
    samples: Annotated[int, typer.Option(help="JSON objects, each asked at 5 depths.")] = 6,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Print the ratio against `Llama`, reset for each question and with its own prefix match."""
    path = Path(str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf"))
    items = kv.generate(keys, samples, seed=11)
    with Model(path) as model, KVEvaluator(model, items, n_threads=threads) as evaluator:
        llm = llama_cpp.Llama(
            str(path), n_ctx=evaluator.n_tokens, n_threads=threads, n_threads_batch=threads, verbose=False
        )

        def fast(sample: kv.Sample) -> list[bool]:
            return [a.correct for a in evaluator.run(sample)]

        def slow(sample: kv.Sample, reset: bool) -> list[bool]:
            verdicts = []
            for q in kv.questions(sample, DEPTHS):
                if reset:
                    llm.reset()
                answer = llm(q.prompt, max_tokens=100, temperature=0)["choices"][0]["text"]
                verdicts.append(kv.contains(answer, q.value))
            return verdicts

        roads = {
            "ropebend": fast,
            "Llama, reset": lambda s: slow(s, True),
            "Llama, prefix match": lambda s: slow(s, False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in roads}
        differ = 0
        for i, sample in enumerate(items):
            verdicts = {}
            for name in list(roads)[i % 3 :] + list(roads)[: i % 3]:
                started = time.perf_counter()
                verdicts[name] = roads[name](sample)
                seconds[name].append(time.perf_counter() - started)
            differ += sum(a != b for a, b in zip(verdicts["ropebend"], verdicts["Llama, reset"], strict=True))
        llm.close()
    print(f"{keys} pairs, {samples} JSON objects x {len(DEPTHS)} depths, {threads} thread(s)")
    for name, spent in seconds.items():
        print(f"{name:20} {samples * len(DEPTHS) / sum(spent):7.2f} queries/s")
    for name in list(roads)[1:]:
        ratio = np.array(seconds[name]) / np.array(seconds["ropebend"])
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        print(f"ropebend / {name}: {middle:.1f} (quartiles {low:.1f} to {high:.1f})")
    print(f"verdicts that differ from Llama's: {differ} of {samples * len(DEPTHS)}")


if __name__ == "__main__":
    typer.run(main)
