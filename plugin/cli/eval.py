"""`ropebend eval`: accuracy by depth, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropebend.cli import options as o
from ropebend.errors import UsageError

if TYPE_CHECKING:
    from ropebend.evaluate import Evaluation


def eval_command(
    model: o.ModelPath,
    task: o.Task = "kv",
    keys: o.Keys = 75,
    data: o.Data = None,
    depths: o.Depths = "0,0.25,0.5,0.75,1",
    samples: Annotated[int, typer.Option(min=1, help="JSON objects; each is asked once per depth.")] = 100,
    protocol: o.Protocol = "shared",
    factors: o.Factors = None,
    scaling: Annotated[bool, typer.Option("--scaling/--no-scaling", help="Apply scales at all.")] = True,
    seed: o.Seed = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON to write (default: MODEL.kv-KEYS.json here).")
    ] = None,
    threads: o.Threads = 0,
    batch_size: o.BatchSize = 512,
    n_gpu_layers: o.GpuLayers = 0,
    flash_attn: o.FlashAttn = False,
) -> None:
    """Measure key-value retrieval by depth: the published prompt and metric, without a token of wasted prefill."""
    o.check_task(task, protocol)
    if factors is not None and not scaling:
        raise UsageError("--factors and --no-scaling contradict each other")
    at = o.numbers(depths, "--depths", 0, 1)

    from rich.console import Console
    from rich.progress import Progress

    import ropebend
    from ropebend.evaluate import KVEvaluator, evaluate
    from ropebend.files import write_json
    from ropebend.model import Model, scaling_for

    items = o.kv_samples(data, keys, samples, seed, "eval")
    console = Console(stderr=True)
    with Model(model, n_gpu_layers=n_gpu_layers) as loaded:
        chosen = scaling_for(loaded.info, factors) if scaling else None
        with (
            KVEvaluator(
                loaded,
                items,
                depths=at,
                protocol=protocol,
                n_threads=threads,
                n_batch=batch_size,
                flash_attn=flash_attn,
            ) as evaluator,
            Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
        ):
            job = bar.add_task(f"{len(items)} JSON objects", total=len(items))
            result = evaluate(evaluator, items, chosen, progress=lambda n: bar.advance(job, n))
            n_tokens, lead_in = evaluator.n_tokens, evaluator.lead_in

    n_keys = len(items[0].pairs)
    title = f"{loaded.info.name}: {n_keys} pairs, up to {n_tokens} tokens (trained at {loaded.info.n_ctx_train})"
    scales = "unscaled" if chosen is None else f"scales {min(chosen.layer_scale):g}–{max(chosen.layer_scale):g}"
    print(f"{title}\n{protocol} protocol, {scales}, {len(items)} JSON objects\n")
    print(accuracy_table([("accuracy", result)]))
    out = output or Path(f"{model.stem}.kv-{n_keys}.json")
    report: dict[str, Any] = {
        "format": "ropebend-eval/1",
        "model": str(model),
        "task": {"name": task, "keys": n_keys, "protocol": protocol, "seed": seed, "data": str(data) if data else None},
        "n_ctx_train": loaded.info.n_ctx_train,
        "tokens": n_tokens,
        "lead_in": lead_in,
        "scaling": chosen.to_json() if chosen is not None else None,
        "versions": versions(),
        "ropebend": ropebend.__version__,
        **evaluation_json(result),
    }
    write_json(out, report)
    print(f"\nwrote {out}")


def versions() -> dict[str, str]:
    """Versions that decide the figures."""
    import llama_cpp
    import numpy

    import ropebend

    return {"ropebend": ropebend.__version__, "llama_cpp_python": llama_cpp.__version__, "numpy": numpy.__version__}


def accuracy_table(rows: list[tuple[str, Evaluation]]) -> str:
    """One line per named result: accuracy per depth and mean, each with its 95 % interval."""
    from ropebend.stats import cluster_bootstrap, wilson

    depths = rows[0][1].depths
    width = max(len(name) for name, _ in rows) + 2
    lines = ["depth".ljust(width) + "".join(f"{d:>16g}" for d in depths) + "mean".rjust(16)]
    for name, result in rows:
        n = len(result.correct)
        cells = []
        for column in result.correct.T:
            low, high = wilson(int(column.sum()), n)
            cells.append(f"{column.mean():.0%} [{100 * low:.0f}–{100 * high:.0f}]".rjust(16))
        low, high = cluster_bootstrap(result.correct.mean(axis=1))
        cells.append(f"{result.accuracy:.1%} [{100 * low:.0f}–{100 * high:.0f}]".rjust(16))
        lines.append(name.ljust(width) + "".join(cells))
    lines.append("[a–b]: 95 % interval (per depth Wilson; mean: bootstrap over JSON objects)")
    return "\n".join(lines)


def evaluation_json(result: Evaluation) -> dict[str, Any]:
    """Figures and every verdict, for files."""
    from ropebend.stats import cluster_bootstrap, wilson

    n = len(result.correct)
    return {
        "samples": n,
        "depths": list(result.depths),
        "accuracy": result.accuracy,
        "accuracy_interval": list(cluster_bootstrap(result.correct.mean(axis=1))),
        "accuracy_by_depth": result.correct.mean(axis=0).tolist(),
        "accuracy_by_depth_interval": [list(wilson(int(c.sum()), n)) for c in result.correct.T],
        "correct": result.correct.astype(int).tolist(),
        "logprob": result.logprob.round(5).tolist(),
        "answers": result.texts,
    }
