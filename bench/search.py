#!/usr/bin/env python3
"""What a search costs, what its short cuts cost it: bench/search.py queries | longrope | workers | racing.

The task is key-value retrieval (protocol shared, 5 depths) on the bundled needle at about twice its trained length.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

import evaluate
import numpy as np
import replay
import table
import typer
from decode import NEEDLE
from rich.console import Console
from rich.progress import Progress

from ropebend.cli.search_view import print_outcome, search_with_progress
from ropebend.entry import run_app
from ropebend.errors import UsageError
from ropebend.evaluate import Row
from ropebend.model_info import ModelInfo
from ropebend.runtime import Runtime
from ropebend.search import SearchSpec, TaskSpec
from ropebend.search import folder as run_folder
from ropebend.search.measure import Measurer, read_log
from ropebend.search.optimiser import Scored
from ropebend.search.optimisers import race
from ropebend.search.run import open_measurer
from ropebend.search.space import Candidate, make_space

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

ModelPath = Annotated[Path, typer.Option("--model", help="GGUF.", show_default="needle")]
Keys = Annotated[int, typer.Option(min=1, help="Key-value pairs per JSON object.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the threads are shared out among them.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads in all (0: all this process may use).")]
GpuLayers = Annotated[int, typer.Option(min=-1, help="Layers to put on the GPU (-1: all).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Run folder; what is there already counts.")]
Seed = Annotated[int, typer.Option(help="Seed of the items and of what is drawn.")]

app.command("queries")(evaluate.main)


def kv_spec(model: Path, keys: int, items: str, **rest: Any) -> SearchSpec:
    """A search on key-value retrieval by the paper's method; items: the seed of the JSON objects."""
    task = TaskSpec(name="kv", options={"keys": keys, "seed": items})
    paper: dict[str, Any] = {"genome": "bezier", "optimiser": "ga", "numbers": "scale"}
    return SearchSpec(model=str(model), tasks=(task,), **paper, **rest)


def begin(folder: Path, spec: SearchSpec) -> SearchSpec:
    """Make a run folder, or go on in the one that is there.  Raises UsageError if it was begun with other options."""
    if not (folder / run_folder.CONFIG).exists():
        return run_folder.start(folder, spec)
    there, changed = run_folder.resume(folder)
    if changed or there != spec.model_copy(update={"model": str(Path(spec.model).absolute())}):
        raise UsageError(f"{folder}: was begun with other options or versions; take another --output")
    print(f"going on with {folder}; minutes printed are those of this call alone")
    return there


def measuring(spec: SearchSpec, n_items: int, log: Path | None) -> AbstractContextManager[Measurer]:
    """What measures the spec's objective."""
    objective = spec.objective()
    tasks = [term.task for term in objective.terms]
    return open_measurer(spec, ModelInfo.read(spec.model), objective, tasks, n_items, log)


# ---- longrope


