"""Measuring one task item by item: saved at once, planned from the first seconds on, ended when enough is known."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ropebend.durations import brief, duration, short_duration
from ropebend.errors import RopebendError
from ropebend.runtime import Runtime

if TYPE_CHECKING:
    from rich.console import Console

    from ropebend.evaluate import Evaluation, Row
    from ropebend.model import Model
    from ropebend.tasks.task import Task

LEAST = 5  # items before an interval may end the measurement
PLAN_AFTER = 4.0  # seconds of the first item that say how long the rest takes


class TooHard(RopebendError):
    """The model fails the task's easy items."""


class TimeUp(Exception):
    """In the middle of an item, which does not count."""


class Measurement:
    """Items one after another, each saved at once, with a plan and the remaining time from the first seconds on.

    limit         seconds, None: none; within: points to which the accuracy need be known, None: all items
    one_at_least  measure one item whatever it takes; else a limit that holds none is an error
    """

    def __init__(
        self, console: Console, file: Any, task: Task, rows: list[Row], limit: float | None, within: float | None,
        least_easy: float = 0.0, *, one_at_least: bool = False,
    ):  # fmt: skip
        from ropebend.evaluate.pace import Pace

        self.console, self.file, self.task, self.rows = console, file, task, [*rows]
        self.n_before = len(rows)
        self.limit, self.within, self.least_easy, self.one_at_least = limit, within, least_easy, one_at_least
        self.about: dict[str, Any] = {}
        self.started = time.monotonic()
        self.pace = Pace()
        self.item_seconds: list[float] = []
        self.part = 0.0  # of the item in work
        self.planned = False

    def run(
        self, loaded: Model, runtime: Runtime, samples: int | None, chosen: Any, report: dict[str, Any],
        versions: dict[str, str],
    ) -> str | None:  # fmt: skip
        """Measure.  Why it ended before all items were measured, or None."""
        from ropebend.cli.progress import Bar, stopping_kindly
        from ropebend.evaluate import Evaluation, open_evaluator

        with (
            stopping_kindly(),
            open_evaluator(loaded, self.task, samples, runtime) as evaluator,
            Bar(self.console, time.monotonic) as bar,
        ):
            self.evaluator, self.bar, self.n_items = evaluator, bar, evaluator.n_items
            if evaluator.easy is not None and evaluator.easy < self.least_easy:
                raise TooHard(f"{evaluator.easy:.0%} of the easy items right: the task is beyond this model")
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
                        "model": loaded.info.path, "task": self.task.config(), "n_ctx_train": loaded.info.n_ctx_train,
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
            except TimeUp:
                if self.about:  # something is measured now
                    self.about["interrupted"] = False
                    self.file.write(Evaluation.of(self.task, self.rows), chosen, **self.about)
                self.about = self.about or report
                return f"{duration(self.limit or 0.0)} hold no more"
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
            return f"{duration(self.limit)} hold no more"
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
        if self.rows and self.limit is not None and time.monotonic() - self.started > self.limit:
            raise TimeUp

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
        say = partial(self.console.print, highlight=False, markup=False, soft_wrap=True)
        say(
            f"{self.task.name}: items of {n_tokens:,} prompt tokens{asked}; {speed:,.0f} tokens/s, about "
            f"{brief(seconds)} s an item"
        )
        n_left = self.n_items - self.n_before
        if self.limit is None:
            say(f"{n_left} items, {duration(n_left * seconds)}; Ctrl-C keeps the finished ones")
            return
        n_fit = int(self.limit / max(seconds, 1e-9))
        if not (n_fit or self.rows or self.one_at_least):
            raise RopebendError(
                f"--time: {duration(self.limit)} hold no item: one takes about {duration(seconds)} here; "
                f"--time {short_duration(4 * LEAST * seconds)} would hold {4 * LEAST}, and shorter prompts take less"
            )
        within = f", fewer if the accuracy is known to ±{self.within:g} points before" if self.within else ""
        say(f"{duration(self.limit)} hold {min(n_fit, n_left)} items{within}; Ctrl-C keeps the finished ones")
        if n_fit < LEAST:
            say(f"warning: too few to tell much; --time {short_duration(LEAST * 4 * seconds)} would hold {LEAST * 4}")
