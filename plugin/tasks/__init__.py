"""Tasks that evaluation and search measure, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from ropebend.errors import UsageError
from ropebend.lengths import read_length
from ropebend.tasks import ruler
from ropebend.tasks.kv import KVRetrieval
from ropebend.tasks.longeval import LongEvalLines
from ropebend.tasks.mdqa import MultiDocumentQA
from ropebend.tasks.own import guarded, naming, read_maker
from ropebend.tasks.passkey import Passkey
from ropebend.tasks.task import RetrievalTask, Task
from ropebend.tasks.text import Perplexity

__all__ = ["TASKS", "Task", "make_task", "option_types", "read_length", "read_option", "split_name", "unused_with_data"]

#: What makes each task from its options, by name.  `ruler:all`, the suite of them, is no task: see `ruler.suite`.
TASKS: dict[str, Callable[..., Task]] = {
    **{t.name: t for t in (KVRetrieval, Passkey, LongEvalLines, MultiDocumentQA, Perplexity)},
    **{f"ruler:{name}": maker for name, maker in ruler.TASKS.items()},
}


def split_name(text: str) -> tuple[str, str]:
    """("ruler:vt", "length=8k") from "ruler:vt:length=8k": RULER's names have a colon of their own."""
    name, _, rest = text.partition(":")
    if name == "ruler":
        task, _, rest = rest.partition(":")
        name = f"ruler:{task}"
    return name, rest


def option_types(name: str) -> dict[str, type] | None:
    """Options of a task and what they are: int, float, str, bool or tuple (of depths); None for a task of your own.

    Raises UsageError for a task that does not exist.
    """
    if name.endswith(".py"):
        return None
    if name not in TASKS:
        known = [t for t in TASKS if not t.startswith("ruler:")]
        of_ruler = ", ".join(ruler.NAMES)
        if name.startswith("ruler"):
            raise UsageError(f"task: expected ruler: with one of {of_ruler}, got {name!r}")
        raise UsageError(f"task: expected one of {', '.join(known)}, ruler:… ({of_ruler}) or a .py file, got {name!r}")
    maker = TASKS[name]
    made = getattr(maker, "func", maker)  # RULER's are partial
    hints = get_type_hints(made.__init__)
    out: dict[str, type] = {"data": str} if name.startswith("ruler:") else {}
    for option in inspect.signature(maker).parameters:
        hint = hints[option]
        kinds = getattr(hint, "__args__", (hint,)) if hint != Sequence[float] else (tuple,)
        out[option] = next((kind for kind in (int, float, tuple) if kind in kinds), str)
    return out if made is Perplexity else {**out, "chat": bool}


def read_option(text: str, kind: type, name: str = "") -> Any:
    """An option's value from text; depths are separated by slashes, lengths may be written 8k.

    kind: what `option_types` says of it; name: of the option.  Raises ValueError for text that is no such value.
    """
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return text == "true"
    if kind is tuple:
        return [float(part) for part in text.split("/")]
    if name == "length":
        try:
            return read_length(text)
        except UsageError as e:
            raise ValueError(e) from None
    return kind(text) if kind in (int, float) else text


def unused_with_data(name: str, data: str | Path | None) -> set[str]:
    """Options that change nothing where the items come from a file; data: that file, None for none.

    Raises RopebendError for a RULER task's file that cannot be read.
    """
    if data is None:
        return set()
    if name == "kv":
        return {"keys", "length", "seed"}
    if name == "longeval" or (name.startswith("ruler:") and name != "ruler:all" and ruler.is_ruler_file(data)):
        return {"lines", "length", "seed", "depths", "protocol", "text"}
    return set()


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task `name`, or that of a Python file (`….py`), with its options; `chat` is one of every task that asks.

    options: by name, of the types of `option_types`; of a file what its function takes.

    Raises UsageError for a task or an option that does not exist or cannot have this value, where an option is missing,
    and where two contradict each other; RopebendError for a file that cannot be read or is none of the task's, and for
    whatever goes wrong in a Python file, with its line.
    """
    if "chat" in options:
        task = make_task(name, {k: v for k, v in options.items() if k != "chat"})
        if not isinstance(task, RetrievalTask):
            raise UsageError(f"--chat has no effect: task {name} asks nothing")
        task.chat = options["chat"]
        return task
    known = option_types(name)
    maker = TASKS[name] if known is not None else read_maker(name)
    parameters = inspect.signature(maker).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = list(known if known is not None else parameters)
    unknown = [k for k in options if k not in names] if not free else []
    if unknown:
        raise UsageError(f"task {name}: no option {unknown[0]!r}; it has {', '.join(names)}")
    if known is not None:
        _check(name, options)
        if name.startswith("ruler:") and "data" in options and ("data" not in parameters or _of_ruler(options)):
            if not ruler.is_ruler_file(options["data"]):
                raise UsageError(
                    f"{options['data']}: expected one of RULER's jsonl files (input, outputs, answer_prefix)"
                )
            return ruler.from_file(name.removeprefix("ruler:"), options["data"])
    missing = [
        k for k, p in parameters.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY and k not in options
    ]
    if missing:
        raise UsageError(f"task {name}: option {missing[0]!r} is missing")
    if known is not None:
        return maker(**{k: v for k, v in options.items() if k in parameters})
    with naming(name):
        made = maker(**options)
    return guarded(name, made)


def _of_ruler(options: Mapping[str, Any]) -> bool:
    return ruler.is_ruler_file(options["data"])


def _check(name: str, options: Mapping[str, Any]) -> None:
    for key, kind in (option_types(name) or {}).items():
        value = options.get(key)
        if kind is int and key not in ("length", "seed") and type(value) not in (int, type(None)):
            raise UsageError(f"task {name}: {key}: expected a whole number, got {value!r:.80}")
    if not all(0 <= depth <= 1 for depth in options.get("depths", ())):
        raise UsageError(f"task {name}: depths: expected numbers in [0, 1], got {options['depths']}")
    if options.get("length") is not None:
        read_length(options["length"])