@app.command()
def longrope(
    evaluations: Annotated[int, typer.Option(min=1, help="Sets of scales; LongRoPE's budget is 1,344.")] = 1344,
    screen: Annotated[int, typer.Option(min=1, help="JSON objects on which every set is measured.")] = 4,
    finalists: Annotated[int, typer.Option(min=1, help="The best ones, measured on more.")] = 32,
    items: Annotated[int, typer.Option(min=1, help="JSON objects on which the finalists are measured.")] = 32,
    test: Annotated[int, typer.Option(min=1, help="Unseen JSON objects to judge the winners on.")] = 200,
    population: Annotated[int, typer.Option(min=2, help="Sets of scales per generation.")] = 64,
    model: ModelPath = NEEDLE,
    keys: Keys = 56,
    workers: Workers = 2,
    threads: Threads = 0,
    gpu_layers: GpuLayers = 0,
    seed: Seed = 1,
    output: Output = Path("bench-longrope"),
) -> None:
    """A search at LongRoPE's budget: all on a few JSON objects, the best on more, the winner on many unseen ones.

    Takes some 20 minutes on 2 cores, and goes on where it was stopped.
    The same from the command line: ropebend search MODEL --keys 56 --search scale --genome bezier --optimiser ga
    --budget 1344 --population 64 --screen 4 --finals 32x32 --test 200 --controls uniform --workers 2
    """
    spec = kv_spec(
        model, keys, f"longrope-{seed}", budget=str(evaluations), population=population, screen=screen,
        finals=((finalists, items),), test=test, controls=("uniform",), seed=seed, workers=workers,
        runtime=Runtime(threads, gpu_layers),
    )  # fmt: skip
    spec = begin(output, spec)
    outcome = search_with_progress(output, spec)
    if outcome.interrupted:
        print("stopped; the same call goes on from here")
        raise typer.Exit(130)
    print_outcome(outcome)

    per_set: Counter[tuple[float, ...]] = Counter()  # JSON objects on which each was measured before it was judged
    spent: dict[str, Counter[str]] = {}
    for logged in read_log(output / run_folder.LOG):
        key, full = logged.key.candidate, logged.key.full
        scales = key[0] if key is not None else None
        stage = stage_of(scales, logged.item, full, screen)
        spent.setdefault(stage, Counter()).update(items=1, tokens=logged.done.n_tokens)
        if not full:
            per_set[scales or (1.0,)] += 1
    print(f"\n{'stage':46}{'items':>8}{'M tokens':>10}")
    for stage, sums in sorted(spent.items()):
        print(f"{stage:46}{sums['items']:8,}{sums['tokens'] / 1e6:10.2f}")
    print(f"{'all':46}{sum(s['items'] for s in spent.values()):8,}{outcome.n_tokens / 1e6:10.2f}")
    main = outcome.main
    most = sorted(per_set.values(), reverse=True)[:finalists]
    print(
        f"\n{main.n_evaluated:,} sets of scales measured in the search itself; {main.n_repeated:,} genomes more stood "
        f"for a known one and were not measured again\n"
        f"each on {min(per_set.values())} JSON objects or more, {len(most)} on {min(most)} or more, the winners on "
        f"{test} unseen ones; {outcome.seconds / 60:.1f} minutes with {workers} worker(s)"
    )
    per_item = spent["1 screening"]["tokens"] / spent["1 screening"]["items"]
    raced = main.n_evaluated * screen + finalists * (items - screen)
    print(f"the search itself: {raced:,} items, {raced * per_item / 1e6:,.2f} M tokens")
    for n in (items, test):
        whole = main.n_evaluated * n
        print(
            f"every set on {n} JSON objects: {whole * per_item / 1e6:,.2f} M tokens, {whole / raced:.1f} times as many"
        )


def stage_of(scales: tuple[float, ...] | None, item: int, full: bool, screen: int) -> str:
    """What a measurement was for."""
    if full:
        return "4 judging the winners and the unscaled model"
    if scales is None or len(set(scales)) == 1:
        return "3 uniform scales: the control, and seeds"
    return "2 finals" if item >= screen else "1 screening"


# ---- workers


@app.command()
def workers(
    layouts: Annotated[str, typer.Option(help="WORKERSxTHREADS,…; ratios are to the last one.")] = "2x1,1x2",
    genomes: Annotated[int, typer.Option(min=1, help="Sets of scales per round.")] = 8,
    items: Annotated[int, typer.Option(min=1, help="JSON objects per set.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with other sets, the layouts in turns.")] = 10,
    model: ModelPath = NEEDLE,
    keys: Keys = 56,
    gpu_layers: GpuLayers = 0,
    seed: Seed = 1,
) -> None:
    """Evaluations per minute of several processes with few threads / of few processes with several threads."""
    try:
        shapes = {text: tuple(map(int, text.split("x"))) for text in layouts.split(",")}
        if not all(len(shape) == 2 and min(shape) >= 1 for shape in shapes.values()):
            raise ValueError
    except ValueError:
        raise UsageError(f"--layouts: expected WORKERSxTHREADS,… such as 2x1,1x2, got {layouts!r}") from None
    info = ModelInfo.read(model)
    space, rng = make_space("bezier", info.n_layer), np.random.default_rng(seed)
    rows: dict[str, list[Row]] = {name: [] for name in shapes}
    took: dict[str, list[float]] = {name: [] for name in shapes}
    tokens: list[int] = []
    with ExitStack() as stack:
        measurers: dict[str, Measurer] = {}
        for name, (n, threads) in shapes.items():
            spec = kv_spec(model, keys, f"workers-{seed}", workers=n, runtime=Runtime(n * threads, gpu_layers))
            measurers[name] = stack.enter_context(measuring(spec, items, None))
        for i in range(rounds + 1):
            candidates = [space.express(space.newcomer(rng)) for _ in range(genomes)]
            names = list(shapes)
            for name in names[i % len(names) :] + names[: i % len(names)]:
                before, started = measurers[name].n_tokens, time.perf_counter()
                got = measurers[name].rows(candidates, [0], range(items))
                if i == 0:  # loads the models and tokenises the prompts
                    continue
                took[name].append(time.perf_counter() - started)
                tokens.append(measurers[name].n_tokens - before)
                rows[name] += [row for by_task in got for row in by_task[0]]
    print(f"{keys} pairs, {rounds} rounds of {genomes} sets of scales x {items} JSON objects x 5 depths")
    for name in shapes:
        seconds = float(np.median(took[name]))
        sets, speed = 60 * genomes / seconds, np.mean(tokens) / seconds
        print(f"{name:>5} {sets:8.1f} sets per minute, {speed:8,.0f} prompt tokens/s")
    *others, last = shapes
    for name in others:
        print(f"{name} / {last}: {table.spread(np.array(took[last]) / np.array(took[name]))}")
        print(difference(rows[name], rows[last]))


