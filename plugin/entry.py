"""How every command of ours ends: errors on stderr without a traceback, and the exit codes.

0 done, 1 failed, 2 the call cannot be right, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from ropebend.errors import RopebendError


def run_app(app: Any, **options: Any) -> None:
    """Run a typer application with `options` and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shall not end a command
    try:
        app(**options)
    except KeyboardInterrupt:
        sys.exit(130)
    except RopebendError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
