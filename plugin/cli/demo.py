"""`ropebend demo`: the main job end to end on the bundled model: measure, search, write, serve, ask over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from importlib import resources
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from ropebend.cli import options as o
from ropebend.errors import RopebendError


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the demo makes.")] = Path("demo"),
    keys: o.Keys = 48,
    budget: Annotated[int, typer.Option(min=20, help="Sets of scales to measure.")] = 120,
    seed: o.Seed = 1,
    threads: o.Threads = 0,
) -> None:
    """Show on the bundled model what ropebend does, well beyond the length the model was trained at."""
    from ropebend.cli.search import draw, print_outcome, search_with_progress
    from ropebend.files import write_json
    from ropebend.model import Model
    from ropebend.search.job import Settings
    from ropebend.tasks import kv

    settings = Settings(n_search=6, n_validation=16, n_test=40, budget=budget, seed=seed, n_threads=threads)
    items = kv.generate(keys, settings.n_search + settings.n_validation + settings.n_test, seed)
    factors, scaled = out / "factors.json", out / "needle.ropebend.gguf"
    model = resources.files("ropebend.models.needle") / "needle-Q8_0.gguf"
    with resources.as_file(model) as path:
        with Model(path) as loaded:
            print(
                f"1. search: {loaded.info.name} was trained at {loaded.info.n_ctx_train} tokens, {keys} pairs need more"
            )
            outcome = search_with_progress(loaded, items, settings, {"name": "kv", "keys": keys})
        title = f"needle, {keys} key-value pairs, up to {outcome.n_tokens} tokens (trained at 1,024)"
        write_json(factors, outcome.layers.to_json())
        print(f"\n2. write the scales into the GGUF: add_scales needle-Q8_0.gguf {factors}")
        add = [
            sys.executable,
            "-m",
            "ropebend.convert.add_scales",
            str(path),
            str(factors),
            "-o",
            str(scaled),
            "--force",
        ]
        if subprocess.run(add, check=False).returncode != 0:
            raise RopebendError(f"{scaled}: add_scales failed, see above")
    print(f"\n3. serve {scaled} and ask over HTTP")
    n_right, n_asked = _ask_over_http(
        scaled, [q for s in items[-4:] for q in kv.questions(s, settings.depths)], outcome
    )
    print(f"   {n_right} of {n_asked} answers hold the right value\n")
    print_outcome(outcome, title)
    if outcome.tests is not None:
        draw(outcome, out / "demo.png", title)
        print(f"\npicture: {out / 'demo.png'}")
    print(f"model:   {scaled}\n\nyour own model: ropebend search MODEL.gguf --keys 75 -o factors.json")


def _ask_over_http(model: Path, questions: list[Any], outcome: Any) -> tuple[int, int]:
    """Start a real server on the file, ask it, stop it: (right answers, questions)."""
    from ropebend.tasks import kv

    command = [sys.executable, "-m", "ropebend.cli", "serve", str(model), "--port", "0", "-c", str(outcome.n_tokens)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = _wait_for_url(server.stderr)
            right = 0
            for i, q in enumerate(questions):
                answer = _complete(url, q.prompt)
                hit = kv.contains(answer, q.value)
                right += hit
                if i < 3:
                    print(
                        f"   depth {q.depth:g}: {answer.strip()[:44]}  {'right' if hit else 'wrong, wanted ' + q.value}"
                    )
            return right, len(questions)
        finally:
            server.terminate()
            server.stderr and server.stderr.read()


def _wait_for_url(log: IO[str]) -> str:
    """The URL from the server's log, once it says that the model is ready."""
    url, lines = "", []
    for line in log:
        lines.append(line.rstrip())
        if "http://" in line:
            url = line[line.index("http://") :].split()[0].rstrip(".,;)")
        if url and "ready" in line:
            return url
    raise RopebendError("the server ended before it was ready: " + (lines[-1] if lines else "no message"))


def _complete(url: str, prompt: str) -> str:
    body = json.dumps({"prompt": prompt, "max_tokens": 40, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
    try:
        with direct.open(request, timeout=60) as reply:
            return str(json.load(reply)["choices"][0]["text"])
    except OSError as e:
        raise RopebendError(f"{url}: {e}") from None
