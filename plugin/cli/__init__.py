"""The `ropebend` command: one file a subcommand, errors shown without tracebacks."""

from __future__ import annotations

import io
import sys

import typer

from ropebend.cli.demo import demo
from ropebend.cli.doctor import doctor
from ropebend.cli.eval import eval_command
from ropebend.cli.exec import exec_command, preload_path
from ropebend.cli.search import search_command
from ropebend.cli.show import show
from ropebend.convert.add_scales import add_scales
from ropebend.errors import RopebendError, UsageError
from ropebend.server.cli import serve

app = typer.Typer(
    name="ropebend",
    help="Per-layer RoPE scales for llama.cpp: search them, store them in the GGUF, serve the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("search")(search_command)
app.command("eval")(eval_command)
app.command("add-scales")(add_scales)
app.command("show")(show)
app.command("serve")(serve)
app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(exec_command)
app.command("preload-path")(preload_path)
app.command("doctor")(doctor)
app.command("demo")(demo)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", is_eager=True, help="Print the version and exit."),
) -> None:
    if version:
        from ropebend import __version__

        print(f"ropebend {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point."""
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a command.  Exit codes: 0 done, 1 failed, 2 the call cannot be right, 130 stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shall not end a command
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except RopebendError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2 if isinstance(e, UsageError) else 1)
