"""`ropebend eval`: accuracy by depth, with intervals, item by item until it is known well enough."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropebend.cli import options as o
from ropebend.errors import UsageError
from ropebend.runtime import Runtime
from ropebend.scaling.source import ScaleSource
from ropebend.shell import command

if TYPE_CHECKING:
    from rich.console import Console

    from ropebend.cli.grid import Cell
    from ropebend.evaluate import Evaluation
    from ropebend.model import Model
    from ropebend.model_info import ModelInfo
    from ropebend.scaling import LayerScaling
    from ropebend.tasks.task import Task

TIME, WITHIN = "5m", 5.0  # where neither --samples nor --time is given


@o.takes_runtime(Runtime())
@o.takes_scales()
def eval_command(
    model: o.ModelPath,
    task: o.Task = "kv",
    keys: o.Keys = None,
    length: o.Length = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="1k,2k,4k", show_default=False,
            help="A heat map: these lengths by --depths (a number: so many), unscaled and scaled side by side.",
        ),
    ] = None,
    documents: o.Documents = None,
    data: o.Data = None,
    text: o.Text = None,
    protocol: o.Protocol = None,
    chat: o.Chat = None,
    task_option: o.TaskOption = None,
    depths: Annotated[str | None, typer.Option(help=o.DEPTHS_HELP, show_default=o.DEPTHS)] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Items to measure; each is asked once per depth.", show_default="as --time and --within say"
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="Measure no longer than this: 90s, 5m, 2h.",
            show_default=f"{TIME}, or what --samples take",
        ),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=50,
            help="Stop when the accuracy is known to so many points (perplexity: percent) up or down.",
            show_default=f"{WITHIN:g}, or never with --samples",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help=o.SEED_HELP, show_default="1")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON to write (default: MODEL.TASK-SIZE.json here, with other scales than the file's "
            "MODEL.SCALES.TASK-SIZE.json). The same call again goes on from what it holds.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure anew what the JSON holds already.")] = False,
    *,
    scales: ScaleSource,
    runtime: Runtime,
) -> None:  # fmt: skip
    """Measure retrieval by depth (published prompts and metrics, no token computed twice) or perplexity.

    Item by item, until the accuracy is known to --within points or --time is up; Ctrl-C keeps the finished items.
    """
    if lengths is not None and (length is not None or keys is not None or documents is not None):
        raise UsageError("--lengths takes the place of --length, --keys and --documents")
    from ropebend.cli import grid

    suite = task == "ruler:all"
    if suite and (lengths is not None or depths is not None or protocol is not None):
        raise UsageError("ruler:all is the published suite: no --lengths, --depths or --protocol; give one --length")
    if not suite:
        o.check_effect(task, data, seed=seed, depths=depths, keys=keys, length=length, protocol=protocol, text=text)
    if output is not None:
        o.check_writable(output)
    at = o.numbers(o.DEPTHS if depths is None else grid.depths_of(depths), "--depths", 0, 1)
    given = {"length": length, "data": data, "text": text, "chat": chat}
    seeded = f"eval-{1 if seed is None else seed}"
    many = lengths is not None or suite
    limit = o.seconds(time_limit or ((grid.TIME if many else TIME) if samples is None else None), "--time")
    if within is None and samples is None:
        within = WITHIN

    from rich.console import Console

    from ropebend.tasks import make_task

    def make(n: int | None) -> Task:
        options = o.task_options(
            task, seed=seeded, depths=at, extra=task_option, keys=keys, documents=documents, protocol=protocol,
            **{**given, "length": n},
        )  # fmt: skip
        return make_task(task, options)

    console = Console(stderr=True)
    missing: dict[str, str] = {}
    if suite:
        cells, missing = grid.of_suite({"seed": seeded, **{k: v for k, v in given.items() if v is not None}})
    else:
        cells = grid.of_lengths(lengths, make) if lengths is not None else [grid.Cell("", make(length), 1.0)]
    console.print(f"{model}: loading", highlight=False, markup=False)

    from ropebend.model import scaling_for
    from ropebend.model_info import ModelInfo

    info = ModelInfo.read(model)
    chosen = scaling_for(info, scales)
    with closing(Run(console, model, info, scales.label, runtime, samples, within, force, one_at_least=many)) as run:
        if many:
            sides = [("unscaled", False)] if chosen is None else [("unscaled", False), ("scaled", True)]
            run.many(cells, sides, chosen, limit, output, missing, suite=suite)
            return
        measured = cells[0].task
        out = output or run.path(measured, chosen, named_unscaled=scales.no_scaling)
        result, report, stopped = run.one(measured, chosen, out, limit)

    from ropebend.evaluate.diagnosis import diagnosis

    part = chosen.at(report["tokens"]) if chosen is not None else None
    which = "unscaled" if part is None else str(part)
    config = measured.config()
    what = ", ".join(f"{k} {v}" for k, v in config.items() if k not in ("name", "depths", "seed") and v is not None)
    print(f"{info.name}: {measured.name}, up to {report['tokens']} tokens (trained at {info.n_ctx_train})")
    chat_said = "; in the model's chat template" if report.get("chat") else ""
    print(f"{what}; {which}{chat_said}; {result.n_items} items" + (f", then {stopped}" if stopped else "") + "\n")
    print(accuracy_table([(result.measure, result)]))
    if sentence := diagnosis(measured, result, report.get("easy")):
        print(f"\n{sentence}")
    print(f"\nwrote {out}")
    if stopped == "interrupted":
        print("go on:  the same command again")
        raise typer.Exit(130)
    if chosen is not None:
        print(f"next:   {_again('eval', sys.argv[1:], '--no-scaling')}   # to compare")
    elif "a search may help" in sentence:
        print(f"next:   {_again('search', sys.argv[1:])}")


def _again(name: str, arguments: list[str], *more: str) -> str:
    """The command line as another one on the same model and task."""
    with_value = {"--samples", "--time", "--within", "--output", "-o", "--seed"}
    with_value |= {"--factors", "--scale", "--method", "--factor"}
    rest: list[str] = []
    skip = False
    for word in arguments:
        flag = word.partition("=")[0]
        if not (skip or flag in with_value or flag in ("--force", "--no-scaling")):
            rest.append(name if word == "eval" and name not in rest else word)
        skip = word in with_value
    return command("ropebend", *rest, *more)


@dataclass
class Run:
    """What all measurements of one call share; the model is loaded when the first of them needs it.

    one_at_least  see `Measurement`
    least_easy    share of the easy items below which the task is beyond the model: `TooHard`, before anything long
    """

    console: Console
    model: Path
    info: ModelInfo
    label: str
    runtime: Runtime
    samples: int | None
    within: float | None
    force: bool
    one_at_least: bool = True
    least_easy: float = 0.0
    _loaded: Model | None = None

    @property
    def loaded(self) -> Model:
        """The model."""
        from ropebend.model import Model

        if self._loaded is None:
            self._loaded = Model(self.model, **self.runtime.model)
        return self._loaded

    def close(self) -> None:
        """Free the model."""
        if self._loaded is not None:
            self._loaded.close()

    def path(self, task: Task, scaling: LayerScaling | None, *, named_unscaled: bool) -> Path:
        """Where results go: one model's under other scales or on other sizes do not overwrite each other."""
        from ropebend.evaluate.results import label

        which = "unscaled" if named_unscaled else self.label if scaling is not None else ""
        return Path(f"{self.model.stem}{which and '.'}{which}.{label(task)}.json")

    def one(
        self, task: Task, scaling: LayerScaling | None, out: Path, limit: float | None
    ) -> tuple[Evaluation, dict[str, Any], str | None]:
        """Measure a task and write the file: figures, the report, and why it ended before all items, if it did."""
        from ropebend.cli.measurement import Measurement
        from ropebend.evaluate import Evaluation
        from ropebend.evaluate.results import ResultFile
        from ropebend.search.digest import model_sample, versions

        o.check_writable(out)
        file = ResultFile(
            out,
            {
                "model": [*model_sample(self.model).values()], "task": task.config(), "versions": versions(),
                "scaling": scaling.to_json() if scaling is not None else None,
                "runtime": {k: v for k, v in self.runtime.context.items() if k != "n_threads"},
            },
        )  # fmt: skip
        rows, report = ([], {}) if self.force else file.read(task)
        stopped = None
        if rows:
            self.console.print(f"{len(rows)} items are in {out} already; --force measures them anew", highlight=False)
        if self.samples is not None and len(rows) >= self.samples:
            rows = rows[: self.samples]
            self._prepare(task, len(rows), bool(report.get("chat")))
        else:
            measurement = Measurement(
                self.console, file, task, rows, limit, self.within, self.least_easy, one_at_least=self.one_at_least
            )
            stopped = measurement.run(self.loaded, self.runtime, self.samples, scaling, report, versions())
            rows, report = measurement.rows, measurement.about
        return Evaluation.of(task, rows), report, stopped

    def _prepare(self, task: Task, n_items: int, chat: bool) -> None:
        """Make the items known whose results come from a file: what they ask decides what is said of them."""
        from ropebend.evaluate import Prompts
        from ropebend.tasks.task import RetrievalTask

        task.prepare(Prompts(self.loaded, chat))
        if isinstance(task, RetrievalTask):
            for i in range(n_items):
                task.item(i)

    def many(
        self, cells: list[Cell], sides: list[tuple[str, bool]], scaling: LayerScaling | None, limit: float | None,
        output: Path | None, missing: dict[str, str], *, suite: bool,
    ) -> None:  # fmt: skip
        """Measure every cell, unscaled and scaled, and show them together; the picture goes beside the files."""
        from rich.console import Console as Output

        from ropebend.cli import grid
        from ropebend.evaluate import Prompts
        from ropebend.files import write_bytes

        task = cells[0].task
        which = self.label and f".{self.label}"
        picture = output or Path(f"{self.model.stem}{which}.{task.name.replace(':', '-')}.lengths.png")
        if suite and output is not None:
            raise UsageError("--output has no effect on ruler:all: each task has a file of its own")
        if not suite and not getattr(task, "depths", ()):
            raise UsageError(f"--lengths: {task.name} has no depths to draw; give one --length at a time")
        if not suite:
            o.check_writable(picture)

        def measure(task: Task, scaled: bool, seconds: float | None) -> tuple[Evaluation, str | None]:
            used = scaling if scaled else None
            out = self.path(task, used, named_unscaled=scaling is not None and not scaled)
            result, _, stopped = self.one(task, used, out, seconds)
            return result, stopped

        if suite:  # a length that one of them cannot have is an error now, not after an hour of the others
            for cell in cells:
                cell.task.prepare(Prompts(self.loaded))
        results, interrupted = grid.measure_all(cells, sides, limit, measure)
        if not any(results.values()):
            raise KeyboardInterrupt
        if suite:
            print(grid.suite_table(results, missing))
        else:
            title = f"{self.info.name}: {task.name} (trained at {self.info.n_ctx_train:,} tokens)"
            Output(highlight=False).print(f"{title}; right answers, %")
            Output().print(grid.heat_map(results))
            write_bytes(picture, grid.picture(title, results))
            print(f"\nwrote {picture}")
        if interrupted:
            print("go on:  the same command again")
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