def difference(a: Sequence[Row], b: Sequence[Row]) -> str:
    """How far two measurements of the same items agree."""
    differ = [(x, y) for x, y in zip(a, b, strict=True) if (x.value, x.logprob) != (y.value, y.logprob)]
    if not differ:
        return f"verdicts and log-probabilities of all {len(a)} items are the same to the bit"
    margins = [
        max(m, n) for x, y in differ for v, w, m, n in zip(x.value, y.value, x.margin, y.margin, strict=True) if v != w
    ]
    logprob = max(np.abs(np.subtract(x.logprob, y.logprob)).max() for x, y in differ)
    return (
        f"{len(differ)} of {len(a)} items differ, by {logprob:.2g} in log-probability at most; {len(margins)} verdicts "
        f"do, at margins of {max(margins, default=0):.2g} logits at most"
    )


# ---- racing


@app.command()
def racing(
    genomes: Annotated[int, typer.Option(min=2, help="Sets of scales, all measured on all items.")] = 84,
    items: Annotated[int, typer.Option(min=2, help="JSON objects measured.")] = 96,
    final: Annotated[int, typer.Option(min=1, help="JSON objects of the last stage; the others judge.")] = 32,
    screens: Annotated[str, typer.Option(help="JSON objects of the first stage, all sets.")] = "2,4,8",
    finalists: Annotated[str, typer.Option(help="Sets in the last stage (1: the screen decides).")] = "1,2,5,21",
    orders: Annotated[int, typer.Option(min=1, help="Random orders of the items to replay.")] = 300,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Run folder of a search to take the sets from, evenly.", show_default="run one"),
    ] = None,
    model: ModelPath = NEEDLE,
    keys: Keys = 56,
    workers: Workers = 2,
    threads: Threads = 0,
    gpu_layers: GpuLayers = 0,
    seed: Seed = 1,
    output: Output = Path("bench-racing"),
) -> None:
    """What racing costs in accuracy of the choice, against measuring every set on as many items as the finalists.

    A genetic search (on items of its own) makes the sets, all are measured on all items, and the search's own race is
    replayed on the measurements with the items in random orders.  Both choices are judged on the items that were in
    neither.  LongRoPE's budget sends 32 of 1,344 to the last stage, as 2 of 84 here.  Takes some 20 minutes on 2 cores;
    what was measured is kept, so that other rules can be replayed in seconds.
    """
    rules = [(s, k) for s in numbers(screens, "--screens", final) for k in numbers(finalists, "--finalists", genomes)]
    if final >= items:
        raise UsageError(f"--final: expected fewer than the {items} --items, some must be left to judge, got {final}")
    common: dict[str, Any] = {
        "controls": (), "budget": str(genomes), "finals": (), "test": 1, "seed": seed, "workers": workers,
        "runtime": Runtime(threads, gpu_layers),
    }  # fmt: skip
    if source is None:
        source = output / "genomes"
        breed = begin(source, kv_spec(model, keys, f"breed-{seed}", screen=4, **common))
        if search_with_progress(source, breed).interrupted:
            raise KeyboardInterrupt
    run_folder.resume(source)  # that it is one
    spec = begin(output, kv_spec(model, keys, f"racing-{seed}", screen=items, **common))
    keys_made = dict.fromkeys(entry.key.candidate for entry in read_log(source / run_folder.LOG))
    unscaled = (1.0,) * ModelInfo.read(model).n_layer
    everyone = [Candidate(*key) if key is not None else Candidate(unscaled) for key in keys_made]
    if len(everyone) < genomes:
        raise UsageError(f"{source}: holds {len(everyone)} sets of scales, --genomes {genomes} wanted")
    candidates = [everyone[i] for i in np.linspace(0, len(everyone) - 1, genomes).round().astype(int)]
    with measuring(spec, items, output / run_folder.LOG) as measurer, Progress(console=Console(stderr=True)) as bar:
        job = bar.add_task("measuring", total=genomes * items)
        got = measurer.rows(candidates, [0], range(items), on_item=lambda: bar.advance(job))
        objective, n_tokens = measurer.objective, measurer.n_tokens
    rows = {c: by_task[0] for c, by_task in zip(candidates, got, strict=True)}

    def choice(stages: Sequence[tuple[int, int]], order: Sequence[int]) -> int:
        entrants = [Scored(c, 0.0) for c in candidates]
        return candidates.index(race(entrants, stages, replay.scorer(objective, rows, order))[0].candidate)

    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(items).tolist() for _ in range(orders)]
    judging = [order[final:] for order in shuffled]
    accuracy = np.array([[np.mean(row.value) for row in rows[c]] for c in candidates])
    best = choice([(genomes, items)], range(items))
    full = [choice([(genomes, final)], order) for order in shuffled]
    by_set = accuracy.mean(axis=1)
    print(
        f"{genomes} sets of scales on {items} JSON objects of {keys} pairs x 5 depths, {n_tokens / 1e6:.1f} M tokens: "
        f"accuracy {by_set.min():.1%} to {by_set.max():.1%}, the best set by score {by_set[best]:.1%}\n"
        f"{orders} orders of the items; full: every set on the first {final}; accuracy: on the {items - final} others; "
        f"regret: full's accuracy - racing's\n"
    )
    print(f"{'':18}{'items':>7}{'chooses':>10}{'the best of all':>17}{'accuracy':>16}   regret, points")
    print(f"{'rule':18}{'/ full':>7}{'as full':>10}{'race':>10}{'full':>7}{'race':>9}{'full':>7}   mean [95 %]")
    for screen, n_finalists in rules:
        stages = [(genomes, screen), (n_finalists, final)]
        raced = [choice(stages, order) for order in shuffled]
        share = (genomes * screen + n_finalists * (final - screen)) / (genomes * final)
        mean, low, high = replay.regret(accuracy, full, raced, judging)
        print(
            f"{f'{screen}, best {n_finalists} on {final}':18}{share:7.2f}{np.mean(np.equal(raced, full)):10.0%}"
            f"{np.mean(np.equal(raced, best)):10.0%}{np.mean(np.equal(full, best)):7.0%}"
            f"{replay.judged(accuracy, raced, judging):9.1%}{replay.judged(accuracy, full, judging):7.1%}"
            f"   {mean:+.1f} [{low:+.1f} to {high:+.1f}]"
        )
    print("\n[95 %]: bootstrap over the items that judge, for these sets of scales\n")
    logprob = np.array([[row.logprob for row in rows[c]] for c in candidates])
    score = np.array([[objective.score([[row]], [[row]]) for row in rows[c]] for c in candidates])
    sizes = [k for k in (1, 2, 3, 6, 12) if k <= items // 2]
    print("how a few items rank the sets: Spearman's rho with accuracy on the later half of the items (points lost)")
    print(f"{'':24}" + "".join(f"{f'{k} items':>14}" for k in sizes))
    for name, of in (
        ("accuracy", accuracy),
        ("log-probability", logprob.mean(axis=2)),
        ("probability", np.exp(logprob).mean(axis=2)),
        ("the search's score", score),
    ):
        found = [replay.rank_agreement(of, accuracy, k, shuffled) for k in sizes]
        print(f"{name:24}" + "".join(f"{f'{rho:.2f} ({lost:.1f})':>14}" for rho, lost in found))


def numbers(text: str, option: str, top: int) -> list[int]:
    """Whole numbers separated by commas, 1 to top."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [0]
    if not all(1 <= v <= top for v in values):
        raise UsageError(f"{option}: expected whole numbers from 1 to {top} separated by commas, got {text!r}")
    return values


if __name__ == "__main__":
    run_app(app)
