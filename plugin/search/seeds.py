"""The same search under several seeds, each with its own draws and its own items: how far the seed decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropebend.errors import UsageError
from ropebend.evaluate import Evaluation
from ropebend.files import write_json
from ropebend.search import folder as run_folder
from ropebend.search.outcome import Outcome
from ropebend.search.report import describe, layer_pictures, write_page
from ropebend.search.spec import SearchSpec
from ropebend.search.verdict import rival, sentence
from ropebend.shell import command

FORMAT = "ropebend-seeds/1"


def folders_in(folder: Path) -> list[Path]:
    """The run folders of a search under several seeds, by seed; none if it is something else."""
    found = {int(f.name[5:]): f for f in folder.glob("seed-*") if f.name[5:].isdecimal() and run_folder.is_ours(f)}
    return [found[seed] for seed in sorted(found)]


def start(folder: Path, specs: Sequence[SearchSpec], *, force: bool = False) -> list[tuple[Path, SearchSpec]]:
    """Make run folders: the folder itself for one search, seed-1, seed-2 … in it for several.

    Raises UsageError if it holds a search already (force: that is thrown away), or anything of somebody else's that
    would be overwritten; then nothing is touched.
    """
    old = folders_in(folder)
    if old and not force:
        resume = command("ropebend", "search", "--resume", folder)
        raise UsageError(f"{folder}: holds searches already; go on with `{resume}`, or --force to start anew")
    parts = [folder] if len(specs) == 1 else [folder / f"seed-{spec.seed}" for spec in specs]
    run_folder.check_free(folder, force=force)
    for part in parts[len(specs) == 1 :]:
        run_folder.check_free(part, force=force)
    for part in (*old, folder):
        run_folder.clear(part)
        if part != folder and not any(part.iterdir()):
            part.rmdir()
    started = [(part, run_folder.start(part, spec)) for part, spec in zip(parts, specs, strict=True)]
    if len(specs) > 1:
        write_json(folder / run_folder.CONFIG, {"format": FORMAT, "seeds": [spec.seed for spec in specs]})
    return started


def pooled(outcomes: Sequence[Outcome]) -> dict[str, Evaluation]:
    """Test results on the first task by name of the scales, the items of all seeds one after another.

    Only of scales that every seed has.  An interval over them is one over items, for searches like these.
    """
    names = [n for n in outcomes[0].tests if all(n in o.tests for o in outcomes)]
    return {n: outcomes[0].tests[n][0].pooled([o.tests[n][0] for o in outcomes[1:]]) for n in names}


def verdict_on_all(outcomes: Sequence[Outcome]) -> str:
    """The layer scales of all seeds against the control, and from which to which gain the seeds lead."""
    first = outcomes[0]
    other, what = rival(first)
    everything = pooled(outcomes)
    line = sentence(everything[first.spec.label], everything[other], what)
    gains = [o.tests[first.spec.label][0].against(o.tests[other][0]).mean for o in outcomes]
    return f"{line} By seed: {everything[other].range_of_gains(gains)}."


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """report.html and a picture of all winners, of finished searches that differ in their seeds only."""
    first = outcomes[0]
    main = first.spec.label
    seeds = [o.spec.seed for o in outcomes]
    title = f"{first.info.name}: {main} under {len(seeds)} seeds"
    everything = pooled(outcomes)
    rows: list[list[Any]] = [
        [
            name,
            *(o.tests[name][0].in_words() for o in outcomes),
            result.in_words(),
            "" if name == main else result.gain(everything[main].against(result)),
        ]
        for name, result in everything.items()
    ]
    tables = [
        {
            "title": f"{describe(first.tasks[0])}: {everything[main].measure} on test items",
            "head": ["scales", *(f"seed {s}" for s in seeds), "all", f"{main} against it"],
            "rows": rows,
            "note": "Every seed has its own items (unless they come from a file) and its own draws. Brackets: 95 % "
            "bootstrap intervals over items; p: paired sign-flip test by item.",
        },
        {
            "title": "Winners",
            "head": ["seed", "scales by layer", "attention factors"],
            "rows": [
                [o.spec.seed, *(" ".join(f"{v:g}" for v in o.main.best.candidate.number(n)) for n in ("scale", "attn"))]
                for o in outcomes
            ],
            "note": "",
        },
    ]
    winners = {f"seed {o.spec.seed}": o.main for o in outcomes}
    pictures = layer_pictures(title, winners, None)
    spent = sum(o.n_tokens for o in outcomes) / 1e6, sum(o.seconds for o in outcomes) / 60
    summary = f"{spent[0]:.1f} M prompt tokens, {spent[1]:.1f} minutes; each seed's own report is in its folder."
    write_page(folder, title, verdict_on_all(outcomes), summary, tables, pictures, first.spec)
