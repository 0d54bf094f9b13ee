"""`ropebend exec` and `ropebend preload-path`: unmodified llama.cpp programs with the scales of their GGUF."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ropebend import preload
from ropebend.errors import RopebendError

Command = Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGS]...", help="What to run.", show_default=False)]


def exec_command(command: Command) -> None:
    """Run a llama.cpp program (llama-server, llama-cli, ...) that applies the layer scales of the GGUF it loads.

    Any program on a shared libllama will do. A line on stderr says that the scales are active; where they cannot be
    applied the program ends with exit code 1.
    """
    name, *args = command
    program = preload.find_program(name, os.environ.get("PATH"))
    environ = preload.environment(os.environ)
    for warning in preload.warnings(program, args, os.environ):
        print(f"warning: {warning}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(program, [name, *args], environ)
    except OSError as e:
        raise RopebendError(f"{program}: cannot be run: {e.strerror}") from None


def preload_path() -> None:
    """Print the path of the library for LD_PRELOAD, which is all that `ropebend exec` sets."""
    print(preload.library())
