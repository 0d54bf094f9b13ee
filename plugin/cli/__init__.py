"""The `ropebend` command: one file a subcommand, imported when it is called."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ropebend.cli.help import GroupedCommand
from ropebend.entry import run_app
from ropebend.errors import UsageError
from ropebend.shell import command

#: Command → (module, function, what the list of commands says), in the order of the work.
COMMANDS = {
    "info": ("ropebend.cli.info", "info", "Say what a GGUF is and what to do with it."),
    "doctor": ("ropebend.cli.doctor", "doctor", "Check on your model that scales reach every rope node."),
    "eval": ("ropebend.cli.eval", "eval_command", "Measure retrieval by depth, or perplexity."),
    "tune": ("ropebend.cli.tune", "tune", "Do it all: find scales for a length, judge, write them."),
    "search": ("ropebend.cli.search", "search_command", "Find the numbers of each layer, step by step."),
    "factors": ("ropebend.cli.factors", "factors", "List ready factors for public models."),
    "show": ("ropebend.cli.show", "show", "Print the numbers of a GGUF or factors.json."),
    "add-scales": ("ropebend.convert.add_scales", "add_scales", "Write scales into a GGUF, or remove them."),
    "serve": ("ropebend.server.cli", "serve", "Serve a model over the OpenAI API."),
    "chat": ("ropebend.server.terminal", "chat", "Chat in the terminal, scaled and unscaled."),
    "exec": ("ropebend.cli.exec", "exec_command", "Run a llama.cpp program with the scales applied."),
    "preload-path": ("ropebend.cli.exec", "preload_path", "Print the library's path for LD_PRELOAD."),
    "demo": ("ropebend.cli.demo", "demo", "Do the whole job on the bundled model."),
}
SETTINGS: dict[str, dict[str, Any]] = {"exec": {"ignore_unknown_options": True, "allow_interspersed_args": False}}


#: What people call commands that have another name here.
MEANT = {
    "run": "chat", "cli": "chat", "server": "serve", "measure": "eval", "evaluate": "eval", "bench": "eval",
    "perplexity": "eval", "find": "tune", "optimize": "tune", "optimise": "tune", "convert": "add-scales",
    "add": "add-scales", "write": "add-scales", "remove": "add-scales", "check": "doctor", "inspect": "info",
    "print": "show", "version": "--version", "help": "--help",
}  # fmt: skip


#: What somebody does who has a model and nothing else.
ROAD = [
    ("ropebend info MODEL.gguf", "what the model is, and whether scales fit it"),
    ("ropebend eval MODEL.gguf", "how it does now, by the depth of the answer"),
    ("ropebend tune MODEL.gguf --ctx 16k", "finds scales for that length, judges them, writes them"),
    ("ropebend serve MODEL.ropebend.gguf", "serves the result over the OpenAI API"),
]


def no_such_command(word: str, *rest: str) -> str:
    """What to say of a command that there is not, with what was probably meant."""
    path = Path(word)
    if path.suffix == ".json":
        return f"{word} is no command; look at scales with: {command('ropebend', 'show', path, *rest)}"
    if path.suffix == ".gguf" or path.is_file():
        return f"{word} is no command; begin with: {command('ropebend', 'info', path)}"
    meant = [MEANT[word]] if word in MEANT else get_close_matches(word.lower().replace("_", "-"), COMMANDS, 2)
    if meant:
        return f"No such command {word!r}; did you mean: {' or: '.join(command('ropebend', m, *rest) for m in meant)}"
    return f"No such command {word!r}; ropebend --help lists all, and the road begins with: ropebend info MODEL.gguf"


class LazyCommands(TyperGroup):
    """Imports a subcommand when it is called: llama.cpp, FastAPI and scipy take longer than most commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        one.command(cmd_name, cls=GroupedCommand, context_settings=SETTINGS.get(cmd_name))(
            getattr(import_module(module), function)
        )
        return get_command(one)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(no_such_command(*args))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


app = typer.Typer(
    name="ropebend",
    cls=LazyCommands,
    help="Per-layer RoPE scales for llama.cpp: search them, store them in the GGUF, serve the result.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _first(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", is_eager=True, help="Print the version and exit."),
) -> None:
    if version:
        from ropebend import __version__

        print(f"ropebend {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print("Longer context for the models you run in llama.cpp: a RoPE scale for every layer.  The road:\n")
        for line, what in ROAD:
            print(f"  {line:<51}{what}")
        print("\nropebend COMMAND --help explains one, ropebend --help lists all.")


def main() -> None:
    run_app(app)
