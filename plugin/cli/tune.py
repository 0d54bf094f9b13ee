"""`ropebend tune`: from a model and a length to a scaled model, judged, in the time that is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropebend.cli import options as o
from ropebend.cli.info import Sheet
from ropebend.errors import RopebendError, UsageError
from ropebend.runtime import Runtime

TIME = "30m"


@o.takes_runtime(Runtime())
def tune(
    ctx: typer.Context,
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="GGUF model file.", show_default=False)] = None,
    n_ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", "-c", parser=o.read_tokens, metavar="TOKENS", show_default=False,
            help="The length it is for, as 16384 or 16k: inside the trained length or beyond it.",
        ),
    ] = None,
    time_limit: Annotated[str, typer.Option("--time", help="All of it takes no longer: 20m, 1h.")] = TIME,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The GGUF to write.", show_default="MODEL.ropebend.gguf beside it"),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", show_default=False,
            help="A text file (plain or .gz): its perplexity is taken where the model can do none of the tasks.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Run folder for report and measurements.", show_default="MODEL.tune-CTX here"),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier tune and its GGUF.")] = False,
    seed: o.Seed = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of the search, which share the threads.", show_default="1")
    ] = None,
    *,
    runtime: Runtime,
) -> None:  # fmt: skip
    """Find scales for a length, judge them, and write them into a copy of the model: the whole job, explained.

    It proves the hook, finds a task that the model can do and loses on at that length, compares linear, NTK and YaRN
    beyond the trained length, searches, judges on unseen items and on short prompts, and writes the GGUF with short
    prompts left unscaled where they would lose.  Where nothing helps it says so and writes nothing.

    Ctrl-C loses at most the item in work: --resume FOLDER goes on.
    """
    from rich.console import Console

    from ropebend.tune.state import Asked, Folder

    limit = o.seconds(time_limit, "--time")
    assert limit is not None
    if (model is None) == (resume is None):
        raise UsageError("expected a MODEL, or --resume FOLDER, and not both")
    if resume is not None:
        from ropebend.cli.search_flags import given_flags

        given = given_flags(ctx)
        for name, flag in given.items():
            if name not in ("resume", "force", "time_limit"):
                raise UsageError(f"{flag} has no effect on --resume: it goes on as it was begun")
        run = Folder.resume(resume)
        if "time_limit" in given:
            if run.searching:
                raise UsageError("--time has no effect: the search has begun, with the time that was left for it")
            run.state.asked.time = limit
        _print_sheet(Path(run.state.asked.model))
    else:
        assert model is not None
        if n_ctx is None:
            raise UsageError("--ctx is missing: the length in tokens that it is for, as 16k")
        _print_sheet(model)
        out = output or model.with_name(f"{model.stem}.ropebend.gguf")
        asked = Asked(
            model=str(model.absolute()), ctx=n_ctx, time=limit, out=str(out.absolute()), seed=seed, workers=workers,
            text=str(text.absolute()) if text is not None else None, runtime=runtime,
        )  # fmt: skip
        _check_output(asked.model, asked.out, force)
        run = Folder.start(folder or Path(f"{model.stem}.tune-{n_ctx}"), asked, force=force)

    from ropebend.cli.progress import stopping_kindly
    from ropebend.cli.tuning import Tuning, go_on

    console = Console(stderr=True)
    with stopping_kindly():
        try:
            Tuning(run, console, force).go()
        except KeyboardInterrupt:
            run.save()
            console.print(go_on(run), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(130) from None


def _print_sheet(model: Path) -> None:
    with Sheet.open(model) as sheet:
        print(sheet.text(), flush=True)
        if sheet.obstacle is not None:
            raise RopebendError(f"{model}: cannot be scaled: {sheet.obstacle}")


def _check_output(model: str, out: str, force: bool) -> None:
    """Raise now what would keep the result from being written later."""
    from ropebend.convert.gguf_file import GgufFile
    from ropebend.convert.job import Job
    from ropebend.model_info import Header
    from ropebend.scaling import LayerScaling

    with GgufFile(Path(model)) as source:
        n_layer = Header(source.path, source.value).count("block_count")
        Job.prepare(source, LayerScaling.uniform(1.0, n_layer), Path(out), in_place=False, force=force)
