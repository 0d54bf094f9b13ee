"""`ropebend search`: find layer scales for a model and judge them on items the search has not seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ropebend.cli import options as o
from ropebend.durations import duration
from ropebend.errors import UsageError
from ropebend.runtime import Runtime
from ropebend.scaling import LayerScaling
from ropebend.search.cost import DoesNotFit
from ropebend.search.spec import (
    CONTROLS,
    USUAL_CONTROLS,
    Budget,
    ExecutorName,
    GenomeName,
    MethodName,
    NumbersName,
    OpenName,
    OptimiserName,
    SearchSpec,
    TaskSpec,
)
from ropebend.shell import command
from ropebend.tasks.task import TextTask

if TYPE_CHECKING:
    from ropebend.search.cost import Cost
    from ropebend.search.outcome import Outcome


@o.takes_runtime(Runtime())
def search_command(
    ctx: typer.Context,
    model: Annotated[Path | None, typer.Argument(help="GGUF model file.", show_default=False)] = None,
    task: o.Task = "kv",
    keys: o.Keys = None,
    length: o.Length = None,
    documents: o.Documents = None,
    data: o.Data = None,
    text: o.Text = None,
    protocol: o.Protocol = None,
    chat: o.Chat = None,
    task_option: o.TaskOption = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="A second task in the objective: perplexity:text=FILE,length=1024,weight=0.5, or with keep=0.02 "
            "instead of weight: what it may lose against the unscaled model. May be repeated."
        ),
    ] = None,
    transfer: Annotated[
        list[str] | None, typer.Option(help="Also judge on this task, without searching on it: passkey:length=2048 …")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")] = Path("search"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the search in this run folder.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start anew in a folder that holds a search.")] = False,
    budget: Annotated[
        str,
        typer.Option(
            help="Evaluations (400) or tokens (50Mtok) of the searches, shared equally by the search and its controls; "
            "or time (20m), into which all of the run fits: the numbers below are made smaller where they must."
        ),
    ] = "400",
    method: Annotated[
        MethodName, typer.Option(help="Extension method that the scales multiply; linear is position interpolation.")
    ] = "none",
    factor: Annotated[float, typer.Option(min=1.0, help="The method's interpolation factor.")] = 1.0,
    factor_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH: search the factor too, starting from --factor.", show_default=False)
    ] = None,
    search: Annotated[
        NumbersName,
        typer.Option(
            "--search",
            help="Which numbers move: the layer scales (the paper's method), what multiplies each layer's attention "
            "factor, or both.",
        ),
    ] = "both",
    genome: Annotated[
        GenomeName,
        typer.Option(
            help="What the numbers follow over depth: bezier (the paper's curve), line, uniform, knots (straight "
            "lines between values at up to eight depths), or free."
        ),
    ] = "knots",
    optimiser: Annotated[
        OptimiserName, typer.Option(help="How it is searched; ga is the paper's genetic algorithm.")
    ] = "cma",
    min_scale: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="Smallest scale; below 1 positions are spread, not stretched.")
    ] = 1.0,
    start: Annotated[
        Path | None,
        typer.Option(
            help="factors.json to begin from, e.g. of a search at half the length; the report judges it, too.",
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        str,
        typer.Option(
            help=f"Searches to compare with: {','.join(CONTROLS)}, or none. uniform, attn: one value for all layers; "
            "scales: the layer scales alone."
        ),
    ] = ",".join(USUAL_CONTROLS),
    population: Annotated[
        int | None, typer.Option(min=2, help="Sets per generation.", show_default="what suits the optimiser")
    ] = None,
    screen: Annotated[int, typer.Option(min=1, help="Items on which every set of scales is measured.")] = 3,
    finals: Annotated[
        str, typer.Option(help="SETSxITEMS,…: so many of the best are measured on so many items, in turn.")
    ] = "5x12,2x24",
    test: Annotated[int, typer.Option(min=1, help="Items to judge the winners on, never seen in the search.")] = 100,
    depths: o.Depths = "0,0.25,0.5,0.75,1",
    weights: Annotated[str | None, typer.Option(help="Weight of each depth in the score (default: all alike).")] = None,
    worst: Annotated[float, typer.Option(min=0, max=1, help="Weight of the worst depth beside the mean.")] = 0.2,
    seed: o.Seed = 1,
    repeat: Annotated[
        int,
        typer.Option(
            min=1, help="Search so many times, with this seed and the next ones, each with its own items, and compare."
        ),
    ] = 1,
    executor: Annotated[
        ExecutorName | None,
        typer.Option(
            help="Where to measure. local: processes on this machine; ray: actors of a Ray cluster, each with a GPU "
            "(--gpu-layers) and --threads cores (0: all alike).",
            show_default="local",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes, among which the threads are shared out; with ray: actors.",
            show_default="1; with ray as many as the cluster has room for",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a Ray cluster that this machine belongs to.",
            show_default="RAY_ADDRESS, or the cluster running here, or a new one",
        ),
    ] = None,
    *,
    runtime: Runtime,
) -> None:
    """Find per-layer scales; Ctrl-C writes the best so far, --resume goes on after a kill.

    The best uniform scale and other controls are searched under the same rules, and all winners are judged on test
    items the search has never seen.  The run folder gets factors.json, report.html and every measurement.
    """
    from ropebend.search import folder, seeds
    from ropebend.search.report import next_commands

    if (model is None) == (resume is None):
        raise UsageError("expected a MODEL, or --resume FOLDER, and not both")
    if resume is not None:
        refuse_without_effect(ctx)
        output, runs = resume, []
        for part in seeds.folders_in(resume) or [resume]:
            spec, changed = folder.resume(part)
            runs.append((part, with_place(spec, executor, workers, ray_address)))
            for line in changed:
                typer.echo(f"warning: {line}; figures may differ in the last bits", err=True)
    else:
        assert model is not None
        at = o.numbers(depths, "--depths", 0, 1)
        by_depth = o.numbers(weights, "--weights") if weights is not None else None
        if by_depth is not None and (len(by_depth) != len(at) or sum(by_depth) == 0):
            raise UsageError(f"--weights: expected one number per depth ({len(at)}), not all zero, got {weights!r}")
        specs = []
        for each in range(seed, seed + repeat):
            options = o.task_options(
                task, seed=f"search-{each}", depths=at, extra=task_option, keys=keys, length=length,
                documents=documents, data=data, text=text, protocol=protocol, chat=chat,
            )  # fmt: skip
            spec = make_spec(
                model=str(model), task=task, options=options, also=also, transfer=transfer, method=method,
                factor=factor, factor_range=factor_range, numbers=search, genome=genome, optimiser=optimiser,
                min_scale=min_scale, start=start,
                controls=controls, budget=budget, population=population, screen=screen, finals=finals, test=test,
                depth_weights=by_depth, worst=worst, seed=each, runtime=runtime,
            )  # fmt: skip
            refuse_on_texts(given_flags(ctx), spec)
            given = given_flags(ctx)
            spec = spec.model_copy(update={"open": tuple(n for n in get_args(OpenName) if n not in given)})
            specs.append(with_place(spec, executor, workers, ray_address))
        o.check_writable(output / "factors.json")
        runs = seeds.start(output, specs, force=force)

    outcomes: list[Outcome] = []
    for part, spec in runs:
        if len(runs) > 1:
            print(f"seed {spec.seed}, {len(outcomes) + 1} of {len(runs)}")
        try:
            outcome = search_with_progress(part, spec)
        except DoesNotFit as e:
            raise UsageError(f"{e}\n  {_again(sys.argv[1:], e.budget)}") from None
        outcomes.append(outcome)
        print_outcome(outcome)
        print(f"\nwrote {part / 'factors.json'} and {part / 'report.html'}")
        for line in next_commands(outcome, part, output):
            print(line)
        if outcome.interrupted:
            raise typer.Exit(130)
    if len(runs) > 1:
        seeds.write_summary(output, outcomes)
        print_summary(outcomes)
        print(f"\nwrote {output / 'report.html'}")


def _again(arguments: list[str], budget: str) -> str:
    """The command line with another budget."""
    rest, skip = [], False
    for word in arguments:
        if not (skip or word == "--budget" or word.startswith("--budget=")):
            rest.append(word)
        skip = word == "--budget"
    return command("ropebend", *rest, "--budget", budget)


def given_flags(ctx: typer.Context) -> dict[str, str]:
    """Parameters that stand on the command line, each with its flag."""
    given = {}
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name and source is not None and source.name == "COMMANDLINE":
            given[parameter.name] = max(parameter.opts, key=len)
    return given


def refuse_without_effect(ctx: typer.Context) -> None:
    """Raise UsageError for a flag that a search which was begun does not listen to."""
    for name, flag in given_flags(ctx).items():
        if name not in ("resume", "executor", "workers", "ray_address"):
            raise UsageError(f"{flag} has no effect on --resume: the search goes on as it was begun")


def refuse_on_texts(given: dict[str, str], spec: SearchSpec) -> None:
    """Raise UsageError for a flag about depths where there are none."""
    if all(isinstance(term.task, TextTask) for term in spec.objective().terms):
        for name in ("depths", "weights", "worst"):
            if name in given:
                raise UsageError(f"{given[name]} has no effect: a text has no depths")


def make_spec(
    *, task: str, options: dict[str, Any], also: list[str] | None, transfer: list[str] | None, method: MethodName,
    factor: float, factor_range: str | None, start: Path | None, controls: str, finals: str, **rest: Any,
) -> SearchSpec:  # fmt: skip
    """Read what the flags say.  Raises UsageError naming the flag."""
    names = tuple(filter(None, controls.split(","))) if controls != "none" else ()
    for name in names:
        if name not in CONTROLS:
            raise UsageError(f"--controls: expected some of {', '.join(CONTROLS)}, or none, got {name!r}")
    if method == "none" and (factor != 1.0 or factor_range):
        raise UsageError("--factor needs a --method; linear is position interpolation")
    low_high = tuple(o.numbers(factor_range, "--factor-range", 1.0)) if factor_range else None
    if low_high is not None and not (len(low_high) == 2 and low_high[0] <= factor <= low_high[1]):
        raise UsageError(f"--factor-range: expected LOW,HIGH around --factor {factor:g}, got {factor_range!r}")
    try:
        stages = tuple((int(a), int(b)) for a, b in (part.split("x") for part in finals.split(",")))
        if not all(a >= 1 and b >= 1 for a, b in stages):
            raise ValueError
    except ValueError:
        raise UsageError(f"--finals: expected SETSxITEMS such as 24x24 or 32x32,4x100, got {finals!r}") from None
    Budget.parse(rest["budget"])
    scales = attn = None
    if start is not None:
        begin = LayerScaling.load(start)
        if (begin.rope.method, begin.rope.factor) != (method, factor):
            rope = begin.rope
            raise UsageError(f"--start: {start} is for --method {rope.method} --factor {rope.factor:g}; give the same")
        if begin.has_plans:
            raise UsageError(f"--start: {start} holds plans by length; give the factors of one of them")
        if begin.has_attn_factors:
            attn = begin.layer_attn_factor
        scales = begin.layer_scale
    tasks = [TaskSpec(name=task, options=options), *map(TaskSpec.parse, also or [])]
    others = [*map(TaskSpec.parse, transfer or [])]
    for part in others:
        if part.weight != 1.0 or part.keep is not None:
            raise UsageError(f"--transfer {part.name}: weight and keep have no effect: it is not searched on")
    return SearchSpec(
        tasks=tuple(tasks), transfer=tuple(others), method=method, factor=factor, factor_range=low_high,
        start=scales, start_attn=attn, controls=names, finals=stages, **rest,
    )  # fmt: skip


def with_place(
    spec: SearchSpec, executor: ExecutorName | None, workers: int | None, ray_address: str | None
) -> SearchSpec:
    """The spec with the place that was asked for, which a resumed search may change.  Raises UsageError."""
    from ropebend.search.workers import require_ray

    if executor is not None:
        spec = spec.model_copy(update={"executor": executor, "workers": None, "ray_address": None})
    if spec.executor == "ray":
        require_ray()
    elif ray_address is not None:
        raise UsageError("--ray-address needs --executor ray")
    given = {k: v for k, v in (("workers", workers), ("ray_address", ray_address)) if v is not None}
    return spec.model_copy(update=given)


def search_with_progress(folder: Path, spec: SearchSpec) -> Outcome:
    """Run a search in its folder with a live view: what is measured, the best score, the time left.

    SIGTERM ends it as Ctrl-C does.
    """
    from rich.console import Console

    from ropebend.cli.progress import Bar, stopping_kindly
    from ropebend.search.folder import run_in
    from ropebend.search.outcome import Generation, Listener, Progress

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
    budget = Budget.parse(spec.budget)
    names = ", ".join(name for name, *_ in spec.searches())
    finals = " and ".join(f"the best {n} on {k} items" for n, k in spec.finals)
    speed = f"{cost.n_tokens / cost.seconds:,.0f} tokens/s" if cost.seconds else "as measured before"
    lines = [
        f"prompts of up to {cost.context:,} tokens; {speed}, {cost.seconds:.2g} s for a set of scales on an item",
        f"searches: {names}; each set on {spec.screen} items"
        + (f", {finals} of each search" if finals else "")
        + f"; judged on {spec.test} unseen items",
    ]
    late = cost.late * cost.seconds
    if budget.unit == "seconds":
        total = max(0.0, budget.amount - cost.spent)
        late = min(late, total)
    elif budget.unit == "tokens":
        total = (budget.amount / max(cost.n_tokens, 1)) * cost.seconds + late
    else:
        total = sum(cost.searches.values()) * cost.seconds + late
    n_tokens = total / cost.seconds * cost.n_tokens if cost.seconds else 0.0
    so_far = f" ({duration(cost.spent)} are behind it)" if cost.spent > 60 else ""
    lines.append(
        f"at most {duration(total)}{so_far}, of which {duration(late)} for finals and judgement; "
        f"about {n_tokens / 1e6:.2g} M prompt tokens; Ctrl-C keeps the best so far"
    )
    return lines


def _sparkline(values: list[float], width: int = 12) -> str:
    """The last values as bars."""
    shown = values[-width:]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) / span * 7)] for v in shown)


def print_outcome(outcome: Outcome) -> None:
    """The table on test items, the scales, and what they are worth."""
    from ropebend.cli.eval import accuracy_table
    from ropebend.cli.show import render
    from ropebend.search.report import SEEN, describe, summary, title_of
    from ropebend.search.verdict import verdict

    print(f"{title_of(outcome)}\n{summary(outcome)}\n\n{render(outcome.layers)}\n")
    for i, task in enumerate(outcome.tasks):
        if outcome.tests:
            if len(outcome.tasks) > 1:
                print(describe(task) + ("" if i < len(outcome.spec.tasks) else " (transfer: not searched on)"))
            print(accuracy_table([(_named(outcome, name), by_task[i]) for name, by_task in outcome.tests.items()]))
    if not outcome.tests and outcome.seen:
        print(f"{SEEN}\n{accuracy_table([(_named(outcome, name), e) for name, e in outcome.seen.items()])}")
    print(verdict(outcome))


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """The test items of all seeds together, and how far the seeds differ."""
    from ropebend.cli.eval import accuracy_table
    from ropebend.search import seeds

    print(f"all {len(outcomes)} seeds\n{accuracy_table([*seeds.pooled(outcomes).items()])}")
    print(seeds.verdict_on_all(outcomes))


def _named(outcome: Outcome, name: str) -> str:
    """The name in tables, for uniform numbers with what they are."""
    found = outcome.found.get(name)
    if found is None or not found.best.candidate.is_uniform:
        return name
    c = found.best.candidate
    attn = f", attn {c.attn[0]:g}" if c.attn else ""
    return f"{name} ({c.scales[0]:g}{attn})"
