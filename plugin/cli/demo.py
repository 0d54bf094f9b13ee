"""`ropebend demo`: the main job end to end on the bundled model: measure, search, write, serve, ask over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from ropebend.cli import options as o
from ropebend.errors import RopebendError
from ropebend.runtime import Runtime, available_threads

if TYPE_CHECKING:
    from ropebend.search.outcome import Outcome


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the demo makes.")] = Path("demo"),
    keys: Annotated[int, typer.Option(min=1, help="Key-value pairs per JSON object.")] = 56,
    budget: Annotated[int, typer.Option(min=20, help="Sets of scales to measure.")] = 240,
    seed: o.Seed = 1,
    threads: o.Threads = 0,
    n_gpu_layers: o.GpuLayers = 0,
) -> None:
    """Show on the bundled model what ropebend does, well beyond the length the model was trained at."""
    from ropebend.cli.search_view import print_outcome, search_with_progress
    from ropebend.search import folder as run_folder
    from ropebend.search.spec import SearchSpec, TaskSpec

    factors, scaled = out / "factors.json", out / "needle.ropebend.gguf"
    with resources.as_file(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf") as path:
        spec = SearchSpec(
            model=str(path),
            tasks=(TaskSpec(name="kv", options={"keys": keys, "seed": f"demo-{seed}"}),),
            controls=("uniform",),
            budget=str(budget),
            test=40,
            seed=seed,
            workers=available_threads(),
            runtime=Runtime(n_threads=threads, n_gpu_layers=n_gpu_layers),
        )
        run_folder.check_free(out, force=True, names=[scaled.name])
        print(f"1. search: needle was trained at 1,024 tokens, {keys} pairs need more")
        outcome = search_with_progress(out, run_folder.start(out, spec, force=True))
        if outcome.interrupted:
            raise KeyboardInterrupt
        print(f"\n2. write the scales into the GGUF: add_scales needle-Q8_0.gguf {factors}")
        add = [sys.executable, "-m", "ropebend.convert.add_scales", path, factors, "-o", scaled, "--force"]
        if subprocess.run([str(a) for a in add], check=False).returncode != 0:
            raise RopebendError(f"{scaled}: add_scales failed, see above")
    print(f"\n3. serve {scaled} and ask over HTTP")
    n_right, n_asked = _ask_over_http(scaled, outcome, ["--threads", str(threads), "--gpu-layers", str(n_gpu_layers)])
    print(f"   {n_right} of {n_asked} answers hold the right value\n")
    print_outcome(outcome)
    print(f"\nreport:  {out / 'report.html'}\npicture: {out / 'accuracy.png'}, {out / 'scales.png'}")
    print(f"model:   {scaled}\n\nyour own model: ropebend search MODEL.gguf --keys 75 -o search")


def _ask_over_http(model: Path, outcome: Outcome, options: list[str]) -> tuple[int, int]:
    """Serve the file for real, ask about the last test items, stop the server: (right answers, questions)."""
    from ropebend.tasks.task import RetrievalTask

    task = outcome.tasks[0]
    assert isinstance(task, RetrievalTask)
    end = outcome.spec.n_search + outcome.spec.test
    questions = [q for i in range(end - 4, end) for q in task.item(i).questions]
    command = [sys.executable, "-m", "ropebend.cli", "serve", str(model), "--port", "0", "-c", str(outcome.n_ctx)]
    command += options
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = _wait_for_url(server.stderr)
            right = 0
            for i, q in enumerate(questions):
                answer = _complete(url, q.text)
                hit = task.is_right(answer, q)
                right += hit
                if i < 3:
                    verdict = "right" if hit else f"wrong, wanted {q.answers[0]}"
                    print(f"   depth {q.depth:g}: {answer.strip()[:44]}  {verdict}")
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
