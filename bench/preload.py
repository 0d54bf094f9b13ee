#!/usr/bin/env python3
"""The preload library under real llama.cpp programs: python bench/preload.py PEERS MODEL TEXT.

PEERS is the bin folder of a llama.cpp built with -DBUILD_SHARED_LIBS=ON. Compared are: llama-perplexity with uniform
scales in the file and with --rope-freq-scale; with layer scales, and a perplexity computed here; llama-server and
ropebend serve, greedy; llama-server with context shift and with --rope-freq-scale; and llama-bench with and without.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ropebend import Context, Model
from ropebend.evaluate import Evaluation, open_evaluator
from ropebend.runtime import Runtime
from ropebend.tasks.text import Perplexity

EPSILON = 0.05  # greedy texts may part where the two best logits are closer than this
ROPEBEND = [sys.executable, "-m", "ropebend.cli"]


def output(*command: object) -> str:
    """Stdout and stderr of a command.  Raises SystemExit with its last lines if it fails."""
    run = subprocess.run(
        [str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if run.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{run.stdout[-1500:]}")
    return run.stdout


def with_scales(model: Path, scales: list[float], folder: Path) -> Path:
    """A copy of `model` that carries `scales`."""
    factors, out = folder / "factors.json", folder / f"scaled-{len(list(folder.iterdir()))}.gguf"
    factors.write_text(json.dumps(scales))
    output(*ROPEBEND, "add-scales", model, factors, "-o", out)
    return out


def chunks(*command: object) -> str:
    """llama-perplexity's figures: one for each chunk, and the last line."""
    for _ in range(20):  # its log thread sometimes loses the end of the output, with the library and without
        log = output(*command)
        if "Final estimate: PPL" in log:
            return " ".join(re.findall(r"\[\d+\][\d.]+|PPL = [\d.]+ \+/- [\d.]+", log))
    raise SystemExit(f"no figures in llama-perplexity's output:\n{log[-1500:]}")


def perplexity(path: Path, text: Path, n_ctx: int, n_chunks: int) -> float:
    """Ropebend's own, of the first chunks."""
    with (
        Model(path) as model,
        open_evaluator(model, Perplexity(text=text, length=n_ctx), n_chunks, Runtime(n_threads=1)) as evaluator,
    ):
        evaluator.set_scaling(model.info.scaling)
        return Evaluation.of(evaluator.task, [evaluator.measure(i) for i in range(n_chunks)]).figure


