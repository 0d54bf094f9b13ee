"""From a model file to judged scales: split the items, search, choose, test, record where the result came from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ropebend.evaluate import DEPTHS, Evaluation, KVEvaluator, evaluate
from ropebend.model import Model, available_threads, check_supported
from ropebend.scaling import NO_METHOD, LayerScaling, RopeMethod
from ropebend.search.ga import MAX_SCALE, GeneticSearch
from ropebend.search.run import Found, Progress, Split, depth_weights, search, uniform_grid
from ropebend.stats import cluster_bootstrap
from ropebend.tasks import kv

MIN_TEST = 10  # JSON objects; a bootstrap over fewer says nothing


@dataclass(frozen=True)
class Settings:
    """What decides a search.  Same settings, model and versions, at fixed threads: same result to the bit."""

    n_search: int = 10
    n_validation: int = 24
    n_test: int = 60
    depths: tuple[float, ...] = DEPTHS
    weights: tuple[float, ...] | None = None
    protocol: str = "shared"
    budget: int = 200
    seed: int = 1
    population: int = 16
    rope: RopeMethod = NO_METHOD
    n_threads: int = 0
    n_batch: int = 512
    flash_attn: bool = False


@dataclass(frozen=True)
class Outcome:
    """The scales found and how they do on the test items, which the search has never seen.

    uniform is the best uniform scale, found with the same care; tests are in the order unscaled, uniform, layers,
    and None if the search was interrupted.
    """

    layers: LayerScaling
    uniform: LayerScaling
    found: Found
    tests: tuple[Evaluation, Evaluation, Evaluation] | None
    n_tokens: int
    seconds: float

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """Accuracy of layers minus uniform, with its 95 % interval (paired, bootstrap over JSON objects)."""
        if self.tests is None:
            return None
        per_json = self.tests[2].correct.mean(axis=1) - self.tests[1].correct.mean(axis=1)
        return (float(per_json.mean()), *cluster_bootstrap(per_json))


def run(
    model: Model,
    samples: Sequence[kv.Sample],
    settings: Settings,
    *,
    task: dict[str, Any],
    on_start: Callable[[KVEvaluator], None] | None = None,
    on_search: Callable[[Progress], None] | None = None,
    on_test: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Search on the first items, choose on the next, test on the last.

    task describes the items for the provenance.  Raises RopebendError if the model cannot take scales.
    """
    split = Split.of(samples, settings.n_search, settings.n_validation, settings.n_test)
    info = model.info
    base = LayerScaling((1.0,) * info.n_layer, info.architecture, settings.rope)
    check_supported(info, base)
    base = base.with_original_context(info.n_ctx_train)
    weights = depth_weights(settings.weights, len(settings.depths))
    started = time.monotonic()
    with KVEvaluator(
        model,
        samples,
        depths=settings.depths,
        protocol=settings.protocol,
        n_threads=settings.n_threads,
        n_batch=settings.n_batch,
        flash_attn=settings.flash_attn,
    ) as evaluator:
        if on_start is not None:
            on_start(evaluator)
        grid = uniform_grid(evaluator.n_tokens / info.n_ctx_train / settings.rope.factor)
        ga = GeneticSearch(
            info.n_layer,
            seed=settings.seed,
            population=settings.population,
            uniform_scales=grid,
            max_scale=max(MAX_SCALE, grid[-1]),
        )
        found = search(evaluator, ga, split, budget=settings.budget, base=base, weights=weights, progress=on_search)
        layers = replace(base, layer_scale=found.layers.scales, control_points=found.layers.candidate.control_points)
        uniform = replace(base, layer_scale=found.uniform.scales)
        tests = None
        try:
            if not found.interrupted:
                results = []
                for name, scaling in (("unscaled", None), ("best uniform", uniform), ("layer scales", layers)):
                    tick = (lambda n, name=name: on_test(name, n)) if on_test is not None else None
                    results.append(evaluate(evaluator, split.test, scaling, full=True, progress=tick))
                tests = (results[0], results[1], results[2])
        except KeyboardInterrupt:
            found = replace(found, interrupted=True)
        n_tokens = evaluator.n_tokens
    outcome = Outcome(layers, uniform, found, tests, n_tokens, time.monotonic() - started)
    return replace(outcome, layers=_with_provenance(outcome, model, settings, task))


def _with_provenance(outcome: Outcome, model: Model, settings: Settings, task: dict[str, Any]) -> LayerScaling:
    import llama_cpp

    import ropebend

    found = outcome.found
    scores: dict[str, Any] = {
        "search_fitness": round(found.history[-1], 6) if found.history else None,
        "validation_fitness": None if found.interrupted else round(found.layers.fitness, 6),
    }
    if outcome.tests is not None:
        names = ("unscaled", "best_uniform", "layer_scale")
        scores["test_accuracy"] = {n: round(t.accuracy, 4) for n, t in zip(names, outcome.tests, strict=True)}
        scores["best_uniform"] = outcome.uniform.layer_scale[0]
    provenance = {
        "model": {"file": Path(model.info.path).name, "sha256": file_digest(model.info.path)},
        "task": task,
        "n_ctx": outcome.n_tokens,
        "settings": {**asdict(settings), "n_threads": settings.n_threads or available_threads()},
        "evaluations": found.n_evaluated,
        "interrupted": found.interrupted,
        "scores": scores,
        "versions": {
            "ropebend": ropebend.__version__,
            "llama_cpp_python": llama_cpp.__version__,
            "numpy": np.__version__,
        },
    }
    return replace(outcome.layers, provenance=provenance)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verdict(outcome: Outcome) -> str:
    """One honest sentence about layer scales against the best uniform scale."""
    gain = outcome.gain
    if gain is None:
        return "The search was interrupted: these are the best scales so far, not judged on test items."
    mean, low, high = (100 * g for g in gain)
    figures = f"{mean:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
    if outcome.tests is not None and len(outcome.tests[0].correct) < MIN_TEST:
        return f"Layer scales against the best uniform scale: {mean:+.1f} points, on too few test items to tell."
    if low > 0:
        return f"Layer scales beat the best uniform scale by {figures} on test items."
    if high < 0:
        return f"Layer scales do WORSE than the best uniform scale: {figures} on test items. Use the uniform scale."
    return f"Layer scales against the best uniform scale: {figures} on test items, which is within noise."
