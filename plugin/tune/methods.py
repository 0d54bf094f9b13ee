"""Beyond the trained length: linear, NTK and YaRN, each at the uniform factor that suits it best here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ropebend.model_info import ModelInfo
from ropebend.search.objective import Objective, Term
from ropebend.search.run import open_measurer
from ropebend.search.spec import SearchSpec, TaskSpec
from ropebend.search.stretches import MOST_ITEMS, UNSTRETCHED, Base, Tried, factors_for, methods_for
from ropebend.tune.state import Asked

#: What is measured, share done.
OnItem = Callable[[Base, float], None]


def compare(
    asked: Asked, info: ModelInfo, task: TaskSpec, folder: Path, n_units: int, seconds: float, on_item: OnItem
) -> tuple[list[Tried], int]:
    """Each method at its best factor and the model as it is, best first, and the items they were measured on.

    n_units  measurements that there is time for, as far as is known; after so many seconds each method gets one factor

    What the folder's logs hold is not measured again.
    """
    methods = methods_for(info)
    factors = factors_for(asked.ctx / info.n_ctx_train, n_units / len(methods))
    n_items = min(max((n_units - 1) // (len(factors) * len(methods) + 1), 1), MOST_ITEMS)
    began = time.monotonic()
    total, done = n_items * (len(factors) * len(methods) + 1), 0
    out: list[Tried] = []
    for number, method in enumerate(methods):
        spec = SearchSpec(
            model=asked.model, tasks=(task,), method=method, runtime=asked.runtime, workers=asked.workers,
        )  # fmt: skip
        made, log = task.make(), folder / f"method-{method}.jsonl"
        with open_measurer(spec, info, Objective((Term(made),)), (made,), n_items, log) as measurer:
            best: Tried | None = None
            for base in [Base()] * (method == "none") + [Base.of(method, factor) for factor in factors]:
                if best is not None and time.monotonic() - began > seconds * (number + 1) / len(methods):
                    break

                def tell(what: Base = base) -> None:
                    nonlocal done
                    done += 1
                    on_item(what, min(done / total, 1.0))

                (score,) = measurer.scores([base.candidate(info.n_layer)], range(n_items), tell)
                tried = Tried(base, score)
                if base.kind == UNSTRETCHED:
                    out.append(tried)
                elif best is None or score > best.score:
                    best = tried
            if best is not None:
                out.append(best)
    return sorted(out, key=lambda t: -t.score), n_items
