#!/usr/bin/env python3
"""Soak: many clients with random prompts, disconnects and bad bodies; then count slots, cells and memory.

Starts a server of its own: bench/soak.py MODEL.gguf --minutes 10
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

BAD_BODIES: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b'{"prompt": 5}',
    b'{"prompt": "a", "n": 0}',
    b'{"prompt": "a", "max_tokens": 1000000}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "no_such": 1}',
    b'{"prompt": "a", "grammar": "root ::= ("}',
]


class Client:
    """One client: asks, hangs up in the middle, sends nonsense, and counts what came of it."""

    def __init__(self, http: httpx.AsyncClient, documents: list[str], seed: int, seen: Counter[str]):
        self.http = http
        self.documents = documents
        self.random = random.Random(seed)
        self.seen = seen

    def body(self) -> dict[str, Any]:
        r = self.random
        prompt = r.choice(self.documents)[: r.randrange(1, 1500)] if r.random() < 0.5 else ""
        prompt += "".join(chr(r.randrange(32, 0x250)) for _ in range(r.randrange(1, 40)))
        return {
            "prompt": prompt,
            "max_tokens": r.randrange(0, 60),
            "n": r.choice([1, 1, 1, 2]),
            "temperature": r.choice([0, 0.7, 1.5]),
            "stream": r.random() < 0.5,
            "echo": r.random() < 0.1,
            "logprobs": r.choice([None, None, 2]),
            "stop": r.choice([None, "e", ["\n\n", "zz"]]),
        }

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            kind = self.random.choices(["whole", "hang up", "bad", "embed"], [6, 3, 1, 1])[0]
            try:
                self.seen[await getattr(self, kind.replace(" ", "_"))()] += 1
            except (httpx.HTTPError, ValueError) as e:
                self.seen[f"error: {kind}: {type(e).__name__}"] += 1

    async def whole(self) -> str:
        body = self.body()
        answer = await self.http.post("/v1/completions", json=body)
        if answer.status_code == 503:
            return "queue full"
        if answer.status_code != 200:
            return f"error: {answer.status_code} {answer.text[:100]}"
        if body["stream"]:
            return "ok" if answer.text.endswith("data: [DONE]\n\n") else f"error: stream ends {answer.text[-100:]!r}"
        return "ok" if len(answer.json()["choices"]) == body["n"] else "error: choices"

    async def hang_up(self) -> str:
        body = {**self.body(), "stream": True, "max_tokens": 500, "n": 1}
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return "queue full" if answer.status_code == 503 else f"error: {answer.status_code}"
            n = self.random.randrange(0, 20)
            async for _ in answer.aiter_lines():
                n -= 1
                if n < 0:
                    break
        return "hung up"

    async def bad(self) -> str:
        content = self.random.choice(BAD_BODIES)
        answer = await self.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        return "refused" if answer.status_code == 400 else f"error: {content!r} gave {answer.status_code}"

    async def embed(self) -> str:
        answer = await self.http.post("/v1/embeddings", json={"input": self.random.choice(self.documents)[:300]})
        if answer.status_code == 503:
            return "queue full"
        return "ok" if answer.status_code == 200 else f"error: {answer.status_code} {answer.text[:100]}"


def memory(pid: int) -> float:
    """Resident MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def soak(url: str, pid: int, minutes: float, clients: int, seed: int) -> tuple[Counter[str], list[float]]:
    r = random.Random(seed)
    documents = ["".join(r.choices(["one ", "day ", "the ", "dog ", "saw ", "a ", "cat. "], k=500)) for _ in range(5)]
    seen: Counter[str] = Counter()
    resident: list[float] = []
    until = time.monotonic() + 60 * minutes
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:
        tasks = [asyncio.create_task(Client(http, documents, i, seen).run(until)) for i in range(clients)]
        while time.monotonic() < until:
            await asyncio.sleep(min(10, 6 * minutes))
            resident.append(memory(pid))
            print(f"  {resident[-1]:.0f} MiB, {dict(seen)}", flush=True)
        await asyncio.gather(*tasks)
    return seen, resident


def count(url: str) -> list[str]:
    """What is left of a server that nobody asks any more: the losses."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        until = time.monotonic() + 60
        while (requests := http.get("/props").json()["requests"])["open"] and time.monotonic() < until:
            time.sleep(0.05)
        slots = http.get("/status").json()
        # a prompt as long as the cache pushes everything else out: then only its own cells are in use
        body = {"prompt": [40] * slots["kv"]["n_cells"], "max_tokens": 0}
        try:
            last = str(http.post("/v1/completions", json=body).status_code)
        except httpx.TimeoutException:
            last = "no answer"
        kv = http.get("/status").json()["kv"]
    print(json.dumps({"requests": requests, "kv": slots["kv"], "kv at the end": kv}))
    lost = {
        "open requests": requests["open"],
        "failed requests": requests["failed"],
        "busy slots": len(slots["slots"]),
        "waiting requests": slots["n_waiting"],
        "cells": kv["n_used"] - kv["n_cells"] if last == "200" else last,
        "sequences": kv["n_sequences"] - kv["n_free_sequences"] - kv["n_cached_sequences"],
    }
    return [f"{name}: {n}" for name, n in lost.items() if n]


def main(
    model: Annotated[Path, typer.Argument(help="GGUF.")],
    minutes: Annotated[float, typer.Option(help="How long.")] = 10,
    clients: Annotated[int, typer.Option(help="Clients at once.")] = 30,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
) -> None:
    """Exit 1 if anything but the provoked errors came, or a slot, a cell or memory was lost."""
    command = [sys.executable, "-m", "ropebend.server", str(model), "--port", "0", "-t", str(threads), "-c", "2048"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines: list[str] = []
        url = ""
        for line in server.stderr:
            lines.append(line)
            if found := re.search(r"listening on (http://\S+),", line):
                url = found[1]
            if line.rstrip().endswith("ready"):
                break
        else:
            raise SystemExit("".join(lines))
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        try:
            seen, resident = asyncio.run(soak(url, server.pid, minutes, clients, seed))
            lost = count(url)
        finally:
            server.terminate()
            code = server.wait()
            drain.wait()
    print(json.dumps({"seen": seen}))
    wrong = [k for k in seen if k.startswith("error")] + lost
    half = resident[len(resident) // 2 :]
    growth = max(half) - half[0]
    print(f"memory: {resident[0]:.0f} MiB at first, {half[0]:.0f} at half time, at most {max(half):.0f} after it")
    if growth > 20:
        wrong.append(f"memory grew by {growth:.0f} MiB in the second half")
    if code != 0:
        wrong.append(f"exit code {code}")
    print("FAILED: " + "; ".join(wrong) if wrong else "nothing was lost")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
