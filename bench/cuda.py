#!/usr/bin/env python3
"""Scales on a GPU: are they right while plans are swapped under CUDA graphs, and how fast is it: bench/cuda.py.

Needs a llama-cpp-python built with CUDA (bench/cuda.sh builds one and runs this).  What it checks:

cpu        logits under each plan against a process without a GPU: NMSE at most --tolerance, and at most a tenth of the
           distance to what any other plan gives
swapped    one context whose plan is swapped back and forth, many single-token decodes under each, so that llama.cpp
           captures and replays a CUDA graph between two swaps: the logits of contexts made for one plan, to the bit
alternate  two sequences of one context under a plan each, in turns of a few tokens: as if both had one, to the bit
uniform    a uniform scale s: the logits of rope_freq_scale = 1/s, to the bit
graphs     that graphs were captured meanwhile, by llama.cpp's own log; without that the rest would say nothing of them

Why it should work: with a graph callback llama.cpp hands its CUDA backend a view without a uid, and the backend then
compares every node, op_params among them, with the graph that it captured (ggml_cuda_graph_update_required).
On a CPU (--gpu-layers 0) all but the last runs too.  Exit code 1 if a check fails.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import big_model
import decode
import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
import typer
from search import kv_spec

from ropebend import Context, LayerScaling, Model
from ropebend.entry import run_app
from ropebend.errors import RopebendError, UsageError
from ropebend.native import captured_log
from ropebend.runtime import Runtime, available_threads
from ropebend.search import Listener, SearchSpec, run_search
from ropebend.search.cost import Cost
from ropebend.search.outcome import Generation

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

N_CTX = 256  # cells; one more and llama.cpp makes another graph
N_PROMPT = 64  # tokens before the single ones
TURN = 8  # tokens of a sequence before it is the other's turn: enough to capture a graph and replay it
CLOSER = 10  # times closer to the same plan on the CPU than to any other

Logits = npt.NDArray[np.float32]  # [n_tokens, n_vocab]


@app.command(help=__doc__)
def main(
    model: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="GGUF.", show_default="a random one, written")
    ] = None,
    size: Annotated[str, typer.Option(help=f"Of the random model: {', '.join(big_model.SHAPES)}.")] = "1b",
    folder: Annotated[Path, typer.Option(help="Where the random model is written, or found again.")] = Path("."),
    gpu_layers: Annotated[int, typer.Option(min=-1, help="Layers on the GPU (-1: all; 0: try this on a CPU).")] = -1,
    flash_attn: Annotated[bool, typer.Option("--flash-attn/--no-flash-attn", help="Use flash attention.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads (0: all this process may use).")] = 0,
    tokens: Annotated[int, typer.Option(min=TURN, max=N_CTX // 2 - N_PROMPT, help="Single-token decodes a run.")] = 48,
    tolerance: Annotated[float, typer.Option(help="Normalised mean square error against the CPU.")] = 1e-2,
    keys: Annotated[int, typer.Option(min=1, help="Key-value pairs per JSON object of the search.")] = 20,
    evaluations: Annotated[int, typer.Option(min=1, help="Of the search, each on 4 JSON objects x 5 depths.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Of the decode speed hooked / unhooked.")] = 20,
) -> None:
    if size not in big_model.SHAPES:
        raise UsageError(f"--size: expected one of {', '.join(big_model.SHAPES)}, got {size!r}")
    if gpu_layers != 0 and not lib.llama_supports_gpu_offload():
        raise RopebendError(
            "the installed llama.cpp has no GPU backend; bench/cuda.sh builds one (it needs nvcc), and --gpu-layers 0 "
            "runs all this on the CPU"
        )
    threads = threads or available_threads()
    path = model or big_model.write(folder / f"random-{size}-Q8_0.gguf", size)
    system = lib.llama_print_system_info().decode()
    print(f"{path.name}, {path.stat().st_size / 1e9:.2f} GB, GPU layers {gpu_layers}; {system}", flush=True)
    failed = 0
    expected = on_cpu(path, tokens, threads)
    with Model(path, n_gpu_layers=gpu_layers) as loaded:
        decoder = Decoder(loaded, tokens, threads, flash_attn)
        for ok, name, detail in checks(decoder, expected, tolerance, "CUDA" in system and gpu_layers != 0):
            print(f"{'ok  ' if ok else 'FAIL'} {name}: {detail}", flush=True)
            failed += not ok
    spec = kv_spec(
        path, keys, "cuda", controls=(), budget=str(evaluations), screen=4, finals=(), test=1,
        runtime=Runtime(threads, gpu_layers, flash_attn=flash_attn),
    )  # fmt: skip
    per_minute = evaluations_per_minute(spec)
    print(f"{per_minute:.1f} evaluations per minute, each 4 JSON objects of {keys} pairs x 5 depths", flush=True)
    with Model(path, n_gpu_layers=gpu_layers) as loaded:
        decode.compare(loaded, rounds, 200, threads)
    if failed:
        print(f"{failed} checks failed: scales cannot be trusted on this GPU")
        raise typer.Exit(1)


def plans(n_layer: int) -> dict[str, LayerScaling | None]:
    """Some that differ much."""
    depth = np.linspace(0.0, 1.0, n_layer)
    return {
        "unscaled": None,
        "uniform 2": LayerScaling.uniform(2.0, n_layer),
        "rising": LayerScaling(tuple(1.0 + 3.0 * depth)),
        "factors": LayerScaling((1.0,) * n_layer, layer_attn_factor=tuple(1.0 + 0.4 * depth)),
        "both": LayerScaling(tuple(4.0 - 3.0 * depth), layer_attn_factor=tuple(1.4 - 0.4 * depth)),
    }


class Decoder:
    """Feeds always the same tokens: a prompt, then one after another."""

    def __init__(self, model: Model, n_tokens: int, threads: int, flash_attn: bool = False):
        self.model = model
        self.plans = plans(model.info.n_layer)
        self.tokens = np.random.default_rng(0).integers(260, model.n_vocab, N_PROMPT + n_tokens).tolist()
        self._options: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": threads, "flash_attn": flash_attn}

    def context(self, scaling: LayerScaling | None, **options: Any) -> Context:
        """A context of this model."""
        return Context(self.model, scaling=scaling, **self._options, **options)

    def alone(self, scaling: LayerScaling | None, **options: Any) -> Logits:
        """Logits from a context made for this."""
        with self.context(scaling, **options) as context:
            return self.run(context)

    def run(self, context: Context) -> Logits:
        """Logits of the prompt's last token and of each single one."""
        return np.array(list(self.steps(context, 0)))

    def steps(self, context: Context, seq: int) -> Iterator[Logits]:
        """Decode the prompt, then token after token, each time the logits."""
        context.decode(self.tokens[:N_PROMPT], 0, seq)
        yield context.logits().copy()
        for pos in range(N_PROMPT, len(self.tokens)):
            context.decode(self.tokens[pos : pos + 1], pos, seq)
            yield context.logits().copy()

    def in_turns(self, *scalings: LayerScaling | None) -> list[Logits]:
        """Logits of two sequences of one context, each under its plan, TURN tokens at a time."""
        with self.context(None, n_seq_max=2) as context:
            walks = [self.steps(context, seq) for seq in range(2)]
            logits: list[list[Logits]] = [[], []]
            while len(logits[1]) <= len(self.tokens) - N_PROMPT:
                for seq, scaling in enumerate(scalings):
                    context.switch_plan(scaling.plan(N_CTX) if scaling is not None else None)
                    logits[seq] += itertools.islice(walks[seq], TURN)
        return [np.array(x) for x in logits]


