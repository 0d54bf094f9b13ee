"""`ropebend search`: find layer scales for a model and judge them on items the search has not seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ropebend.choices import (
    CONTROLS,
    USUAL_CONTROLS,
    ExecutorName,
    GenomeName,
    NumbersName,
    OpenName,
    OptimiserName,
    SearchMethodName,
)
from ropebend.cli import options as o
from ropebend.errors import UsageError
from ropebend.runtime import Runtime
from ropebend.shell import command

if TYPE_CHECKING:
    from ropebend.search.outcome import Outcome


@o.takes_runtime(Runtime())
def search_command(
    ctx: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="GGUF model file; none with --resume.", show_default=False)
    ] = None,
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
        SearchMethodName,
        typer.Option(
            help="Extension method that the scales multiply; auto: beyond the trained length the best of linear "
            "(position interpolation), NTK and YaRN, which is also what the search starts from; within it none."
        ),
    ] = "auto",
    factor: Annotated[float, typer.Option(min=1.0, help="The method's interpolation factor.")] = 1.0,
    factor_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH: search the factor too, starting from --factor.", show_default=False)
    ] = None,
    search: Annotated[
        NumbersName,
        typer.Option(
            "--search",
            help="Which numbers of each layer move: both, its scale alone (the paper's method), or its attention "
            "factor alone.",
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
        OptimiserName,
        typer.Option(help="How it is searched: cma (CMA-ES), ga (the paper's genetic algorithm), or random."),
    ] = "cma",
    min_scale: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="Smallest scale; below 1 positions are spread, not stretched.")
    ] = 1.0,
    start: Annotated[
        Path | None,
        typer.Option(
            help="factors.json to begin from, with both numbers where it has both, e.g. of a search at half the "
            "length; the report judges it, too.",
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
    if (model is None) == (resume is None):
        raise UsageError("expected a MODEL, or --resume FOLDER, and not both")
    # later, for --help's sake
    from ropebend.cli.search_flags import given_flags, make_spec, refuse_on_texts, refuse_without_effect, with_place
    from ropebend.cli.search_view import print_outcome, print_summary, search_with_progress
    from ropebend.search import folder, seeds
    from ropebend.search.cost import DoesNotFit
    from ropebend.search.report import next_commands

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
        except KeyboardInterrupt:  # before there is a best
            go_on = command("ropebend", "search", "--resume", output)
            typer.echo(f"stopped before any search; what is measured is kept\ngo on:  {go_on}", err=True)
            raise typer.Exit(130) from None
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
