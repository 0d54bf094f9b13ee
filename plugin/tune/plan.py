"""How a tune's time is shared out, which tasks it tries, and what it hands to the search."""

from __future__ import annotations

import time
from typing import Any

from ropebend.context import Context
from ropebend.durations import read_duration, short_duration
from ropebend.evaluate.pace import Pace
from ropebend.model import Model
from ropebend.model_info import ModelInfo
from ropebend.runtime import Runtime
from ropebend.search.cost import DoesNotFit, fitted
from ropebend.search.spec import MIN_TEST, Budget, SearchSpec, TaskSpec
from ropebend.search.stretches import SHARE
from ropebend.tasks import option_types
from ropebend.tasks.task import DEPTHS
from ropebend.tune.state import Asked, State

#: From the hardest to the easiest: the first one that a model can do and loses on is taken.
TASKS = ("kv", "ruler:niah_multikey_2", "ruler:vt", "passkey")
TASK_SHARE = 0.2  # of the time, at most, to find a task
END_SHARE, END_SECONDS = 0.02, 3.0  # kept for reports and for writing the model
SPEED_SECONDS, SPEED_TOKENS = 3.0, 4096
ANSWERS = 1.2  # an item takes so many times its prompt, for the questions' own tokens and what is not foreseen
TEXT_ITEMS = 8  # windows of a text that a search sees; retrieval has as many items as wanted


def short_length(ctx: int, n_ctx_train: int) -> int:
    """Tokens of the short prompts that the scales are judged on, too."""
    return min(n_ctx_train, ctx // 2)


def task_spec(name: str, length: int, seed: str, text: str | None = None) -> TaskSpec:
    known = option_types(name) or {}
    options: dict[str, Any] = {"length": length, "seed": seed, "depths": list(DEPTHS), "text": text}
    if name != "perplexity":
        del options["text"]
    return TaskSpec(name=name, options={k: v for k, v in options.items() if k in known})


def measure_pace(model: Model, ctx: int, runtime: Runtime) -> Pace:
    """How fast prompts are computed here, in a few seconds."""
    n = min(ctx, SPEED_TOKENS)
    pace = Pace()
    with Context(model, n_ctx=n, scaling=None, **runtime.context) as context:
        token = max(model.bos_token, 0)
        context.decode([token] * min(n, 32), 0)  # warms up
        context.clear()
        began, pos = time.monotonic(), 0
        pace.start()
        while pos < n and time.monotonic() - began < SPEED_SECONDS:
            k = min(context.n_batch, n - pos)
            context.decode([token] * k, pos)
            pace.add(k, pos)
            pos += k
    return pace


def search_spec(asked: Asked, state: State, seconds: float, n_ctx_train: int) -> SearchSpec:
    """The search within so many seconds: on fresh items, beyond the trained length from the best extension method."""
    assert state.task is not None
    assert state.short is not None
    seed = f"search-{asked.seed}"
    task, short = (
        t.model_copy(update={"options": {**t.options, "seed": seed} if "seed" in t.options else t.options})
        for t in (state.task, state.short)
    )
    sizes: dict[str, Any] = {"open": ("controls", "screen", "finals", "test")}
    if state.n_items is not None:  # a text has so many windows; the genetic algorithm needs no pool of fresh ones
        sizes = {
            "open": ("controls", "screen", "test"), "optimiser": "ga", "finals": ((5, TEXT_ITEMS),), "screen": 2,
            "test": min(100, state.n_items - TEXT_ITEMS),
        }  # fmt: skip
    return SearchSpec(
        model=asked.model, tasks=(task,), transfer=(short,), budget=f"{max(seconds, 1):.0f}s", seed=asked.seed,
        workers=asked.workers, runtime=asked.runtime, method="auto" if asked.ctx > n_ctx_train else "none", **sizes,
    )  # fmt: skip


def enough_windows(n_items: int | None) -> bool:
    """Whether a text can be searched and judged on."""
    return n_items is None or n_items >= TEXT_ITEMS + MIN_TEST


def leaner(spec: SearchSpec, seconds: float) -> SearchSpec:
    """The spec without its controls where an item takes so long that they do not fit beside the search itself.

    What is written must beat the unscaled model, and beyond the trained length the best method is judged as well.
    """
    try:
        fitted(spec, seconds, methods_time(spec))
    except DoesNotFit:
        return spec.model_copy(update={"controls": ()})
    return spec


def methods_time(spec: SearchSpec) -> float:
    """Seconds of a search's budget that the comparison of methods takes, about."""
    return SHARE * Budget.parse(spec.budget).amount if spec.method == "auto" else 0.0


def search_time(asked: Asked) -> float:
    """Seconds that are left for the search at least, if what stands before takes all that it may."""
    return asked.time * (1 - TASK_SHARE - END_SHARE) - END_SECONDS


def too_short(asked: Asked, info: ModelInfo, pace: Pace) -> str | None:
    """A --time that fits if the one that was given holds no search worth its name, else None."""
    short = task_spec("kv", short_length(asked.ctx, info.n_ctx_train), "")
    state = State(asked=asked, sample=[], task=task_spec("kv", asked.ctx, ""), short=short)
    time, unit = search_time(asked), ANSWERS * pace.predict(asked.ctx)
    spec = leaner(search_spec(asked, state, time, info.n_ctx_train), unit)
    try:
        fitted(spec, unit, methods_time(spec))
    except DoesNotFit as e:
        least = (read_duration(e.budget) or 0.0) - methods_time(spec)
        if spec.method == "auto":
            least /= 1 - SHARE
        return short_duration((least + END_SECONDS) * asked.time / (time + END_SECONDS))
    return None
