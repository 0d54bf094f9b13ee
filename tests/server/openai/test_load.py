"""Many clients at once: a short soak over HTTP, and nothing is lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from ropebend.model import Model

from ..conftest import EXACT, N_CTX_TRAIN, Server, wait_for
from ..exactness import Reference, assert_same

N_CLIENTS, N_REQUESTS, N_NEW = 12, 12, 20


def test_under_load_nothing_is_lost_and_greedy_answers_are_those_of_a_quiet_context(
    start: Callable[..., Server], models: dict[str, Path]
) -> None:
    server = start(models["plain"], *EXACT, "--parallel", "5", "--queue-size", "100").wait_until_ready()
    document = "the happy dog and a big little sun "
    prompts = [document * (i % 4) + "abcdefghij"[i:] for i in range(10)]
    answers: list[tuple[str, str]] = []
    with httpx.Client(base_url=server.url, timeout=60) as http:
        wrong: list[Any] = []
        counts = {"whole": 0, "hung up": 0, "bad": 0}

        def client(seed: int) -> None:
            r = random.Random(seed)
            with httpx.Client(base_url=server.url, timeout=60) as mine:
                for _ in range(N_REQUESTS):
                    kind = r.choice(["whole", "whole", "hung up", "bad"])
                    prompt = r.choice(prompts)
                    if kind == "whole":
                        body = {"prompt": prompt, "max_tokens": N_NEW, "temperature": 0}
                        text = mine.post("/v1/completions", json=body).json()["choices"][0]["text"]
                        answers.append((prompt, text))
                    elif kind == "hung up":
                        body = {"prompt": "a", "max_tokens": N_CTX_TRAIN - 1, "stream": True, "n": 3, "seed": seed}
                        with mine.stream("POST", "/v1/completions", json=body) as answer:
                            next(answer.iter_lines())
                    elif mine.post("/v1/completions", json={"prompt": [], "n": 0}).status_code != 400:
                        wrong.append("bad body")
                    counts[kind] += 1

        threads = [threading.Thread(target=client, args=(i,)) for i in range(N_CLIENTS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert wrong == []
        assert sum(counts.values()) == N_CLIENTS * N_REQUESTS

        def at_rest() -> dict[str, int] | None:
            requests: dict[str, int] = http.get("/props").json()["requests"]
            return None if requests["open"] else requests

        requests = wait_for(at_rest)
        assert requests["failed"] == 0
        assert requests["done"] + requests["cancelled"] == counts["whole"] + counts["hung up"]
        slots = http.get("/status").json()
        assert (slots["slots"], slots["n_waiting"]) == ([], 0)
        # a prompt as long as the cache pushes everything out: then no cell but its own is in use
        whole = http.post("/v1/completions", json={"prompt": [40] * N_CTX_TRAIN, "max_tokens": 0})
        assert whole.status_code == 200
        kv = http.get("/status").json()["kv"]
        assert (kv["n_used"], kv["n_cached_sequences"]) == (N_CTX_TRAIN, 1)
        assert kv["n_free_sequences"] == kv["n_sequences"] - 1
    assert server.stop() == 0
    with Model(models["plain"]) as model:
        tokens = {prompt: model.tokenize(prompt) for prompt in prompts}
    reference = Reference(models["plain"], None, False, N_CTX_TRAIN)
    assert_same([text for _, text in answers], reference, [tokens[prompt] for prompt, _ in answers], N_NEW)
