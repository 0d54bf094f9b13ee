"""`ropebend eval`: accuracy by depth, with intervals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropebend.cli import options as o
from ropebend.errors import UsageError
from ropebend.runtime import Runtime

if TYPE_CHECKING:
    from ropebend.evaluate import Evaluation

SAY_EVERY = 10.0  # seconds between lines where there is no terminal for a bar


@o.takes_runtime(Runtime())
def eval_command(
    model: o.ModelPath,
    task: o.Task = "kv",
    keys: o.Keys = None,
    length: o.Length = None,
    documents: o.Documents = None,
    data: o.Data = None,
    text: o.Text = None,
    protocol: o.Protocol = None,
    task_option: o.TaskOption = None,
    depths: Annotated[str | None, typer.Option(help=o.DEPTHS_HELP, show_default=o.DEPTHS)] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Items; each is asked once per depth.", show_default="100, or all")
    ] = None,
    factors: o.Factors = None,
    scaling: Annotated[bool, typer.Option("--scaling/--no-scaling", help="Apply scales at all.")] = True,
    seed: Annotated[int | None, typer.Option(help=o.SEED_HELP, show_default="1")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON to write (default: MODEL.TASK.json here, with --factors MODEL.FACTORS.TASK.json, with "
            "--no-scaling MODEL.unscaled.TASK.json).",
        ),
    ] = None,
    *,
    runtime: Runtime,
) -> None:
    """Measure retrieval by depth (published prompts and metrics, no token computed twice) or perplexity."""
    if factors is not None and not scaling:
        raise UsageError("--factors and --no-scaling contradict each other")
    o.check_effect(task, data, seed=seed, depths=depths)
    at = o.numbers(o.DEPTHS if depths is None else depths, "--depths", 0, 1)
    options = o.task_options(
        task, seed=f"eval-{1 if seed is None else seed}", depths=at, extra=task_option, keys=keys, length=length,
        documents=documents, data=data, text=text, protocol=protocol,
    )  # fmt: skip

    from rich.console import Console
    from rich.progress import Progress

    from ropebend.evaluate import Evaluation, Row, open_evaluator
    from ropebend.files import write_json
    from ropebend.model import Model, scaling_for
    from ropebend.search.digest import versions
    from ropebend.tasks import make_task

    measured = make_task(task, options)
    # one model's results under other scales do not overwrite each other
    which = f".{factors.stem}" if factors is not None else "" if scaling else ".unscaled"
    out = output or Path(f"{model.stem}{which}.{measured.name}.json")
    o.check_writable(out)
    console = Console(stderr=True)
    with Model(model, n_gpu_layers=runtime.n_gpu_layers) as loaded:
        chosen = scaling_for(loaded.info, factors) if scaling else None
        with (
            open_evaluator(loaded, measured, samples, runtime) as evaluator,
            Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
        ):
            n_items, n_tokens, lead_in = evaluator.n_items, evaluator.n_tokens, getattr(evaluator, "lead_in", None)
            job = bar.add_task(f"{n_items} items", total=n_items)
            console.print(f"{n_items} items, up to {n_tokens} tokens; Ctrl-C keeps the finished ones", highlight=False)
            evaluator.set_scaling(chosen)
            rows: list[Row] = []
            said = time.monotonic()
            try:
                for i in range(n_items):
                    rows.append(evaluator.measure(i))
                    bar.advance(job)
                    if not console.is_terminal and time.monotonic() - said >= SAY_EVERY:
                        said = time.monotonic()
                        console.print(f"{len(rows)} of {n_items} items", highlight=False)
            except KeyboardInterrupt:
                if not rows:
                    raise
    result, n = Evaluation.of(measured, rows), len(rows)

    config = measured.config()
    scales = "unscaled" if chosen is None else f"scales {min(chosen.layer_scale):g}–{max(chosen.layer_scale):g}"
    what = ", ".join(f"{k} {v}" for k, v in config.items() if k not in ("name", "depths", "seed") and v is not None)
    print(f"{loaded.info.name}: {measured.name}, up to {n_tokens} tokens (trained at {loaded.info.n_ctx_train})")
    print(f"{what}; {scales}; {n} items" + (f" of {n_items}, then interrupted" if n < n_items else "") + "\n")
    print(accuracy_table([(result.measure, result)]))
    report: dict[str, Any] = {
        "format": "ropebend-eval/1",
        "model": str(model),
        "task": config,
        "n_ctx_train": loaded.info.n_ctx_train,
        "tokens": n_tokens,
        "interrupted": n < n_items,
        "lead_in": lead_in,
        "scaling": chosen.to_json() if chosen is not None else None,
        "versions": versions(),
        **result.to_json(),
    }
    write_json(out, report)
    print(f"\nwrote {out}")
    if n < n_items:
        raise typer.Exit(130)


def accuracy_table(rows: list[tuple[str, Evaluation]]) -> str:
    """One line per named result: its figure per depth and in all, each with its 95 % interval."""
    first = rows[0][1]
    width = max(len(name) for name, _ in rows) + 2
    if not first.columns:
        return "\n".join([f"{name.ljust(width)}{result.in_words()}" for name, result in rows])
    lines = ["depth".ljust(width) + "".join(c.rjust(16) for c in first.columns) + "mean".rjust(18)]
    for name, result in rows:
        cells = "".join(c.rjust(16) for c in result.by_depth())
        lines.append(name.ljust(width) + cells + result.in_words().rjust(18))
    lines.append("[a–b]: 95 % interval (Wilson; for the mean with the number of questions that the items are worth)")
    return "\n".join(lines)
