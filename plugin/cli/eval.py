"""`ropebend eval`: accuracy by depth, with intervals, item by item until it is known well enough."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropebend.cli import options as o
from ropebend.durations import duration, short_duration
from ropebend.errors import UsageError
from ropebend.runtime import Runtime
from ropebend.shell import command

if TYPE_CHECKING:
    from rich.console import Console

    from ropebend.evaluate import Evaluation, Row
    from ropebend.tasks.task import Task

TIME, WITHIN = "5m", 5.0  # where neither --samples nor --time is given
LEAST = 5  # items before an interval may end the measurement
PLAN_AFTER = 4.0  # seconds of the first item that say how long the rest takes


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
    factors: o.Factors = None,
    scaling: Annotated[bool, typer.Option("--scaling/--no-scaling", help="Apply scales at all.")] = True,
    seed: Annotated[int | None, typer.Option(min=0, help=o.SEED_HELP, show_default="1")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON to write (default: MODEL.TASK-SIZE.json here, with --factors MODEL.FACTORS.TASK-SIZE.json, with "
            "--no-scaling MODEL.unscaled.TASK-SIZE.json). The same call again goes on from what it holds.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure anew what the JSON holds already.")] = False,
    *,
    runtime: Runtime,
) -> None:  # fmt: skip
    """Measure retrieval by depth (published prompts and metrics, no token computed twice) or perplexity.

    Item by item, until the accuracy is known to --within points or --time is up; Ctrl-C keeps the finished items.
    """
    if factors is not None and not scaling:
        raise UsageError("--factors and --no-scaling contradict each other")
    o.check_effect(task, data, seed=seed, depths=depths, keys=keys, length=length, protocol=protocol, text=text)
    at = o.numbers(o.DEPTHS if depths is None else depths, "--depths", 0, 1)
    options = o.task_options(
        task, seed=f"eval-{1 if seed is None else seed}", depths=at, extra=task_option, keys=keys, length=length,
        documents=documents, data=data, text=text, protocol=protocol, chat=chat,
    )  # fmt: skip
    limit = o.seconds(time_limit or (TIME if samples is None else None), "--time")
    if within is None and samples is None:
        within = WITHIN

    from rich.console import Console

    console = Console(stderr=True)
    console.print(f"{model}: loading", highlight=False, markup=False)

    from ropebend.evaluate.results import ResultFile, label
    from ropebend.model import scaling_for
    from ropebend.model_info import ModelInfo
    from ropebend.search.digest import model_sample, versions
    from ropebend.tasks import make_task

    measured = make_task(task, options)
    # one model's results under other scales or on other sizes do not overwrite each other
    which = f".{factors.stem}" if factors is not None else "" if scaling else ".unscaled"
    out = output or Path(f"{model.stem}{which}.{label(measured)}.json")
    o.check_writable(out)
    info = ModelInfo.read(model)
    chosen = scaling_for(info, factors) if scaling else None
    file = ResultFile(
        out,
        {
            "model": [*model_sample(model).values()], "task": measured.config(), "versions": versions(),
            "scaling": chosen.to_json() if chosen is not None else None,
            "runtime": {k: v for k, v in runtime.context.items() if k != "n_threads"},
        },
    )  # fmt: skip
    rows, report = ([], {}) if force else file.read(measured)
    if rows:
        console.print(f"{len(rows)} items are in {out} already; --force measures them anew", highlight=False)
    if samples is not None and len(rows) >= samples:
        rows = rows[:samples]
        stopped = None
    else:
        measurement = _Measurement(console, file, measured, rows, limit, within)
        stopped = measurement.run(model, runtime, samples, chosen, report, versions())
        rows, report = measurement.rows, measurement.about

    from ropebend.evaluate import Evaluation
    from ropebend.evaluate.diagnosis import diagnosis

    result = Evaluation.of(measured, rows)
    part = chosen.at(report["tokens"]) if chosen is not None else None
    scales = "unscaled" if part is None else str(part)
    config = measured.config()
    what = ", ".join(f"{k} {v}" for k, v in config.items() if k not in ("name", "depths", "seed") and v is not None)
    print(f"{info.name}: {measured.name}, up to {report['tokens']} tokens (trained at {info.n_ctx_train})")
    chat_said = "; in the model's chat template" if report.get("chat") else ""
    print(f"{what}; {scales}{chat_said}; {len(rows)} items" + (f", then {stopped}" if stopped else "") + "\n")
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
    with_value = {"--samples", "--time", "--within", "--output", "-o", "--factors", "--seed"}
    rest: list[str] = []
    skip = False
    for word in arguments:
        flag = word.partition("=")[0]
        if not (skip or flag in with_value or flag in ("--force", "--no-scaling", "--scaling")):
            rest.append(name if word == "eval" and name not in rest else word)
        skip = word in with_value
    return command("ropebend", *rest, *more)


class _Measurement:
    """Items one after another, each saved at once, with a plan and the remaining time from the first seconds on."""

    def __init__(
        self, console: Console, file: Any, task: Task, rows: list[Row], limit: float | None, within: float | None
    ):
        from ropebend.evaluate.pace import Pace

        self.console, self.file, self.task, self.rows = console, file, task, [*rows]
        self.n_before = len(rows)
        self.limit, self.within = limit, within
        self.about: dict[str, Any] = {}
        self.started = time.monotonic()
        self.pace = Pace()
        self.item_seconds: list[float] = []
        self.part = 0.0  # of the item in work
        self.planned = False

    def run(
        self, model: Path, runtime: Runtime, samples: int | None, chosen: Any, report: dict[str, Any],
        versions: dict[str, str],
    ) -> str | None:  # fmt: skip
        """Measure.  Why it ended before all items were measured, or None."""
        from ropebend.cli.progress import Bar, stopping_kindly
        from ropebend.evaluate import Evaluation, open_evaluator
        from ropebend.model import Model

        with (
            stopping_kindly(),
            Model(model, n_gpu_layers=runtime.n_gpu_layers) as loaded,
            open_evaluator(loaded, self.task, samples, runtime) as evaluator,
            Bar(self.console, time.monotonic) as bar,
        ):
            self.evaluator, self.bar, self.n_items = evaluator, bar, evaluator.n_items
            before = float(report.get("seconds", 0.0))
            evaluator.set_scaling(chosen)
            evaluator.on_tokens = self._computed
            try:
                for i in range(len(self.rows), self.n_items):
                    began = time.monotonic()
                    self.item, self.done = i, 0
                    self.pace.start()
                    self.rows.append(evaluator.measure(i))
                    self.item_seconds.append(time.monotonic() - began)
                    self.part = 0.0
                    self._plan()
                    self._show()
                    result = Evaluation.of(self.task, self.rows)
                    self.about = {
                        "model": str(model), "task": self.task.config(), "n_ctx_train": loaded.info.n_ctx_train,
                        "tokens": evaluator.n_tokens, "interrupted": i + 1 < self.n_items,
                        "lead_in": evaluator.lead_in, "chat": evaluator.chat,
                        "easy": evaluator.easy, "versions": versions,
                        "seconds": round(before + time.monotonic() - self.started, 1),
                    }  # fmt: skip
                    why = self._enough(result)
                    if why is not None:
                        self.about["interrupted"] = False
                    self.file.write(result, chosen, **self.about)
                    if why is not None:
                        return why
            except KeyboardInterrupt:
                if not self.rows:
                    raise
                self.about = self.about or report
                return "interrupted"
            self.about = self.about or report
        return None

    def _enough(self, result: Evaluation) -> str | None:
        """Why no further item is wanted, or None."""
        if self.within is not None and result.n_items >= LEAST and result.interval is not None:
            low, high = result.interval
            share = 1.0 if result.measure == "accuracy" else result.figure
            if (high - low) / 2 <= self.within / 100 * share:
                return f"known to ±{self.within:g} {'points' if result.measure == 'accuracy' else '%'}"
        spent = time.monotonic() - self.started
        if self.limit is not None and spent + self._per_item() > self.limit:
            return f"{duration(self.limit)} were up"
        return None

    # ---- how long it takes

    def _computed(self, n_tokens: int, position: int) -> None:
        """Some tokens of the item in work went through the model."""
        self.pace.add(n_tokens, position)
        self.done += n_tokens
        self.part = min(1.0, self.done / max(self.evaluator.n_to_compute(self.item), 1))
        if self.pace.seconds >= PLAN_AFTER:
            self._plan()
        self._show()

    def _per_item(self) -> float:
        if self.item_seconds:
            return sum(self.item_seconds) / len(self.item_seconds)
        return self.pace.predict(self.evaluator.n_to_compute(self.item))

    def _left(self) -> float:
        """Seconds, at most."""
        items = (self.n_items - len(self.rows) - self.part) * self._per_item()
        if self.limit is None:
            return items
        return min(items, max(0.0, self.limit - (time.monotonic() - self.started)))

    def _show(self) -> None:
        left, spent = self._left(), time.monotonic() - self.started
        note = f"{len(self.rows)} items"
        self.bar.show(self.task.name, spent / max(spent + left, 1e-9), left if self.pace.n_tokens else None, note)

    def _plan(self) -> None:
        """Say once what it will take."""
        if self.planned or not self.pace.n_tokens:
            return
        self.planned = True
        n_tokens, seconds = self.evaluator.n_to_compute(self.item), self._per_item()
        speed = self.pace.n_tokens / max(self.pace.seconds, 1e-9)
        n_questions = len(getattr(self.task, "depths", ())) or 1
        asked = f", {n_questions} questions each" if n_questions > 1 else ""
        say = self.console.print
        say(
            f"{self.task.name}: items of {n_tokens:,} prompt tokens{asked}; {speed:,.0f} tokens/s, about "
            f"{seconds:.2g} s an item",
            highlight=False, markup=False,
        )  # fmt: skip
        n_left = self.n_items - self.n_before
        if self.limit is None:
            say(f"{n_left} items, {duration(n_left * seconds)}; Ctrl-C keeps the finished ones", highlight=False)
            return
        n_fit = int(self.limit / max(seconds, 1e-9))
        within = f", fewer if the accuracy is known to ±{self.within:g} points before" if self.within else ""
        say(
            f"{duration(self.limit)} hold {min(n_fit, n_left)} items{within}; Ctrl-C keeps the finished ones",
            highlight=False,
        )
        if n_fit < LEAST:
            say(
                f"warning: too few to tell much; --time {short_duration(LEAST * 4 * seconds)} would hold {LEAST * 4}",
                highlight=False,
            )


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
