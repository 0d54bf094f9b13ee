"""The run folder: config.json, evaluations.jsonl, factors.json, report.html and the pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
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
from ropebend.shell import command

FORMAT = "ropebend-search/1"
MARK = "ropebend-"  # what the format of a config.json of ours begins with
CONFIG, LOG, FACTORS = "config.json", "evaluations.jsonl", "factors.json"
FILES = (CONFIG, LOG, FACTORS, "report.html", "accuracy.png", "scales.png", "scores.png")


def start(folder: Path, spec: SearchSpec, *, force: bool = False) -> SearchSpec:
    """Make a run folder for a new search.  Raises UsageError if it holds one (force: that is thrown away), or anything
    of somebody else's that would be overwritten."""
    check_free(folder, force=force)
    if force:
        clear(folder)
    spec = spec.model_copy(update={"model": str(Path(spec.model).absolute())})
    config = {
        "format": FORMAT,
        "model_sha256": model_digest(spec.model),
        "versions": versions(),
        "search": spec.model_dump(mode="json"),
    }
    write_json(folder / CONFIG, config)
    return spec


def is_ours(folder: Path) -> bool:
    """True if a search was begun here: config.json says so."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("format", "")).startswith(MARK)


def check_free(folder: Path, *, force: bool, names: Sequence[str] = ()) -> None:
    """Raise UsageError if a search may not write here; force: it may where a search was begun before.

    names  of more files that will be written
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, expected a folder for the search")
    if is_ours(folder):
        if not force:
            resume = command("ropebend", "search", "--resume", folder)
            raise UsageError(f"{folder}: holds a search already; go on with `{resume}`, or --force to start anew")
        return
    in_the_way = [name for name in (*FILES, *names) if os.path.lexists(folder / name)]
    if in_the_way:
        raise UsageError(
            f"{folder}: holds {in_the_way[0]}, which is not of a search of ours and would be overwritten; take another "
            "folder with -o"
        )


def clear(folder: Path) -> None:
    """Throw away what a search of ours wrote, and nothing else."""
    if not is_ours(folder):
        return
    for name in (*(f for f in FILES if f != CONFIG), CONFIG):  # what says that the rest is ours goes last
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
        spec = SearchSpec.model_validate({"numbers": "scale", **_with_runtime(config["search"])})
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
    """Search, and write factors.json, report.html and the pictures.  Raises as `run_search` does.

    A new search that fails before any scales are measured leaves nothing that would be in the way of the next one.
    """
    from ropebend.search.report import write_report

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    log = folder / LOG
    new = not log.exists()

    def settle(settled: SearchSpec) -> None:
        write_json(folder / CONFIG, {**config, "search": settled.model_dump(mode="json")})

    try:
        outcome = run_search(spec, log, listener, settle)
    except Exception:
        if new and not (log.exists() and any(logged.key.candidate is not None for logged in read_log(log))):
            for path in (log, folder / CONFIG):
                path.unlink(missing_ok=True)
        raise
    outcome = replace(outcome, layers=with_provenance(outcome, config["model_sha256"]))
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
            best = outcome.found["uniform"].best.candidate
            scores["best_uniform"] = {name: best.number(name)[0] for name in ("scale", "attn")}
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
