"""report.html (self-contained) and the pictures of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ropebend.evaluate import RetrievalEvaluation
from ropebend.files import write_bytes
from ropebend.search import plot
from ropebend.search.outcome import Outcome
from ropebend.search.spec import SearchSpec
from ropebend.search.verdict import verdict
from ropebend.tasks.task import Task


class Picture(NamedTuple):
    """A PNG of a report; name: of its file in the folder."""

    title: str
    name: str
    data: bytes


def write_report(folder: Path, outcome: Outcome) -> None:
    """Write report.html and its pictures into the run folder."""
    title = title_of(outcome)
    tests = {name: by_task[0] for name, by_task in outcome.tests.items()}
    pictures = [
        Picture("Scales", "scales.png", plot.scales(title, outcome.found, outcome.spec.label)),
        Picture("Best score by generation", "scores.png", plot.scores(title, outcome.found)),
    ]
    by_depth = {name: t for name, t in tests.items() if isinstance(t, RetrievalEvaluation)}
    if by_depth:
        pictures.append(Picture("Accuracy by depth", "accuracy.png", plot.accuracy(title, by_depth)))
    write_page(folder, title, verdict(outcome), summary(outcome), _tables(outcome), pictures, outcome.spec)


def write_page(
    folder: Path, title: str, verdict: str, summary: str, tables: Sequence[dict[str, Any]], pictures: Sequence[Picture],
    spec: SearchSpec,
) -> None:  # fmt: skip
    """Write report.html, with everything in it, and the pictures beside it.

    tables  each with title, head (cells), rows (of cells) and note
    """
    for picture in pictures:
        write_bytes(folder / picture.name, picture.data)
    template = jinja2.Environment(autoescape=True).from_string(
        resources.files("ropebend.search").joinpath("report.html.jinja").read_text()
    )
    html = template.render(
        title=title,
        verdict=verdict,
        summary=summary,
        tables=tables,
        pictures=[{"title": p.title, "data": base64.b64encode(p.data).decode()} for p in pictures],
        config=json.dumps(spec.model_dump(mode="json", exclude={"model"}), indent=2),
    )
    write_bytes(folder / "report.html", html.encode())


def title_of(outcome: Outcome) -> str:
    """Model, task and length."""
    name, trained = outcome.info.name, outcome.info.n_ctx_train
    return f"{name}: {describe(outcome.tasks[0])}, up to {outcome.n_ctx} tokens (trained at {trained})"


def describe(task: Task) -> str:
    """A task and its size in a few words."""
    config = task.config()
    if "keys" in config:
        return f"{config['keys']} key-value pairs"
    sizes = [f"{k} {config[k]}" for k in ("length", "documents") if k in config]
    return " ".join([str(config["name"]), *sizes])


def summary(outcome: Outcome) -> str:
    """What was spent."""
    n = sum(f.n_evaluated for f in outcome.found.values())
    judged = f"winners judged on {outcome.spec.test} items never seen in the search" if outcome.tests else "interrupted"
    return (
        f"{n} sets of scales measured in {len(outcome.found)} searches, {outcome.n_tokens / 1e6:.1f} M prompt tokens, "
        f"{outcome.seconds / 60:.1f} minutes; {judged}."
    )


def _tables(outcome: Outcome) -> list[dict[str, Any]]:
    main = outcome.spec.label
    out = []
    for i, task in enumerate(outcome.tasks if outcome.tests else ()):
        part = "objective" if i < len(outcome.spec.tasks) else "transfer: not searched on"
        results = {name: by_task[i] for name, by_task in outcome.tests.items()}
        unscaled = results["unscaled"]
        config = ", ".join(
            f"{k} {v}" for k, v in task.config().items() if k not in ("name", "depths") and v is not None
        )
        out.append(
            {
                "title": f"{describe(task)} ({part})",
                "head": [
                    "scales",
                    unscaled.measure,
                    *(f"depth {c}" for c in unscaled.columns),
                    f"{main} against it",
                ],
                "rows": [
                    [
                        name,
                        r.in_words(),
                        *r.by_depth(),
                        "" if name == main else r.gain(results[main].against(r)),
                    ]
                    for name, r in results.items()
                ],
                "note": f"{config}. Brackets: 95 % intervals (by depth Wilson, else bootstrap over items); "
                "p: paired sign-flip test by item.",
            }
        )
    rows = [
        [name, f.n_evaluated, f"{f.best.score:.4f}", f.n_items, f"{f.best.candidate.factor:g}",
         " ".join(f"{s:g}" for s in f.best.candidate.scales)]
        for name, f in outcome.found.items()
    ]  # fmt: skip
    head = ["search", "evaluations", "score", "on items", "factor", "scales by layer"]
    return [*out, {"title": "Winners", "head": head, "rows": rows, "note": ""}]
