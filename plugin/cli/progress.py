"""Long work on the terminal: how long it takes in words, a bar with the true remaining time, and an end that saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from ropebend.durations import duration

SAY_EVERY = 10.0  # seconds between lines where there is no terminal for a bar


@contextmanager
def stopping_kindly() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that what was measured is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Left(ProgressColumn):
    """The remaining time as whoever does the work knows it."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"{duration(left)} left", style="progress.remaining")


class Bar:
    """One bar on stderr, or a line every ten seconds where that is no terminal."""

    def __init__(self, console: Console, clock: Callable[[], float]):
        self._console, self._clock = console, clock
        self._said = clock()
        columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[note]}"), _Left())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._progress.add_task("", total=1.0, note="", left=None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: float, left: float | None, note: str = "") -> None:
        """done: share of the whole, 0 to 1; left: seconds, None if unknown."""
        self._progress.update(self._task, description=what, completed=min(done, 1.0), note=note, left=left)
        if not self._console.is_terminal and self._clock() - self._said >= SAY_EVERY:
            self._said = self._clock()
            rest = "" if left is None else f", {duration(left)} left"
            self._console.print(f"{what}: {done:.0%}{rest}{'; ' * bool(note)}{note}", highlight=False, markup=False)
