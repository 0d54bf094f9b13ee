"""The command `add_scales.py model.gguf factors.json`: write layer scales into a GGUF file, or remove them.

Run as `python convert/add_scales.py`, `python -m ropebend.convert.add_scales` or `ropebend add-scales`; a larger typer
application mounts it with `app.command("add-scales")(add_scales)` and prints RopebendError as `main` does.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from ropebend.convert.gguf_file import GgufFile
    from ropebend.convert.job import Job
    from ropebend.errors import RopebendError, UsageError
    from ropebend.scaling import LayerScaling
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
    model: Annotated[Path, typer.Argument(help="The GGUF model.", show_default=False)],
    factors: Annotated[
        Path | None,
        typer.Argument(help="The scales: a factors.json or a bare JSON list, one scale a layer.", show_default=False),
    ] = None,
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
        bool, typer.Option("--in-place", help="Replace the model itself (the real file, if it is a symbolic link).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an output file that exists.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove every ropebend key instead; takes no factors file.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be written, write nothing.")
    ] = False,
) -> None:
    """Write per-layer RoPE scales into a copy of a GGUF model, as `ropebend.*` metadata.

    Every other key and every tensor byte stays as it is, and this is checked on the written file before it gets its
    name.  Scales that the model already carries are replaced.  A scale s >= 1 stretches: positions are divided by s.

    Exit codes: 0 done; 1 something was wrong with the files, nothing was changed; 2 wrong usage; 130 or 143
    stopped by Ctrl-C or SIGTERM.
    With nothing to remove, --remove --in-place is done (0), and --remove to another file is an error (1).
    """
    if remove and factors is not None:
        raise UsageError(f"--remove takes no factors file, got {factors}")
    if not remove and factors is None:
        raise UsageError("a factors file is needed (or --remove)")
    with _stoppable(), GgufFile(model) as source:
        scaling = None if factors is None else LayerScaling.load(factors)
        job = Job.prepare(source, scaling, out, in_place, force)
        if remove and not job.rewrite.replaced:
            if in_place:
                _say(f"{model}: carries no ropebend keys, nothing to remove; left as it is")
                return
            raise RopebendError(f"{model}: carries no ropebend keys, nothing to remove; nothing was written")
        if dry_run:
            _report_plan(job)
            return
        with _bars(job) as (written, compared):
            job.run(written, compared)
        _report(job)


def main() -> None:
    """Run the command; errors go to stderr as one line, without a traceback."""
    try:
        app()
    except RopebendError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2 if isinstance(e, UsageError) else 1)


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
def _bars(job: Job) -> Iterator[tuple[Any, Any]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        start, end = job.rewrite.source.data
        writing = bars.add_task("writing  ", total=job.rewrite.size)
        verifying = bars.add_task("verifying", total=end - start)
        yield lambda n: bars.advance(writing, n), lambda n: bars.advance(verifying, n)


def _report_plan(job: Job) -> None:
    _say(f"would write {job.target.path}: {job.rewrite.size:,} bytes ({job.free:,} free)")
    for key in job.rewrite.replaced:
        _say(f"  {'replace' if key in job.rewrite.added else 'remove'} {key}")
    values = job.rewrite.scaling.to_metadata() if job.rewrite.scaling else {}
    for key, pair in job.rewrite.added.items():
        text = str(values[key])
        _say(f"  {key}, {len(pair):,} bytes: {text if len(text) <= 200 else text[:200] + '…'}")
    _say("dry run: nothing was written")


def _report(job: Job) -> None:
    path, scaling, replaced = job.target.path, job.rewrite.scaling, job.rewrite.replaced
    if scaling is None:
        what = f"removed {len(replaced)} ropebend keys"
    else:
        scales = scaling.layer_scale
        what = f"{len(scales)} layers, scale {min(scales):g} to {max(scales):g}, method {scaling.rope.method}"
        if scaling.rope.method != "none":
            what += f" ×{scaling.rope.factor:g}"
        if replaced:
            what += " (replaced the scales it carried)"
    _say(f"{path}: {what}; {job.rewrite.size:,} bytes, verified")
    if job.target.in_place and job.rewrite.source.n_links > 1:
        _say("The file had other hard links; those names still hold the old file.")
    if scaling is not None:
        _say(f"Next:  ropebend show {shlex.quote(str(path))}")
        _say(f"       ropebend serve {shlex.quote(str(path))}")


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))  # a file name can be any bytes


if __name__ == "__main__":
    main()
