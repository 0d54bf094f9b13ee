#!/usr/bin/env python3
"""Rebuild the tables of docs/results from the logs beside them: bench/results.py [--check].

In README.md a table stands between `<!-- table KIND FOLDER… -->` and `<!-- end -->`; folders are those that `ropebend
search` wrote, with their evaluations.jsonl packed by gzip.  Kinds:

run    one search: every set of scales that was judged, by depth, on the items that no search has seen
optimisers  bench/optimisers.py's results.jsonl
seeds  searches that differ by their seed (FOLDER is a pattern): the median over them, and the gains on all their items
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optimisers
import typer
from table import row

from ropebend.entry import run_app
from ropebend.errors import RopebendError
from ropebend.evaluate import Evaluation, RetrievalEvaluation, Row
from ropebend.scaling import LayerScaling
from ropebend.search.measure import read_log
from ropebend.search.outcome import START, UNSCALED

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TABLE = re.compile(r"(<!-- table (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Numbers = tuple[tuple[float, ...], tuple[float, ...] | None]  # scales, attention factors


def judged(folder: Path) -> dict[str, RetrievalEvaluation]:
    """What each set of scales did on the test items, by the name that the search gave it; the result last."""
    config = json.loads((folder / "config.json").read_text())["search"]
    found = LayerScaling.load(folder / "factors.json")
    rows: defaultdict[Numbers | None, dict[int, Row]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with gzip.open(folder / "evaluations.jsonl.gz") as packed, log.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        for logged in read_log(log):
            if logged.key.full and logged.key.task == 0:
                key = logged.key.candidate
                rows[None if key is None else (key[0], key[2])][logged.item] = logged.done.row
    items = sorted(rows[None])[-config["test"] :]
    depths = tuple(config["tasks"][0]["options"]["depths"])
    tests = {
        name_of(numbers, found): RetrievalEvaluation(
            depths, np.array([of[i].value for i in items]), np.array([of[i].logprob for i in items])
        )
        for numbers, of in rows.items()
        if set(items) <= of.keys()
    }
    said = {name: by_task[config["tasks"][0]["name"]] for name, by_task in found.provenance["scores"]["test"].items()}
    order = [UNSCALED, *(n for n in said if n in tests and n not in (UNSCALED, "found")), "found"]
    for name, evaluation in tests.items():
        expected = said[list(said)[-1] if name == "found" else name]
        if round(evaluation.figure, 4) != expected:
            raise RopebendError(f"{folder}: {name}: the log says {evaluation.figure:.4f}, factors.json {expected}")
    return {name: tests[name] for name in order}


def name_of(numbers: Numbers | None, found: LayerScaling) -> str:
    """Which of the sets that a search judges these are."""
    if numbers is None:
        return UNSCALED
    scales, attn = (np.float32(x if x is not None else 1.0) for x in numbers)
    if np.array_equal(scales, np.float32(found.layer_scale)) and np.all(attn == np.float32(found.layer_attn_factor)):
        return "found"
    begun = found.provenance["search"]
    if begun["start"] and np.allclose(scales, begun["start"]) and np.allclose(attn, begun["start_attn"] or 1.0):
        return START
    return "uniform" if np.ptp(scales) == 0 and np.ptp(attn) == 0 else "scales"


WORDS = {
    UNSCALED: "unscaled",
    START: "what the search began from",
    "uniform": "best uniform",
    "scales": "best layer scales (the paper's numbers)",
    "found": "**scales and attention factors**",
}


def run(folder: Path) -> list[str]:
    """The table of one search."""
    tests = judged(folder)
    first = next(iter(tests.values()))
    lines = [row("", *(f"depth {d}" for d in first.columns), "mean"), row("---", *["---"] * (len(first.columns) + 1))]
    lines += [row(WORDS[name], *e.by_depth(), e.in_words()) for name, e in tests.items()]
    best = tests["found"]
    gains = [f"{best.gain(best.against(e))} against {WORDS[n]}" for n, e in tests.items() if n != "found"]
    tokens = run_tokens(folder)
    return [*lines, "", f"{first.n_items} unseen items; {'; '.join(gains)}. {tokens}"]


def run_tokens(folder: Path) -> str:
    """What it took."""
    n, last = 0, 0.0
    with gzip.open(folder / "evaluations.jsonl.gz", "rt") as log:
        for line in map(json.loads, log):
            n, last = n + line["tokens"], line["elapsed"]
    return f"{n / 1e6:.1f} M prompt tokens, {last / 60:.0f} minutes."


def seeds(pattern: Path) -> list[str]:
    """The table of searches that differ by their seed."""
    by_seed = [judged(folder) for folder in sorted(pattern.parent.glob(pattern.name))]
    names = list(by_seed[0])
    lines = [row("", *(f"seed {i + 1}" for i in range(len(by_seed))), "median", "gain of both numbers, all items")]
    lines.append(row("---", *["---"] * (len(by_seed) + 2)))
    for name in names:
        of: Sequence[Evaluation] = [tests[name] for tests in by_seed]
        best: Sequence[Evaluation] = [tests["found"] for tests in by_seed]
        gain = ""
        if name != "found":
            mine, theirs = best[0].pooled(best[1:]), of[0].pooled(of[1:])
            gain = mine.gain(mine.against(theirs))
        median = f"{np.median([e.figure for e in of]):.1%}"
        lines.append(row(WORDS[name], *(f"{e.figure:.1%}" for e in of), median, gain))
    return lines


KINDS: dict[str, Any] = {"run": run, "seeds": seeds, "optimisers": optimisers.markdown}


def rebuilt(page: str) -> str:
    """The page with its tables as the logs say."""
    return TABLE.sub(lambda m: m[1] + "\n".join(KINDS[m[2]](RESULTS / m[3])) + "\n" + m[4], page)


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 if a table would change.")] = False,
) -> None:
    """Rebuild the tables of docs/results from the logs beside them."""
    for path in sorted(RESULTS.rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = rebuilt(before)
        if check and after != before:
            raise SystemExit(f"{path}: is not what the logs say: run `make results`")
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=__doc__)(main)
    run_app(app)
