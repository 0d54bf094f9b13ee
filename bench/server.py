#!/usr/bin/env python3
r"""Throughput and shared-document latency of this server against llama-server and llama_cpp.server, interleaved.

Start the servers first, one model, the same threads (docs/server.md has the commands), then
  bench/server.py --ours http://127.0.0.1:8080 --llama-server http://127.0.0.1:8081 \
                  --llama-cpp-python http://127.0.0.1:8082
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.request
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer
from big_model import words


@dataclass
class Reply:
    """seconds until the first token and until the last; tokens generated."""

    first: float
    total: float
    tokens: int


async def complete(url: str, prompt: str, max_tokens: int, stream: bool) -> Reply:
    """One completion over a plain socket: the client must cost as little as it can, it shares the cores."""
    parts = urlsplit(url)
    ask: dict[str, Any] = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
    if stream:
        ask["stream_options"] = {"include_usage": True}
    body = json.dumps(ask).encode()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"error: {url}: {status.decode().strip()}: {(await reader.read()).decode()[-300:]}")
    data, first = b"", 0.0
    while part := await reader.read(2**16):
        data += part
        if not first and (not stream or b"data: " in data):
            first = time.perf_counter() - started
    total = time.perf_counter() - started
    writer.close()
    counts = re.findall(rb'"completion_tokens": ?(\d+)', data)
    tokens = int(counts[-1]) if counts else data.count(b"data: ") - 2
    return Reply(first, total, tokens)


async def closed_loop(url: str, prompts: list[str], clients: int, max_tokens: int, stream: bool) -> tuple[float, int]:
    """All prompts by so many clients, each asking again when it has its answer: (seconds, tokens)."""
    queue, tokens = list(prompts), 0

    async def client() -> None:
        nonlocal tokens
        while queue:
            reply = await complete(url, queue.pop(), max_tokens, stream)
            tokens += reply.tokens

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, tokens


def metric(url: str, name: str) -> float:
    """A counter of /metrics; NaN if the server does not have it."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except OSError:
        return float("nan")
    found = re.search(rf"^\w+:{name}(?:_total)? ([\d.e+-]+)$", text, re.M)
    return float(found[1]) if found else float("nan")


class Words:
    """Random text in words that are one token each for the benchmark model."""

    def __init__(self, seed: int):
        self._words = words()[:30000]
        self._random = random.Random(seed)

    def text(self, n: int) -> str:
        return "".join(self._random.choices(self._words, k=n))


def quartiles(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} (quartiles {low:.2f} to {high:.2f})"


def turns(urls: dict[str, str], i: int) -> list[str]:
    """The servers, another one first each round."""
    names = list(urls)
    return names[i % len(names) :] + names[: i % len(names)]


def throughput(urls: dict[str, str], words: Words, clients: int, rounds: int, per_client: int, stream: bool) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in urls}
    spent = dict.fromkeys(("step_seconds", "decode_seconds", "sample_seconds", "n_decode"), 0.0)
    for i in range(rounds + 1):
        for name in turns(urls, i):
            slow = name == "llama_cpp.server"  # one at a time: a few requests tell its speed
            n = max(clients if slow else clients * per_client, 12)
            prompts = [words.text(24) for _ in range(n)]
            before = {k: metric(urls[name], k) for k in spent}
            seconds, tokens = asyncio.run(closed_loop(urls[name], prompts, clients, 64, stream))
            if i > 0:  # the first round warms up
                speeds[name].append(tokens / seconds)
                if name == "ours":
                    spent = {k: v + metric(urls[name], k) - before[k] for k, v in spent.items()}
    print(f"\n{clients} clients, 24 prompt tokens, 64 output tokens, {'streamed' if stream else 'not streamed'}")
    for name, values in speeds.items():
        print(f"  {name:17} {np.median(values):8.1f} tokens/s")
    for name in list(urls)[1:]:
        print(f"  ours / {name}: {quartiles([a / b for a, b in zip(speeds['ours'], speeds[name], strict=True)])}")
    outside = spent["step_seconds"] - spent["decode_seconds"] - spent["sample_seconds"]
    share, each = outside / spent["step_seconds"], 1e3 * spent["step_seconds"] / spent["n_decode"]
    print(f"  ours: {each:.1f} ms a step, outside llama.cpp's decode and sampling {share:.1%} of it")


def shared_document(urls: dict[str, str], words: Words, rounds: int, n_document: int, clients: int) -> None:
    total: dict[str, list[float]] = {name: [] for name in urls}
    first: dict[str, list[float]] = {name: [] for name in urls}
    computed: dict[str, list[float]] = {name: [] for name in urls}

    async def burst(url: str, document: str) -> list[Reply]:
        return await asyncio.gather(*(complete(url, document + words.text(16), 64, True) for _ in range(clients)))

    for i in range(rounds):
        for name in turns(urls, i):
            document = words.text(n_document)
            before = metric(urls[name], "prompt_tokens")
            started = time.perf_counter()
            replies = asyncio.run(burst(urls[name], document))
            total[name].append(time.perf_counter() - started)
            first[name] += [r.first for r in replies]
            computed[name].append(metric(urls[name], "prompt_tokens") - before)
    print(f"\n{clients} clients at once, one document of {n_document} tokens, 16 tokens of question, 64 output tokens")
    for name in urls:
        median, p95 = np.quantile(first[name], [0.5, 0.95])
        print(
            f"  {name:17} total {np.median(total[name]):7.2f} s, prompt tokens computed "
            f"{np.median(computed[name]):,.0f}, first token: median {median:6.2f} s, p95 {p95:6.2f} s"
        )
    for name in list(urls)[1:]:
        print(f"  time of {name} / ours: {quartiles([b / a for a, b in zip(total['ours'], total[name], strict=True)])}")


def main(
    ours: Annotated[str, typer.Option(help="URL of `ropebend serve`.")],
    llama_server: Annotated[str | None, typer.Option(help="URL of llama-server, started with --metrics.")] = None,
    llama_cpp_python: Annotated[str | None, typer.Option(help="URL of llama_cpp.server.")] = None,
    clients: Annotated[str, typer.Option(help="Numbers of clients; empty: leave these runs out.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(help="Rounds; each asks every server.")] = 3,
    per_client: Annotated[int, typer.Option(help="Requests of each client in a round.")] = 3,
    stream: Annotated[bool, typer.Option(help="Stream the answers of the throughput runs, too.")] = False,
    document: Annotated[int, typer.Option(help="Tokens of the shared document; 0: leave this run out.")] = 3000,
    document_rounds: Annotated[int, typer.Option(help="Rounds with a shared document.")] = 3,
) -> None:
    """Print speeds, and ratios with quartiles over the rounds."""
    urls = {"ours": ours}
    if llama_server is not None:
        urls["llama-server"] = llama_server
    if llama_cpp_python is not None:
        urls["llama_cpp.server"] = llama_cpp_python
    source = Words(seed=1)
    for n in [int(part) for part in clients.split(",") if part]:
        throughput(urls, source, n, rounds, per_client, stream)
    if document:
        urls.pop("llama_cpp.server", None)  # one at a time; the bar is llama-server
        shared_document(urls, source, document_rounds, document, 16)


if __name__ == "__main__":
    typer.run(main)
