"""Beyond the trained length: linear, NTK and YaRN, each at the uniform factor that suits it best here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ropebend.choices import MethodName
from ropebend.model_info import ModelInfo
from ropebend.search.objective import Objective, Term
from ropebend.search.run import open_measurer
from ropebend.search.space import Candidate
from ropebend.search.spec import SearchSpec, TaskSpec
from ropebend.tune.state import Asked, Base

STRETCHES = (1.0, 1.25, 0.7, 1.6)  # times what the length needs; for all methods the first one first
MOST_ITEMS = 4

#: Method, stretch, share done.
OnItem = Callable[[str, float, float], None]


class Tried(NamedTuple):
    """A way to stretch every layer alike, and its score; method "none": the model as it is."""

    base: Base
    score: float


def compare(
    asked: Asked, info: ModelInfo, task: TaskSpec, folder: Path, n_units: int, seconds: float, on_item: OnItem
) -> tuple[list[Tried], int]:
    """Each method at its best factor and the model as it is, best first, and the items they were measured on.

    n_units  measurements that there is time for, as far as is known; after so many seconds each method gets one factor

    What the folder's logs hold is not measured again.
    """
    methods: list[MethodName] = ["linear", "ntk"]
    if info.rope_scaling[0] == "none":  # YaRN does not fit on other methods
        methods.append("yarn")
    stretch = asked.ctx / info.n_ctx_train
    n_factors = min(max(n_units // (2 * len(methods)), 1), len(STRETCHES))
    n_items = min(max((n_units - 1) // (n_factors * len(methods) + 1), 1), MOST_ITEMS)
    factors = [*dict.fromkeys(round(max(1.02, k * stretch), 2) for k in STRETCHES[:n_factors])]
    began = time.monotonic()
    total, done = n_items * (len(factors) * len(methods) + 1), 0
    out: list[Tried] = []
    for number, method in enumerate(methods):
        underneath: MethodName = "none" if method == "linear" else method
        spec = SearchSpec(
            model=asked.model, tasks=(task,), method=underneath, runtime=asked.runtime, workers=asked.workers,
        )  # fmt: skip
        made, log = task.make(), folder / f"method-{method}.jsonl"
        with open_measurer(spec, info, Objective((Term(made),)), (made,), n_items, log) as measurer:
            best: Tried | None = None
            for factor in [1.0] * (method == "linear") + factors:
                if best is not None and time.monotonic() - began > seconds * (number + 1) / len(methods):
                    break
                base = Base(method=underneath, scale=factor, attn=_magnitude(method, factor))
                attn = (base.attn,) * info.n_layer if base.attn != 1 else None
                c = Candidate((factor,) * info.n_layer, 1.0, attn)

                def tell(at: float = factor, name: str = method) -> None:
                    nonlocal done
                    done += 1
                    on_item(name, at, min(done / total, 1.0))

                (score,) = measurer.scores([c], range(n_items), tell)
                tried = Tried(base, score)
                if factor == 1:
                    out.append(tried)
                elif best is None or score > best.score:
                    best = tried
            if best is not None:
                out.append(best)
    return sorted(out, key=lambda t: -t.score), n_items


def name_of(base: Base) -> str:
    """As people call it."""
    if base.scale == 1:
        return "unscaled"
    return f"{'linear' if base.method == 'none' else base.method} ×{base.scale:g}"


def _magnitude(method: str, factor: float) -> float:
    """The factor that YaRN puts on rotated queries and keys; with the factor in the scales it goes there, too."""
    return round(1 + 0.1 * math.log(factor), 4) if method == "yarn" else 1.0
