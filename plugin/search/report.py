"""report.html (self-contained) and the pictures of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ropebend.durations import duration
from ropebend.evaluate import RetrievalEvaluation
from ropebend.files import write_bytes
from ropebend.search import plot
from ropebend.search.outcome import UNSCALED, Found, Outcome
from ropebend.search.spec import SearchSpec
from ropebend.search.verdict import rival, verdict
from ropebend.shell import command
from ropebend.tasks.task import Task

#: What a score is.
SCORE = (
    "Score: (1 - worst) times the mean over depths plus worst times the worst depth, of a quarter of the "
    "accuracy and three quarters of the answers' mean probability per token; for a text the mean log-probability per "
    "token. Scores compare on the same items only."
)
#: Above figures that the search has chosen by.
SEEN = "on the search's own items, which flatter what was chosen by them; nothing is judged yet"


class Picture(NamedTuple):
    """A PNG of a report; name: of its file in the folder."""

    title: str
    name: str
    data: bytes


def write_report(
    folder: Path, outcome: Outcome, first: Sequence[Picture] = (), commands: Sequence[str] | None = None
) -> None:
    """Write report.html and its pictures into the run folder.

    first     pictures to begin with
    commands  what to type next, None: what suits a search
    """
    title = title_of(outcome)
    tests = {name: by_task[0] for name, by_task in outcome.tests.items()}
    commands = next_commands(outcome, folder) if commands is None else commands
    pictures = [*first]
    by_depth = {
        name: t for name, t in (tests or outcome.seen).items() if isinstance(t, RetrievalEvaluation) and t.depths
    }
    if by_depth:
        what = "Accuracy by depth" + ("" if tests else ": the search's own items")
        pictures.append(Picture(what, "accuracy.png", plot.accuracy(title, by_depth)))
    pictures += layer_pictures(title, outcome.found, outcome.spec.label)
    if any(len(f.history) > 1 for f in outcome.found.values()):
        pictures.append(Picture("Best score by generation", "scores.png", plot.scores(title, outcome.found)))
    write_page(folder, title, verdict(outcome), summary(outcome), _tables(outcome), pictures, outcome.spec, commands)


def layer_pictures(title: str, found: Mapping[str, Found], main: str | None) -> list[Picture]:
    """The scales of all winners by layer, and their attention factors where there are some."""
    out = [Picture("Scales", "scales.png", plot.numbers(title, found, main, "scale"))]
    if any(f.best.candidate.attn for f in found.values()):
        out.append(Picture("Attention factors", "attn.png", plot.numbers(title, found, main, "attn")))
    return out


def next_commands(outcome: Outcome, folder: Path, whole: Path | None = None) -> list[str]:
    """What to type next, each with a word before it; whole: the folder of all seeds."""
    lines = []
    if outcome.interrupted:
        resume = command("ropebend", "search", "--resume", whole or folder)
        lines.append(f"go on:  {resume}   # {duration(outcome.left)} left")
    if not outcome.layers.is_unscaled:
        add = command("ropebend", "add-scales", Path(outcome.spec.model), folder / "factors.json")
        if not outcome.tests:
            add += "   # not judged yet"
        elif outcome.tests[outcome.main.name][0].against(outcome.tests[rival(outcome)[0]][0]).low <= 0:
            add += f"   # no clear gain over {rival(outcome)[1]}"
        lines.append(f"next:   {add}")
    return lines


def write_page(
    folder: Path, title: str, verdict: str, summary: str, tables: Sequence[dict[str, Any]], pictures: Sequence[Picture],
    spec: SearchSpec, commands: Sequence[str] = (),
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
        commands=commands,
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
    judged = f"stopped before the judgement; {duration(outcome.left)} are missing"
    if outcome.tests:
        n_judged = outcome.tests[UNSCALED][0].n_items
        judged = f"winners judged on {n_judged} items never seen in the search"
    return (
        f"{n} sets of scales measured in {len(outcome.found)} searches, {outcome.n_tokens / 1e6:.1f} M prompt tokens, "
        f"{duration(outcome.seconds)}; {judged}."
    )


def _tables(outcome: Outcome) -> list[dict[str, Any]]:
    main = outcome.spec.label
    out = []
    for i, task in enumerate(outcome.tasks if outcome.tests else ()):
        part = "objective" if i < len(outcome.spec.tasks) else "transfer: not searched on"
        results = {name: by_task[i] for name, by_task in outcome.tests.items()}
        unscaled = results[UNSCALED]
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
    if not outcome.tests and outcome.seen:
        first = outcome.seen[UNSCALED]
        rows = [[name, r.in_words(), *r.by_depth()] for name, r in outcome.seen.items()]
        head = ["scales", first.measure, *(f"depth {c}" for c in first.columns)]
        out.append({"title": describe(outcome.tasks[0]), "head": head, "rows": rows, "note": SEEN})
    winners: list[list[Any]] = [
        [name, f.n_evaluated, f"{f.best.score:.4f}", f.n_items, f"{f.best.candidate.factor:g}",
         *(" ".join(f"{v:g}" for v in f.best.candidate.number(n)) for n in ("scale", "attn"))]
        for name, f in outcome.found.items()
    ]  # fmt: skip
    head = ["search", "evaluations", "score", "on items", "factor", "scales by layer", "attention factors"]
    return [*out, {"title": "Winners", "head": head, "rows": winners, "note": SCORE}]
