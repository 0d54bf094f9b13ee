#!/usr/bin/env python3
"""Queries per second of the fast evaluation / llama-cpp-python asked one by one, interleaved; and the bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Annotated, TypeVar

import llama_cpp
import numpy as np
import typer
from decode import NEEDLE

from ropebend import Context, Model
from ropebend.evaluate import RetrievalEvaluator
from ropebend.evaluate.retrieval import MAX_ANSWER_TOKENS
from ropebend.runtime import Runtime
from ropebend.tasks.kv import KVRetrieval

T = TypeVar("T")


def timed(work: Callable[[int], T], i: int) -> tuple[float, T]:
    started = time.perf_counter()
    result = work(i)
    return time.perf_counter() - started, result


def ratio_of_sums(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Ratio of two sums over the same items, with a 95 % bootstrap interval."""
    a, b = np.array(over), np.array(under)
    drawn = np.random.default_rng(0).integers(len(a), size=(10_000, len(a)))
    low, high = np.quantile(a[drawn].sum(axis=1) / b[drawn].sum(axis=1), [0.025, 0.975])
    return float(a.sum() / b.sum()), float(low), float(high)


def main(
    keys: Annotated[int, typer.Option(help="Key-value pairs per JSON object.")] = 56,
    samples: Annotated[int, typer.Option(help="JSON objects, each asked at 5 depths.")] = 6,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    model_path: Annotated[Path, typer.Option("--model", help="GGUF.")] = NEEDLE,
) -> None:
    """Print the ratios against `Llama`, reset for each question and with its own prefix match.

    The bound of a ratio is what each road must compute, priced alike: prompt tokens at the price of bare llama_decode
    calls of the evaluator's batch size; `Llama`'s answer tokens at that of single-token decodes, ours, of which many go
    into one decode, at that of prompt tokens.
    """
    task = KVRetrieval(keys=keys, seed=11)
    runtime = Runtime(n_threads=threads)
    with Model(model_path) as model, RetrievalEvaluator(model, task, samples, runtime) as ours:
        llm = llama_cpp.Llama(
            str(model_path), n_ctx=ours.n_tokens, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        bare = Context(
            model, n_ctx=2 * ours.n_tokens, n_threads=threads, n_ubatch=runtime.n_ubatch, scaling=None, hooked=False
        )
        prompts = [[model.tokenize(q.text) for q in task.item(i).questions] for i in range(samples)]
        n_answer = n_searched = 0

        def slow(i: int, reset: bool) -> list[bool]:
            nonlocal n_answer
            verdicts = []
            llm.reset()  # what the road before left in the cache is not this one's prefix
            for q in task.item(i).questions:
                if reset:
                    llm.reset()
                reply = llm(q.text, max_tokens=MAX_ANSWER_TOKENS, temperature=0)
                n_answer += reset * reply["usage"]["completion_tokens"]
                verdicts.append(task.is_right(reply["choices"][0]["text"], q))
            return verdicts

        def prefill(i: int) -> None:
            """The tokens that must be computed, where they stand: what the prompts share, then all their ends."""
            bare.clear()
            n_shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts[i], strict=False)))
            bare.decode(prompts[i][0][:n_shared], 0)
            bare.decode([t for p in prompts[i] for t in p[n_shared:]], n_shared)

        def in_search(i: int) -> None:
            nonlocal n_searched
            before = ours.n_computed
            ours.answers(i, full=False)
            n_searched += ours.n_computed - before

        def steps(i: int) -> None:
            bare.clear()
            bare.decode(prompts[i][0], 0)
            started = time.perf_counter()
            for j in range(20):
                bare.decode([prompts[i][0][j]], len(prompts[i][0]) + j)
            spent["steps"].append(time.perf_counter() - started)

        roads: dict[str, Callable[[int], list[bool]]] = {
            "ropebend": lambda i: [a.correct for a in ours.answers(i)],
            "Llama, reset": lambda i: slow(i, True),
            "Llama, prefix match": lambda i: slow(i, False),
        }
        ours.answers(0)
        spent: dict[str, list[float]] = {name: [] for name in [*roads, "prefill", "steps", "search"]}
        verdicts: dict[str, list[bool]] = {name: [] for name in roads}
        computed = ours.n_computed
        for i in range(samples):
            names = list(roads)
            for name in names[i % 3 :] + names[: i % 3]:
                took, got = timed(roads[name], i)
                spent[name].append(took)
                verdicts[name] += got
            for name, work in (("search", in_search), ("prefill", prefill)):
                spent[name].append(timed(work, i)[0])
            steps(i)
        computed = ours.n_computed - computed - n_searched
        bare.close()
        llm.close()

    n_prompt = sum(len(p) for by_depth in prompts for p in by_depth)
    per_prompt_token = sum(spent["prefill"]) / computed
    per_step = sum(spent["steps"]) / (20 * samples)
    n_questions = samples * 5
    print(f"{keys} pairs ({n_prompt / n_questions:.0f} tokens), {samples} JSON objects x 5 depths, {threads} thread(s)")
    print(f"answer tokens: {n_answer}; prompt token {1e6 * per_prompt_token:.0f} us, step {1e3 * per_step:.2f} ms")
    must = {
        "ropebend": (computed + n_answer, 0),
        "Llama, reset": (n_prompt, n_answer),
        "Llama, prefix match": (computed, n_answer),
    }
    price = {name: tokens * per_prompt_token + n * per_step for name, (tokens, n) in must.items()}
    for name, (tokens, n) in must.items():
        rate = n_questions / sum(spent[name])
        print(f"{name:20} {rate:7.2f} queries/s; must compute {tokens} tokens together and {n} one by one")
    for name in list(roads)[1:]:
        ratio, low, high = ratio_of_sums(spent[name], spent["ropebend"])
        bound = price[name] / price["ropebend"]
        print(f"ropebend / {name}: {ratio:.2f} [{low:.2f}, {high:.2f}]; bound {bound:.2f}, {ratio / bound:.2f} of it")
    ratio, low, high = ratio_of_sums(spent["prefill"], spent["search"])
    print(f"prompt tokens per second as in a search / bare llama_decode: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    differ = sum(a != b for a, b in zip(verdicts["ropebend"], verdicts["Llama, reset"], strict=True))
    print(f"verdicts that differ from Llama's: {differ} of {n_questions}")


if __name__ == "__main__":
    typer.run(main)
