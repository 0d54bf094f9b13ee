"""`python -m ropebend.server MODEL`: the same command as `ropebend serve MODEL`."""

import sys

import typer

from ropebend.errors import RopebendError, UsageError
from ropebend.server.cli import serve


def main() -> None:
    """Run the command; exit 0 after a clean stop, 1 on failure, 2 on wrong usage."""
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    try:
        app(prog_name="python -m ropebend.server")
    except RopebendError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2 if isinstance(e, UsageError) else 1)


if __name__ == "__main__":
    main()
