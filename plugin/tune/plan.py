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
from ropebend.search.spec import MIN_TEST, SearchSpec, TaskSpec
from ropebend.search.stretches import SHARE, Base
from ropebend.tasks import option_types
from ropebend.tasks.task import DEPTHS
from ropebend.tune.state import Asked, State

#: From the hardest to the easiest: the first one that a model can do and loses on is taken.
TASKS = ("kv", "ruler:niah_multikey_2", "ruler:vt", "passkey")
TASK_SHARE, METHOD_SHARE = 0.2, SHARE  # of the time, at most: finding a task, comparing methods
END_SHARE, END_SECONDS = 0.02, 3.0  # kept for reports and for writing the model
SPEED_SECONDS, SPEED_TOKENS = 3.0, 4096
ANSWERS = 1.2  # an item takes so many times its prompt, for the questions' own tokens and what is not foreseen
TEXT_ITEMS = 8  # windows of a text that a search sees; retrieval has as many items as wanted


def short_length(ctx: int, n_ctx_train: int) -> int:
    """Tokens of the short prompts that the scales are judged on, too."""
    return min(n_ctx_train, ctx // 2)


def task_spec(name: str, length: int, seed: str, text: str | None = None) -> TaskSpec:
    """A task at a length."""
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


def search_spec(asked: Asked, state: State, seconds: float, n_layer: int) -> SearchSpec:
    """The search within so many seconds: on fresh items, from the best that every layer alike does."""
    assert state.task is not None
    assert state.short is not None
    seed = f"search-{asked.seed}"
    task, short = (
        t.model_copy(update={"options": {**t.options, "seed": seed} if "seed" in t.options else t.options})
        for t in (state.task, state.short)
    )
    base = state.base
    start: dict[str, Any] = {}
    if base is not None and base.scale > 1:
        start = {"start": (base.scale,) * n_layer, "method": base.method}
        if base.attn != 1:
            start["start_attn"] = (base.attn,) * n_layer
    sizes: dict[str, Any] = {"open": ("controls", "screen", "finals", "test")}
    if state.n_items is not None:  # a text has so many windows; the genetic algorithm needs no pool of fresh ones
        sizes = {
            "open": ("controls", "screen", "test"), "optimiser": "ga", "finals": ((5, TEXT_ITEMS),), "screen": 2,
            "test": min(100, state.n_items - TEXT_ITEMS),
        }  # fmt: skip
    return SearchSpec(
        model=asked.model, tasks=(task,), transfer=(short,), budget=f"{max(seconds, 1):.0f}s", seed=asked.seed,
        workers=asked.workers, runtime=asked.runtime, **start, **sizes,
    )  # fmt: skip


def enough_windows(n_items: int | None) -> bool:
    """Whether a text can be searched and judged on."""
    return n_items is None or n_items >= TEXT_ITEMS + MIN_TEST


def leaner(spec: SearchSpec, seconds: float) -> SearchSpec:
    """The spec without its controls where an item takes so long that they do not fit beside the search itself.

    What is written must beat the unscaled model, and beyond the trained length the best method is judged as well.
    """
    try:
        fitted(spec, seconds, 0.0)
    except DoesNotFit:
        return spec.model_copy(update={"controls": ()})
    return spec


def search_time(asked: Asked, n_ctx_train: int) -> float:
    """Seconds that are left for the search at least, if what stands before takes all that it may."""
    methods = METHOD_SHARE if asked.ctx > n_ctx_train else 0.0
    return asked.time * (1 - TASK_SHARE - methods - END_SHARE) - END_SECONDS


def too_short(asked: Asked, info: ModelInfo, pace: Pace) -> str | None:
    """A --time that fits if the one that was given holds no search worth its name, else None."""
    short = task_spec("kv", short_length(asked.ctx, info.n_ctx_train), "")
    base = Base(scale=2.0) if asked.ctx > info.n_ctx_train else None
    state = State(asked=asked, sample=[], task=task_spec("kv", asked.ctx, ""), short=short, base=base)
    time, unit = search_time(asked, info.n_ctx_train), ANSWERS * pace.predict(asked.ctx)
    try:
        fitted(leaner(search_spec(asked, state, time, info.n_layer), unit), unit, 0.0)
    except DoesNotFit as e:
        share = (time + END_SECONDS) / asked.time
        return short_duration(((read_duration(e.budget) or 0.0) + END_SECONDS) / share)
    return None
