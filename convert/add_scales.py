"""The command `add_scales.py model.gguf factors.json`: write layer scales into a GGUF file, or remove them.

Run as `python convert/add_scales.py`, `python -m ropebend.convert.add_scales` or `ropebend add-scales`; a larger typer
application mounts it with `app.command("add-scales")(add_scales)` and prints RopebendError as `main` does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from ropebend.convert.gguf_file import GgufFile
    from ropebend.convert.job import Job
    from ropebend.convert.transfer import Progress
    from ropebend.scaling import LayerScaling

try:
    import typer

    from ropebend.convert.shards import Shards
    from ropebend.entry import run_app
    from ropebend.errors import RopebendError, UsageError
except ModuleNotFoundError as e:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"error: {sys.executable} has no module {e.name!r}: run `make` in the ropebend repository, "
        "then .venv/bin/python convert/add_scales.py"
    )

app = typer.Typer(add_completion=False)


@app.command("add-scales")
def add_scales(
    model: Annotated[Path, typer.Argument(help="The GGUF model.", show_default=False, readable=False)],
    factors: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FACTORS[@TOKENS]]...",
            help="The scales: a factors.json or a bare JSON list, one scale a layer.  Several, with the longest "
            "sequences they are for: none@8192 at-16k.json@16k at-32k.json; none: unscaled, auto: the ready factors "
            "for this model (ropebend factors).",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Instead of a file: this scale for every layer.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Instead of a file: linear, ntk, dynamic-ntk or yarn.", show_default=False),
    ] = None,
    factor: Annotated[
        float | None, typer.Option("--factor", help="The method's factor, 1 or more.", show_default=False)
    ] = None,
    short_prompts_unscaled: Annotated[
        bool,
        typer.Option(
            "--short-prompts-unscaled",
            help="Sequences within the trained length run unscaled, bit for bit: none@<trained length> in front.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The file to write.  Default, beside the model: x.gguf becomes x.ropebend.gguf, "
            "or x.plain.gguf with --remove.",
            show_default=False,
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Change the model itself (the real file, if it is a symbolic link): within the file where the new "
            "keys fit, else by replacing it, which needs room for both.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an output file that exists.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove every ropebend key instead; takes no factors file.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be written, write nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Read back what was written and compare every key and every tensor byte with the model's.",
        ),
    ] = True,
    shards: Annotated[
        Shards | None,
        typer.Option(
            "--shards",
            help="The other parts of a split model: hard links (copies where that cannot be), symbolic links or "
            "copies beside the output.  They carry no scales.",
            show_default="link",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; errors, too.")] = False,
) -> None:
    """Write per-layer RoPE scales into a copy of a GGUF model, as `ropebend.*` metadata.

    Every other key and every tensor byte stays as it is, and this is checked on the written file before it gets its
    name.  Scales that the model already carries are replaced.  A scale s >= 1 stretches: positions are divided by s.

    The first time some room is reserved: --in-place then changes the scales of a model of any size in an instant.
    Of a split model give the first part.

    Exit codes: 0 done; 1 something was wrong with the files, nothing was changed; 2 wrong usage; 130 or 143
    stopped by Ctrl-C or SIGTERM.
    With nothing to remove, --remove --in-place is done (0), and --remove to another file is an error (1).
    """
    from ropebend.convert.gguf_file import GgufFile  # gguf-py takes longer to import than --help to print
    from ropebend.convert.job import Job
    from ropebend.convert.report import done, facts, planned
    from ropebend.factors import in_words
    from ropebend.model_info import Header
    from ropebend.scaling.by_length import read_parts, with_short_unscaled

    try:
        plain = {"--scale": scale, "--method": method, "--factor": factor}
        given = [name for name, value in plain.items() if value is not None]
        if remove and (factors or given or short_prompts_unscaled):
            what = f"factors file, got {factors[0]}" if factors else (given or ["--short-prompts-unscaled"])[0]
            raise UsageError(f"--remove takes no {what}")
        if factors and given:
            raise UsageError(f"{given[0]} stands instead of a factors file: leave one of them out")
        if not (remove or factors or given):
            raise UsageError("a factors file is needed (or --scale, --method, or --remove)")
        with _stoppable(), GgufFile(model) as source:
            scaling = None
            if not remove:
                words = in_words(factors or (), model)
                scaling = read_parts(words) if words else _plain(source, scale, method, factor)
            if scaling is not None and short_prompts_unscaled:
                scaling = with_short_unscaled(scaling, Header(source.path, source.value).count("context_length"))
            job = Job.prepare(source, scaling, out, in_place, force, shards)
            if remove and not job.rewrite.replaced and not in_place:
                raise RopebendError(f"{model}: carries no ropebend keys, nothing to remove; nothing was written")
            for text in job.warnings if not as_json else []:
                print(f"warning: {text}", file=sys.stderr)
            if dry_run:
                outcome, lines = None, planned(job)
            else:
                with _bar(job) as progress:
                    outcome = job.run(progress, verify)
                lines = done(job, outcome)
        _say(json.dumps(facts(job, outcome)) if as_json else "\n".join(lines))
    except RopebendError as e:
        if as_json:
            _say(json.dumps({"ok": False, "error": str(e)}))
        raise


def _plain(source: GgufFile, scale: float | None, method: str | None, factor: float | None) -> LayerScaling | None:
    from ropebend.model_info import Header
    from ropebend.scaling.stretch import plain_stretch

    header = Header(source.path, source.value)
    header.check_is_model()
    return plain_stretch(header.count("block_count"), header.architecture, scale=scale, method=method, factor=factor)


def main() -> None:
    run_app(app)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that the temporary file is removed."""

    def stop(number: int, _frame: Any) -> None:
        raise KeyboardInterrupt(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup's "ignore" stays
                previous[number] = signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as e:
        number = e.args[0] if e.args else signal.SIGINT
        print(f"error: stopped by {signal.Signals(number).name}; no temporary file is left", file=sys.stderr)
        raise SystemExit(128 + number) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _bar(job: Job) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as rich  # its import takes as long as a small model
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("writing", total=job.size)
        yield lambda n: bars.advance(task, n)


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))  # a file name can be any bytes


if __name__ == "__main__":
    main()
