"""The flags of `ropebend search` as the spec of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import typer

from ropebend.choices import CONTROLS, ExecutorName, SearchMethodName
from ropebend.cli import options as o
from ropebend.errors import UsageError
from ropebend.scaling import LayerScaling
from ropebend.search.spec import Budget, SearchSpec, TaskSpec
from ropebend.search.workers import require_ray
from ropebend.tasks.task import TextTask


def given_flags(ctx: typer.Context) -> dict[str, str]:
    """Parameters that stand on the command line, each with its flag."""
    given = {}
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name and source is not None and source.name == "COMMANDLINE":
            given[parameter.name] = max(parameter.opts, key=len)
    return given


def refuse_without_effect(ctx: typer.Context) -> None:
    """Raise UsageError for a flag that a search which was begun does not listen to."""
    for name, flag in given_flags(ctx).items():
        if name not in ("resume", "executor", "workers", "ray_address"):
            raise UsageError(f"{flag} has no effect on --resume: the search goes on as it was begun")


def refuse_on_texts(given: dict[str, str], spec: SearchSpec) -> None:
    """Raise UsageError for a flag about depths where there are none."""
    if all(isinstance(term.task, TextTask) for term in spec.objective().terms):
        for name in ("depths", "weights", "worst"):
            if name in given:
                raise UsageError(f"{given[name]} has no effect: a text has no depths")


def make_spec(
    *, task: str, options: dict[str, Any], also: list[str] | None, transfer: list[str] | None, method: SearchMethodName,
    factor: float, factor_range: str | None, start: Path | None, controls: str, finals: str, **rest: Any,
) -> SearchSpec:  # fmt: skip
    """Read what the flags say.  Raises UsageError naming the flag."""
    names = tuple(filter(None, controls.split(","))) if controls != "none" else ()
    for name in names:
        if name not in CONTROLS:
            raise UsageError(f"--controls: expected some of {', '.join(CONTROLS)}, or none, got {name!r}")
    if method in ("auto", "none") and (factor != 1.0 or factor_range):
        raise UsageError("--factor needs a --method; linear is position interpolation")
    low_high = tuple(o.numbers(factor_range, "--factor-range", 1.0)) if factor_range else None
    if low_high is not None and not (len(low_high) == 2 and low_high[0] <= factor <= low_high[1]):
        raise UsageError(f"--factor-range: expected LOW,HIGH around --factor {factor:g}, got {factor_range!r}")
    try:
        stages = tuple((int(a), int(b)) for a, b in (part.split("x") for part in finals.split(",")))
        if not all(a >= 1 and b >= 1 for a, b in stages):
            raise ValueError
    except ValueError:
        raise UsageError(f"--finals: expected SETSxITEMS such as 24x24 or 32x32,4x100, got {finals!r}") from None
    Budget.parse(rest["budget"])
    scales = attn = None
    if start is not None:
        begin = LayerScaling.load(start)
        if method == "auto":
            method, factor = cast(SearchMethodName, begin.rope.method), begin.rope.factor
        if (begin.rope.method, begin.rope.factor) != (method, factor):
            rope = begin.rope
            raise UsageError(f"--start: {start} is for --method {rope.method} --factor {rope.factor:g}; give the same")
        if begin.has_plans:
            raise UsageError(f"--start: {start} holds plans by length; give the factors of one of them")
        if begin.has_attn_factors:
            attn = begin.layer_attn_factor
        scales = begin.layer_scale
    tasks = [TaskSpec(name=task, options=options), *map(TaskSpec.parse, also or [])]
    others = [*map(TaskSpec.parse, transfer or [])]
    for part in others:
        if part.weight != 1.0 or part.keep is not None:
            raise UsageError(f"--transfer {part.name}: weight and keep have no effect: it is not searched on")
    return SearchSpec(
        tasks=tuple(tasks), transfer=tuple(others), method=method, factor=factor, factor_range=low_high,
        start=scales, start_attn=attn, controls=names, finals=stages, **rest,
    )  # fmt: skip


def with_place(
    spec: SearchSpec, executor: ExecutorName | None, workers: int | None, ray_address: str | None
) -> SearchSpec:
    """The spec with the place that was asked for, which a resumed search may change.  Raises UsageError."""
    if executor is not None:
        spec = spec.model_copy(update={"executor": executor, "workers": None, "ray_address": None})
    if spec.executor == "ray":
        require_ray()
    elif ray_address is not None:
        raise UsageError("--ray-address needs --executor ray")
    given = {k: v for k, v in (("workers", workers), ("ray_address", ray_address)) if v is not None}
    return spec.model_copy(update=given)
