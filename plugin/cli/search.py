"""`ropebend search`: find layer scales for a model and judge them on items the search has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropebend.cli import options as o
from ropebend.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ropebend.model import Model
    from ropebend.search.job import Outcome, Settings
    from ropebend.tasks.kv import Sample


def search_command(
    model: o.ModelPath,
    task: o.Task = "kv",
    keys: o.Keys = 75,
    data: o.Data = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Factors file to write.")] = Path("factors.json"),
    plot: Annotated[Path | None, typer.Option(help="Also write this PNG: accuracy by depth, and the scales.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Sets of scales to measure.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="JSON objects to search on.")] = 10,
    validation_samples: Annotated[int, typer.Option(min=1, help="JSON objects to choose among the best on.")] = 24,
    test_samples: Annotated[int, typer.Option(min=1, help="JSON objects to judge the result on.")] = 60,
    depths: o.Depths = "0,0.25,0.5,0.75,1",
    weights: Annotated[str | None, typer.Option(help="Weight of each depth in the score (default: all alike).")] = None,
    protocol: o.Protocol = "shared",
    method: Annotated[
        str, typer.Option(help="Extension method that the scales multiply: none, linear, ntk, dynamic-ntk or yarn.")
    ] = "none",
    factor: Annotated[float, typer.Option(min=1.0, help="The method's interpolation factor.")] = 1.0,
    population: Annotated[int, typer.Option(min=2, help="Sets of scales per generation.")] = 16,
    seed: o.Seed = 1,
    threads: o.Threads = 0,
    batch_size: o.BatchSize = 512,
    n_gpu_layers: o.GpuLayers = 0,
    flash_attn: o.FlashAttn = False,
) -> None:
    """Find per-layer scales with a genetic search over Bézier curves; Ctrl-C writes the best so far.

    The best uniform scale is searched alongside, and both are judged on test items the search has never seen.
    """
    o.check_task(task, protocol)
    at = tuple(o.numbers(depths, "--depths", 0, 1))
    depth_weights = tuple(o.numbers(weights, "--weights")) if weights is not None else None
    if depth_weights is not None and (len(depth_weights) != len(at) or sum(depth_weights) == 0):
        raise UsageError(f"--weights: expected one number per depth ({len(at)}), not all zero, got {weights!r}")

    from ropebend.files import write_json
    from ropebend.model import Model
    from ropebend.scaling import METHODS, RopeMethod
    from ropebend.search.job import Settings

    if method not in METHODS:
        raise UsageError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "none" and factor != 1.0:
        raise UsageError("--factor needs a --method; linear is position interpolation")
    settings = Settings(
        n_search=samples, n_validation=validation_samples, n_test=test_samples, depths=at, weights=depth_weights,
        protocol=protocol, budget=budget, seed=seed, population=population, rope=RopeMethod(method, factor),
        n_threads=threads, n_batch=batch_size, flash_attn=flash_attn,
    )  # fmt: skip
    items = o.kv_samples(data, keys, samples + validation_samples + test_samples, seed, "search")
    o.check_writable(output)
    with Model(model, n_gpu_layers=n_gpu_layers) as loaded:
        described = {"name": task, "keys": len(items[0].pairs), "data": str(data) if data else None}
        outcome = search_with_progress(loaded, items, settings, described)
    write_json(output, outcome.layers.to_json())
    title = f"{loaded.info.name}: {len(items[0].pairs)} pairs, up to {outcome.n_tokens} tokens"
    print_outcome(outcome, f"{title} (trained at {loaded.info.n_ctx_train})")
    print(f"\nwrote {output}")
    if plot is not None and outcome.tests is not None:
        draw(outcome, plot, title)
        print(f"wrote {plot}")
    print(f"next: ropebend add-scales {model} {output}")
    if outcome.found.interrupted:
        raise typer.Exit(130)


def search_with_progress(model: Model, items: Sequence[Sample], settings: Settings, task: dict[str, Any]) -> Outcome:
    """Run a search with a progress line: best and mean fitness, evaluations, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ropebend.evaluate import KVEvaluator
    from ropebend.search import job
    from ropebend.search.run import Progress as State

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        searching = bar.add_task("search", total=settings.budget, note="")
        tests: dict[str, Any] = {}
        generation = 0

        def on_start(evaluator: KVEvaluator) -> None:
            n_prefill = settings.n_search * evaluator.n_tokens
            console.print(
                f"{settings.budget} evaluations of {settings.n_search} JSON objects at {len(settings.depths)} depths, "
                f"about {n_prefill:,} tokens each; Ctrl-C keeps the best so far"
            )

        def on_search(state: State) -> None:
            nonlocal generation
            note = f"best {state.best:.3f}  mean {state.mean:.3f}  generation {state.generation}"
            bar.update(searching, completed=state.n_evaluated, note=note)
            if state.generation != generation:
                generation = state.generation
                if not console.is_terminal:
                    console.print(f"generation {generation}: {state.n_evaluated} evaluations, best {state.best:.3f}")

        def on_test(name: str, n: int) -> None:
            if name not in tests:
                tests[name] = bar.add_task(f"test: {name}", total=settings.n_test, note="")
            bar.advance(tests[name], n)

        return job.run(model, items, settings, task=task, on_start=on_start, on_search=on_search, on_test=on_test)


def print_outcome(outcome: Outcome, title: str) -> None:
    """The table on test items, the scales, and what they are worth."""
    from ropebend.cli.eval import accuracy_table
    from ropebend.cli.show import render
    from ropebend.search.job import verdict

    print(f"{title}\n{outcome.found.n_evaluated} evaluations in {outcome.seconds:.0f} s\n")
    print(f"{render(outcome.layers)}\n")
    if outcome.tests is not None:
        print(accuracy_table(named_tests(outcome)))
    print(verdict(outcome))


def named_tests(outcome: Outcome) -> list[tuple[str, Any]]:
    """The three test results with the names that tables and plots show."""
    assert outcome.tests is not None
    names = ("unscaled", f"best uniform ({outcome.uniform.layer_scale[0]:g})", "layer scales")
    return list(zip(names, outcome.tests, strict=True))


def draw(outcome: Outcome, path: Path, title: str) -> None:
    """Write the picture of an outcome."""
    from ropebend.plot import accuracy_and_scales

    accuracy_and_scales(path, title, named_tests(outcome), outcome.layers, outcome.uniform)
