"""`python -m ropebend.server MODEL`: the same command as `ropebend serve MODEL`."""

import typer

from ropebend.cli.help import GroupedCommand
from ropebend.entry import run_app
from ropebend.server.cli import serve


def main() -> None:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("serve", cls=GroupedCommand)(serve)
    run_app(app, prog_name="python -m ropebend.server")


if __name__ == "__main__":
    main()
