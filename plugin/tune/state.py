"""tune.json: what was asked and what is decided so far.  The search's own files stand beside it, in the same folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ropebend.errors import RopebendError, UsageError
from ropebend.files import write_json
from ropebend.runtime import Runtime
from ropebend.search import folder as run_folder
from ropebend.search.digest import model_sample
from ropebend.search.spec import TaskSpec
from ropebend.shell import command

FORMAT = "ropebend-tune/1"
STATE, PICTURE = "tune.json", "lengths.png"


class Asked(BaseModel):
    """The command line, settled; paths are absolute."""

    model: str
    ctx: int
    time: float
    out: str
    text: str | None = None
    seed: int = 1
    workers: int | None = None
    runtime: Runtime = Runtime()


class State(BaseModel):
    """What a tune has decided.

    sample    of the model's bytes: another file cannot go on
    spent     seconds of all calls before this one, the search aside, which keeps its own time
    checked   the hook is proven on this model
    findings  what is known of each task that was tried, in words
    spare     a task with nothing right at this length, taken where there is no better one
    task      the one that is searched on; short: the same on short prompts
    n_items   that it has, None: as many as wanted
    unit      seconds of an item of it
    """

    model_config = ConfigDict(extra="forbid")

    format: str = FORMAT
    asked: Asked
    sample: list[tuple[int, str]]
    spent: float = 0.0
    checked: bool = False
    findings: dict[str, str] = Field(default_factory=dict)
    spare: TaskSpec | None = None
    task: TaskSpec | None = None
    short: TaskSpec | None = None
    n_items: int | None = None
    unit: float = 0.0


class Folder:
    """A tune's run folder: state that is written at every decision, and the time since it began."""

    def __init__(self, path: Path, state: State):
        self.path, self.state = path, state
        self._before, self._began = state.spent, time.monotonic()

    @classmethod
    def start(cls, path: Path, asked: Asked, *, force: bool) -> Folder:
        """A new one.  Raises UsageError if the folder holds a tune, a search or files of somebody else's (force: what
        is ours is thrown away)."""
        if (path / STATE).exists() and not force:
            resume = command("ropebend", "tune", "--resume", path)
            raise UsageError(f"{path}: holds a tune already; go on with `{resume}`, or --force to start anew")
        if force and (path / STATE).exists():
            _read(path)  # is it ours?
            run_folder.clear(path)
            for result in path.glob("baseline-*.json"):
                result.unlink()
            (path / PICTURE).unlink(missing_ok=True)
        run_folder.check_free(path, force=False, names=[PICTURE])
        folder = cls(path, State(asked=asked, sample=[*model_sample(asked.model).values()]))
        folder.save()
        return folder

    @classmethod
    def resume(cls, path: Path) -> Folder:
        """One that was begun.  Raises RopebendError if there is none, or if the model is another one now."""
        state = _read(path)
        if [*model_sample(state.asked.model).values()] != state.sample:
            raise RopebendError(f"{state.asked.model}: is not the file any more that this tune was begun with")
        return cls(path, state)

    @property
    def spent(self) -> float:
        """Seconds until now, all calls together, the search aside."""
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds of the time that was given."""
        return self.state.asked.time - self.spent

    @property
    def searching(self) -> bool:
        return run_folder.is_ours(self.path)

    def discard(self) -> None:
        """Leave nothing in the way of the next one, where nothing was measured."""
        (self.path / STATE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def save(self) -> None:
        """Write the state whole."""
        if not self.searching:
            self.state.spent = round(self.spent, 1)
        write_json(self.path / STATE, self.state.model_dump(mode="json"))


def _read(path: Path) -> State:
    try:
        data = json.loads((path / STATE).read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise ValueError(f"format {data.get('format')!r}")
        return State.model_validate(data)
    except OSError as e:
        raise RopebendError(f"{path / STATE}: {os.strerror(e.errno or 0)}; is {path} the folder of a tune?") from None
    except (ValueError, AttributeError, ValidationError) as e:
        raise RopebendError(f"{path / STATE}: not the state of a tune: {e}") from None
