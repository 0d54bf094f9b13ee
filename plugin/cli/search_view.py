"""What a search shows: its plan and progress while it runs, and its tables at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ropebend.cli.eval import accuracy_table
from ropebend.cli.progress import Bar, stopping_kindly
from ropebend.cli.show import render
from ropebend.durations import brief, duration
from ropebend.search import seeds
from ropebend.search.cost import Cost, total_seconds
from ropebend.search.folder import run_in
from ropebend.search.outcome import START, Generation, Listener, Outcome, Progress
from ropebend.search.report import SEEN, describe, summary, title_of
from ropebend.search.spec import Budget, SearchSpec
from ropebend.search.verdict import verdict


def search_with_progress(folder: Path, spec: SearchSpec) -> Outcome:
    """Run a search in its folder with a live view: what is measured, the best score, the time left.

    SIGTERM ends it as Ctrl-C does.
    """
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{Path(spec.model).name}: loading, and measuring the first items")
    with stopping_kindly(), Bar(console, time.monotonic) as bar:

        class Live(Listener):
            def __init__(self) -> None:
                self.best: dict[str, list[float]] = {}
                self.note_ = ""

            def note(self, text: str) -> None:
                say(text)

            def foreseen(self, spec: SearchSpec, cost: Cost) -> None:
                say(foreseen_in_words(spec, cost))

            def started(self, spec: SearchSpec, cost: Cost) -> None:
                for line in plan_in_words(spec, cost):
                    say(line)

            def stage(self, stage: str) -> None:
                self.note_ = ""

            def progress(self, progress: Progress) -> None:
                bar.show(progress.stage, progress.done, progress.seconds, self.note_)

            def generation(self, state: Generation) -> None:
                best = self.best.setdefault(state.search, [])
                best.append(state.best)
                self.note_ = f"{_sparkline(best)} best {state.best:.3f}  {state.n_evaluated} sets"
                if not console.is_terminal:
                    say(
                        f"{state.search}, generation {state.number}: {state.n_evaluated} evaluations, "
                        f"best {state.best:.3f}, mean {state.mean:.3f}"
                    )

        return run_in(folder, spec, Live())


def plan_in_words(spec: SearchSpec, cost: Cost) -> list[str]:
    """What will be measured, how fast that goes, and how long it takes in all."""
    names = ", ".join(name for name, *_ in spec.searches())
    finals = " and ".join(f"the best {n} on {k} items" for n, k in spec.finals)
    speed = f"{cost.n_tokens / cost.seconds:,.0f} tokens/s" if cost.seconds else "as measured before"
    chat = ", in the model's chat template" if cost.chat else ""
    methods = f"first {cost.methods} measurements of linear, NTK and YaRN; then " if cost.methods else ""
    lines = [
        f"prompts of up to {cost.context:,} tokens{chat}; {speed}, "
        f"{brief(cost.seconds)} s for a set of scales on an item",
        f"{methods}searches: {names}; each set on {spec.screen} items"
        + (f", {finals} of each search" if finals else "")
        + f"; judged on {spec.test} unseen items",
    ]
    total = total_seconds(spec, cost)
    late = min(cost.late * cost.seconds, total)
    n_tokens = total / cost.seconds * cost.n_tokens if cost.seconds else 0.0
    so_far = f" ({duration(cost.spent)} are behind it)" if cost.spent > 60 else ""
    lines.append(
        f"at most {duration(total)}{so_far}, of which {duration(late)} for finals and judgement; "
        f"about {brief(n_tokens / 1e6)} M prompt tokens; Ctrl-C keeps the best so far"
    )
    return lines


def foreseen_in_words(spec: SearchSpec, cost: Cost) -> str:
    """What the first tokens promise."""
    total = total_seconds(spec, cost)
    if Budget.parse(spec.budget).unit == "seconds":
        then = f"{spec.budget} hold about {total / cost.seconds:,.0f} of them"
    else:
        then = f"about {duration(total)} in all"
    return (
        f"prompts of up to {cost.context:,} tokens; {cost.n_tokens / cost.seconds:,.0f} tokens/s, so that a set of "
        f"scales on an item takes about {brief(cost.seconds)} s; {then}; the plan follows when the first items are "
        "measured"
    )


def _sparkline(values: list[float], width: int = 12) -> str:
    """The last values as bars."""
    shown = values[-width:]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) / span * 7)] for v in shown)


def print_outcome(outcome: Outcome) -> None:
    """The table on test items, the scales, and what they are worth."""
    print(f"{title_of(outcome)}\n{summary(outcome)}\n\n{render(outcome.layers)}\n")
    for i, task in enumerate(outcome.tasks):
        if outcome.tests:
            if len(outcome.tasks) > 1:
                print(describe(task) + ("" if i < len(outcome.spec.tasks) else " (transfer: not searched on)"))
            print(accuracy_table([(named(outcome, name), by_task[i]) for name, by_task in outcome.tests.items()]))
    if not outcome.tests and outcome.seen:
        print(f"{SEEN}\n{accuracy_table([(named(outcome, name), e) for name, e in outcome.seen.items()])}")
    print(verdict(outcome))


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """The test items of all seeds together, and how far the seeds differ."""
    print(f"all {len(outcomes)} seeds\n{accuracy_table([*seeds.pooled(outcomes).items()])}")
    print(seeds.verdict_on_all(outcomes))


def named(outcome: Outcome, name: str) -> str:
    """The name in tables, for uniform numbers with what they are."""
    found = outcome.found.get(name)
    c = found.best.candidate if found is not None else outcome.spec.begin if name == START else None
    if c is None or not c.is_uniform:
        return name
    if name == START and outcome.spec.method != "none":
        name = f"{name}: {outcome.spec.method}"
    attn = f", attn {c.attn[0]:g}" if c.attn else ""
    return f"{name} ({c.scales[0]:g}{attn})"
