"""A search on a model: measures what the core asks for, picks the winner on other items, judges it on a test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.evaluate import Evaluation, KVEvaluator, evaluate
from ropebend.scaling import LayerScaling
from ropebend.search.ga import Candidate, GeneticSearch, Scored
from ropebend.tasks import kv

#: Weight of the answers' probability beside their accuracy: tells candidates apart that get nothing right yet.
SOFT_WEIGHT = 0.1


@dataclass(frozen=True)
class Split:
    """Disjoint items: to search on, to choose among the best on, and to judge on."""

    search: Sequence[kv.Sample]
    validation: Sequence[kv.Sample]
    test: Sequence[kv.Sample]

    @classmethod
    def of(cls, samples: Sequence[kv.Sample], n_search: int, n_validation: int, n_test: int) -> Split:
        """Cut one ordered list.  Raises RopebendError if it is too short."""
        need = n_search + n_validation + n_test
        if len(samples) < need:
            raise RopebendError(f"{need} samples wanted (search + validation + test), there are {len(samples)}")
        a, b = n_search, n_search + n_validation
        return cls(samples[:a], samples[a:b], samples[b:need])


@dataclass(frozen=True)
class Progress:
    """State of a run after an evaluation."""

    n_evaluated: int
    budget: int
    generation: int
    best: float
    mean: float


@dataclass(frozen=True)
class Found:
    """Outcome of a search.

    layers, uniform   the chosen candidates; fitness is on the validation items (on the search items if interrupted)
    n_evaluated       different sets of scales measured on the search items
    history           best fitness after each generation
    interrupted       True if Ctrl-C ended it; the best so far is then still given
    """

    layers: Scored
    uniform: Scored
    n_evaluated: int
    history: tuple[float, ...]
    interrupted: bool


def fitness(result: Evaluation, weights: npt.NDArray[np.float64]) -> float:
    """Weighted mean over depths of the accuracy, plus a tenth of the answers' mean probability per token."""
    accuracy = result.correct.mean(axis=0)
    soft = np.exp(result.logprob).mean(axis=0)
    return float((accuracy + SOFT_WEIGHT * soft) @ weights)


def depth_weights(weights: Sequence[float] | None, n_depths: int) -> npt.NDArray[np.float64]:
    """Normalised weights per depth; None: all alike."""
    w = np.ones(n_depths) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n_depths,) or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise RopebendError(f"depth weights: expected {n_depths} numbers >= 0, not all zero, got {weights}")
    return w / w.sum()


def uniform_grid(stretch: float) -> tuple[float, ...]:
    """Uniform scales worth trying for contexts `stretch` times the trained length: about every 10 %."""
    top = max(1.5, 1.35 * stretch)
    n = math.ceil(math.log(top / 1.1) / math.log(1.12))
    return tuple(round(1.1 * (top / 1.1) ** (i / max(n, 1)), 2) for i in range(n + 1))


def search(
    evaluator: KVEvaluator,
    ga: GeneticSearch,
    split: Split,
    *,
    budget: int,
    base: LayerScaling,
    weights: npt.NDArray[np.float64],
    n_finalists: int = 8,
    progress: Callable[[Progress], None] | None = None,
) -> Found:
    """Spend `budget` evaluations on the search items, then choose among the finalists on the validation items.

    base gives method, factor and architecture; its scales are replaced.  The unscaled model, every uniform scale and
    every curve compete under the same rules, so that "best uniform" is chosen as carefully as "best curve".
    """

    def measure(candidate: Candidate, samples: Sequence[kv.Sample]) -> float:
        scaling = replace(base, layer_scale=candidate.scales)
        return fitness(evaluate(evaluator, samples, scaling, full=False), weights)

    history: list[float] = []
    interrupted = False
    try:
        while ga.n_evaluated < budget:
            candidates = ga.ask()
            if not candidates:
                break
            values: list[float] = []
            try:
                for candidate in candidates[: budget - ga.n_evaluated]:
                    values.append(measure(candidate, split.search))
                    if progress is not None:
                        best = max([*values, *([ga.best.fitness] if ga.memo else [])])
                        n = ga.n_evaluated + len(values)
                        progress(Progress(n, budget, ga.generation, best, float(np.mean(values))))
            finally:
                ga.tell(values)  # also when interrupted: nothing measured is lost
            history.append(ga.best.fitness)
        finalists = ga.top(n_finalists)
        uniforms = _uniform(ga)[:n_finalists]
        seen = {s.scales: replace(s, fitness=measure(s.candidate, split.validation)) for s in [*finalists, *uniforms]}
        layers = max((seen[s.scales] for s in finalists), key=lambda s: s.fitness)
        uniform = max((seen[s.scales] for s in uniforms), key=lambda s: s.fitness)
    except KeyboardInterrupt:
        if not ga.memo:
            raise
        interrupted = True
        layers = ga.best
        uniform = _uniform(ga)[0]
    return Found(layers, uniform, ga.n_evaluated, tuple(history), interrupted)


def _uniform(ga: GeneticSearch) -> list[Scored]:
    """Measured uniform candidates, best first (the first generation, so at least one is there)."""
    last = float(ga.n_layer - 1)
    found = [
        Scored(
            Candidate(scales, ((0.0, scales[0]), (last / 3, scales[0]), (2 * last / 3, scales[0]), (last, scales[0]))),
            value,
        )
        for scales, value in ga.memo.items()
        if len(set(scales)) == 1
    ]
    return sorted(found, key=lambda s: -s.fitness)
