"""The run folder: config.json, evaluations.jsonl, factors.json, report.html and the pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ropebend.errors import RopebendError, UsageError
from ropebend.files import write_json
from ropebend.scaling import LayerScaling
from ropebend.search.digest import model_digest, versions
from ropebend.search.measure import read_log
from ropebend.search.outcome import Listener, Outcome
from ropebend.search.run import run_search
from ropebend.search.spec import PLACE, SearchSpec

FORMAT = "ropebend-search/1"
CONFIG, LOG, FACTORS = "config.json", "evaluations.jsonl", "factors.json"


def start(folder: Path, spec: SearchSpec, *, force: bool = False) -> SearchSpec:
    """Make a run folder for a new search.  Raises UsageError if one is there already (force: it is thrown away)."""
    check_free(folder, force=force)
    spec = spec.model_copy(update={"model": str(Path(spec.model).absolute())})
    config = {
        "format": FORMAT,
        "model_sha256": model_digest(spec.model),
        "versions": versions(),
        "search": spec.model_dump(mode="json"),
    }
    write_json(folder / CONFIG, config)
    return spec


def check_free(folder: Path, *, force: bool) -> None:
    """Raise UsageError if a search is there already; force: throw it away."""
    if not ((folder / CONFIG).exists() or (folder / LOG).exists()):
        return
    if not force:
        raise UsageError(f"{folder}: holds a search already; go on with --resume {folder}, or --force to start anew")
    for name in (CONFIG, LOG, FACTORS):
        (folder / name).unlink(missing_ok=True)


def resume(folder: Path) -> tuple[SearchSpec, list[str]]:
    """The spec of a search that was begun, and what differs since then (versions), in words.

    Raises RopebendError if there is none, if it cannot be read, or if the model is another one now.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']!r}")
        spec = SearchSpec.model_validate(_with_runtime(config["search"]))
        digest, then = config["model_sha256"], dict(config["versions"])
    except OSError as e:
        raise RopebendError(f"{path}: {e.strerror}; is {folder} the folder of a search?") from None
    except (ValueError, KeyError, TypeError, ValidationError) as e:
        raise RopebendError(f"{path}: not a search's configuration: {e}") from None
    if model_digest(spec.model) != digest:
        raise RopebendError(f"{spec.model}: is not the file any more that this search was begun with")
    changed = [f"{k} {then.get(k)} then, {v} now" for k, v in versions().items() if then.get(k) != v]
    return spec, changed


def _with_runtime(search: dict[str, Any]) -> dict[str, Any]:
    """A configuration of the first release, whose fields of `Runtime` stood among the others."""
    names = {
        "threads": "n_threads", "gpu_layers": "n_gpu_layers", "batch_size": "n_batch", "ubatch_size": "n_ubatch",
        "flash_attn": "flash_attn",
    }  # fmt: skip
    old = {new: search[name] for name, new in names.items() if name in search}
    rest = {k: v for k, v in search.items() if k not in names}
    return {**rest, "runtime": old} if old else rest


def run_in(folder: Path, spec: SearchSpec, listener: Listener | None = None) -> Outcome:
    """Search, and write factors.json, report.html and the pictures.

    A new search that fails before any scales are measured leaves nothing that would be in the way of the next one.
    """
    from ropebend.search.report import write_report

    digest = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_sha256"]
    log = folder / LOG
    new = not log.exists()
    try:
        outcome = run_search(spec, log, listener)
    except Exception:
        if new and not (log.exists() and any(key is not None for (key, _, _), *_ in read_log(log))):
            for path in (log, folder / CONFIG):
                path.unlink(missing_ok=True)
        raise
    outcome = replace(outcome, layers=with_provenance(outcome, digest))
    outcome.layers.save(folder / FACTORS)
    write_report(folder, outcome)
    return outcome


def with_provenance(outcome: Outcome, model_sha256: str) -> LayerScaling:
    """The result with everything that tells where it came from."""
    spec, main = outcome.spec, outcome.main
    scores: dict[str, Any] = {"search_score": round(main.best.score, 6), "search_items": main.n_items}
    if outcome.tests:
        scores["test"] = {
            name: {t.name: round(e.figure, 4) for t, e in zip(outcome.tasks, by_task, strict=True)}
            for name, by_task in outcome.tests.items()
        }
        if "uniform" in outcome.tests:
            c = outcome.tests[spec.label][0].against(outcome.tests["uniform"][0])
            scores["gain_over_uniform"] = [round(x, 4) for x in (c.mean, c.low, c.high)]
            scores["best_uniform"] = outcome.found["uniform"].best.candidate.scales[0]
    provenance = {
        "model": {"file": Path(spec.model).name, "sha256": model_sha256},
        "tasks": [t.config() for t in outcome.tasks[: len(spec.tasks)]],
        "n_ctx": outcome.n_ctx,
        "search": {**spec.model_dump(mode="json", exclude={"model", "tasks", "transfer", *PLACE})},
        "evaluations": {name: f.n_evaluated for name, f in outcome.found.items()},
        "interrupted": outcome.interrupted,
        "scores": scores,
        "versions": versions(),
    }
    return replace(outcome.layers, provenance=provenance)