def on_cpu(path: Path, n_tokens: int, threads: int) -> dict[str, Logits]:
    """Logits by plan from a process that sees no GPU: llama.cpp would use one for large batches in any case."""
    hidden = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")}
    os.environ.update(dict.fromkeys(hidden, "-1"))
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_by_plan, path, n_tokens, threads).result()
    finally:
        for name, value in hidden.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _by_plan(path: Path, n_tokens: int, threads: int) -> dict[str, Logits]:
    with Model(path) as model:
        decoder = Decoder(model, n_tokens, threads)
        return {name: decoder.alone(plan, hooked=plan is not None) for name, plan in decoder.plans.items()}


def checks(
    decoder: Decoder, expected: dict[str, Logits], tolerance: float, cuda: bool
) -> Iterator[tuple[bool, str, str]]:
    """Whether each holds, its name and what was found."""
    mine = {name: decoder.alone(plan) for name, plan in decoder.plans.items()}
    for name, logits in mine.items():
        error = nmse(logits, expected[name])
        other = min(nmse(logits, theirs) for n, theirs in expected.items() if n != name)
        detail = f"{name}: NMSE {error:.1e} to the CPU's, {other:.1e} to the nearest of another plan"
        yield error <= tolerance and error * CLOSER <= other, "cpu", detail

    names = list(mine)
    order = [*names, *names[-2::-1], *names[2:], *names[:2]]  # never the same twice running
    with decoder.context(None) as context, captured_log((1,)) as log:
        differ = []
        for name in order:
            context.set_scaling(decoder.plans[name])
            if not np.array_equal(decoder.run(context), mine[name]):
                differ.append(name)
    captured, reset = (sum(f"warmup {what}" in line for line in log) for what in ("complete", "reset"))
    yield not differ, "swapped", f"{len(order)} swaps, {', '.join(differ) or 'none'} differ"

    turns = {name: decoder.in_turns(plan, plan) for name, plan in decoder.plans.items()}
    differ = []
    for a, b in itertools.permutations(names, 2):
        first, second = decoder.in_turns(decoder.plans[a], decoder.plans[b])
        if not (np.array_equal(first, turns[a][0]) and np.array_equal(second, turns[b][1])):
            differ.append(f"{a} + {b}")
    yield not differ, "alternate", f"{len(names)} plans in pairs, {', '.join(differ) or 'none'} differ"

    n_layer = decoder.model.info.n_layer
    for s in (1.0, 1.7, 4.0):
        ours = decoder.alone(LayerScaling.uniform(s, n_layer))
        flag = float(np.float32(1) / np.float32(s))
        theirs = decoder.alone(None, hooked=False, rope_freq_scale=flag)
        yield np.array_equal(ours, theirs), "uniform", f"scale {s:g} against rope_freq_scale {flag:.4g}"

    if cuda:
        detail = f"{captured} captured while plans were swapped, {reset} given up because nodes had changed"
        yield captured >= len(order), "graphs", detail


def nmse(a: Logits, b: Logits) -> float:
    """Mean square error, normalised by the mean square of b."""
    return float(np.square(a - b).sum() / np.square(b).sum())


def evaluations_per_minute(spec: SearchSpec) -> float:
    """Of a search, without loading the model."""

    class Clock(Listener):
        began = ended = 0.0
        n = 0

        def started(self, spec: SearchSpec, cost: Cost) -> None:
            self.began = time.perf_counter()

        def generation(self, state: Generation) -> None:
            self.ended, self.n = time.perf_counter(), state.n_evaluated

    clock = Clock()
    run_search(spec, listener=clock)
    return 60 * clock.n / (clock.ended - clock.began)


if __name__ == "__main__":
    run_app(app)
