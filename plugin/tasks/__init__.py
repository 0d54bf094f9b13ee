"""Tasks that evaluation and search measure, by name."""

from __future__ import annotations

import inspect
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError, UsageError
from ropebend.tasks.kv import KVRetrieval
from ropebend.tasks.mdqa import MultiDocumentQA
from ropebend.tasks.passkey import Passkey
from ropebend.tasks.task import RetrievalTask, Task, TextTask
from ropebend.tasks.text import Perplexity

__all__ = ["TASKS", "Task", "make_task", "option_types", "read_option"]

TASKS: dict[str, Callable[..., Task]] = {t.name: t for t in (KVRetrieval, Passkey, MultiDocumentQA, Perplexity)}


def option_types(name: str) -> dict[str, type] | None:
    """Options of a task and the types of their defaults (str where there is none); None for a task of your own.

    Raises UsageError for a task that does not exist.
    """
    if name.endswith(".py"):
        return None
    if name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)} or a .py file, got {name!r}")
    defaults = {k: p.default for k, p in inspect.signature(TASKS[name]).parameters.items()}
    return {k: str if d is inspect.Parameter.empty or d is None else type(d) for k, d in defaults.items()}


def read_option(text: str, kind: type) -> Any:
    """An option's value from text, for a default of this type; depths are separated by slashes.  Raises ValueError."""
    if kind is tuple:
        return [float(part) for part in text.split("/")]
    return kind(text) if kind in (int, float) else text


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task `name`, or that of a Python file (`….py`), with its options.

    Raises UsageError for a task or an option that does not exist, and where an option is missing.
    """
    known = option_types(name)
    maker = TASKS[name] if known is not None else _from_file(name)
    parameters = inspect.signature(maker).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [k for k in options if k not in parameters] if not free else []
    if unknown:
        raise UsageError(f"task {name}: no option {unknown[0]!r}; it has {', '.join(parameters)}")
    missing = [
        k for k, p in parameters.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY and k not in options
    ]
    if missing:
        raise UsageError(f"task {name}: option {missing[0]!r} is missing")
    if name == KVRetrieval.name and "data" in options and "keys" in options:
        raise UsageError("--keys has no effect on --data: each line holds its own pairs")
    if known is not None and not all(0 <= depth <= 1 for depth in options.get("depths", ())):
        raise UsageError(f"task {name}: depths: expected numbers in [0, 1], got {options['depths']}")
    with _naming(name) if known is None else nullcontext():
        task = maker(**options)
    if not isinstance(task, (RetrievalTask, TextTask)):
        raise RopebendError(f"{name}: task() returned {type(task).__name__}, expected a RetrievalTask or a TextTask")
    if known is None:
        with _naming(name):
            config = task.config()
        if not (isinstance(config, dict) and "name" in config):
            raise RopebendError(f"{name}: config() returned {config!r:.80}, expected a dict with a name")
    return task


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Whatever goes wrong in a user's file becomes a RopebendError that says in which of its lines."""
    try:
        yield
    except RopebendError:
        raise
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        where = f"{path}: line {lines[-1]}" if lines else path
        raise RopebendError(f"{where}: {type(e).__name__}: {e}") from e


def _from_file(path: str) -> Callable[..., Task]:
    if not Path(path).is_file():
        raise RopebendError(f"{path}: No such file")
    with _naming(path):
        names = runpy.run_path(path)
    if not callable(names.get("task")):
        raise RopebendError(f"{path}: expected a function task(**options)")
    return names["task"]