@contextlib.contextmanager
def server(*command: object) -> Iterator[str]:
    """Run a server that takes --port; gives its address once it is healthy."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*map(str, command), "--port", str(port)], stdout=log, stderr=log)
        try:
            for _ in range(1200):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                if process.poll() is not None:
                    break
                time.sleep(0.1)
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"{command[0]} ended:\n{log.read()[-1500:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def complete(address: str, prompt: str, n: int, **more: object) -> str:
    """Greedy text of /v1/completions."""
    body = {"model": "m", "prompt": prompt, "max_tokens": n, "temperature": 0, "seed": 1, **more}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        answer: Any = json.load(response)
    return str(answer["choices"][0]["text"])


def margin(path: Path, prompt: str, a: str, b: str) -> float:
    """How far the two best logits are apart where the greedy texts a and b part."""
    common = "".join(x for x, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    with Model(path) as model, Context(model, n_ctx=1024) as context:
        context.decode(model.tokenize(prompt + common), 0)
        best = np.sort(context.logits(-1))[-2:]
    return float(best[1] - best[0])


def main(
    peers: Annotated[Path, typer.Argument(help="Folder with llama-perplexity, llama-server and llama-bench.")],
    model: Annotated[Path, typer.Argument(help="A small GGUF of architecture llama without scales.")],
    text: Annotated[Path, typer.Argument(help="Running text.")],
    n_ctx: Annotated[int, typer.Option(help="Context of the perplexity.")] = 512,
    n_chunks: Annotated[int, typer.Option(help="Chunks of it.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds of llama-bench with and without.")] = 6,
) -> None:
    """Print what was compared and what came of it; exit code 1 if something differs."""
    failed = 0

    def report(title: str, ok: bool, detail: str) -> None:
        nonlocal failed
        failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {title}: {detail}", flush=True)

    running = text.read_text()
    with Model(model) as loaded:
        n_layer = loaded.info.n_layer
    scales = [1.0 + 0.25 * (i % 3) for i in range(n_layer)]
    preloaded = [*ROPEBEND, "exec", "--"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uniform, layers = with_scales(model, [2.0] * n_layer, folder), with_scales(model, scales, folder)

        options = ["-f", text, "-c", n_ctx, "--chunks", n_chunks, "-fa", "off"]
        by_flag = chunks(peers / "llama-perplexity", "-m", model, "--rope-freq-scale", 0.5, *options)
        by_file = chunks(*preloaded, peers / "llama-perplexity", "-m", uniform, *options)
        bare = chunks(peers / "llama-perplexity", "-m", uniform, *options)
        report("llama-perplexity, scale 2, against --rope-freq-scale 0.5", by_file == by_flag, by_file[-28:])
        report("and without the library the same file runs unscaled", bare != by_file, bare[-28:])
        theirs = float(
            chunks(*preloaded, peers / "llama-perplexity", "-m", layers, *options).split("PPL = ")[1].split()[0]
        )
        ours = perplexity(layers, text, n_ctx, n_chunks)
        same = abs(theirs / ours - 1) < 1e-3
        report("llama-perplexity, layer scales, against ropebend", same, f"{theirs:.4f} and {ours:.4f}")

        prompts = [running[i : i + 400] for i in range(0, 4000, 500)]
        common = ["-c", 1024, "-np", 1, "-fa", "off", "-ctk", "f16", "--no-ui"]
        with server(*preloaded, peers / "llama-server", "-m", layers, *common) as address:
            llama_server = [complete(address, p, 48) for p in prompts]
        with server(*ROPEBEND, "serve", layers, "-c", 1024, "--alias", "m", "--flash-attn", "off") as address:
            serve = [complete(address, p, 48) for p in prompts]
        margins = [margin(layers, p, a, b) for p, a, b in zip(prompts, llama_server, serve, strict=True) if a != b]
        detail = f"{len(prompts) - len(margins)} of {len(prompts)} texts equal; margins of others: {margins or 'none'}"
        report("llama-server, layer scales, against ropebend serve", all(m < EPSILON for m in margins), detail)

        common = ["-c", 128, "-np", 1, "-fa", "off", "--no-ui", "--context-shift"]
        with server(*preloaded, peers / "llama-server", "-m", uniform, *common) as address:
            shifted = complete(address, prompts[0][:100], 400, ignore_eos=True)
        with server(peers / "llama-server", "-m", model, "--rope-freq-scale", 0.5, *common) as address:
            expected = complete(address, prompts[0][:100], 400, ignore_eos=True)
        detail = f"{len(shifted)} characters, 400 tokens through a cache of 128"
        report("llama-server, context shift, against --rope-freq-scale 0.5", shifted == expected, detail)

        ratios = []
        for i in range(rounds + 1):
            pair = [("with", preloaded), ("without", [])]
            speed = {}
            for road, prefix in pair if i % 2 else reversed(pair):
                log = output(
                    *prefix, peers / "llama-bench", "-m", layers, "-p", 0, "-n", 128, "-t", 1, "-r", 3, "-o", "jsonl"
                )
                speed[road] = json.loads(next(x for x in log.splitlines() if x.startswith("{")))["avg_ts"]
            ratios.append(speed["with"] / speed["without"])
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    print(f"llama-bench tg128 with the library / without: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}")
    raise typer.Exit(failed > 0)


if __name__ == "__main__":
    typer.run(main)
