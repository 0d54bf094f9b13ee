"""What --help says, and what is said of commands that there are not."""

import shlex
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from ropebend.cli import COMMANDS, app, no_such_command
from ropebend.cli.help import EXAMPLES, GROUPS, REST


def command_of(name: str) -> Any:
    group: Any = get_command(app)
    return group.get_command(typer.Context(group), name)


@pytest.mark.parametrize("name", GROUPS)
def test_every_flag_has_its_group(name: str) -> None:
    flags = {p.name for p in command_of(name).params if p.param_type_name == "option"}
    named = {n for _, names in GROUPS[name] for n in names}
    assert len(GROUPS[name][0][1]) <= 5
    assert set(GROUPS[name][0][1]) <= flags
    assert name in REST or flags <= named
    out = CliRunner().invoke(app, [name, "--help"], terminal_width=80).output
    places = [out.index(f"\n{title}:\n") for title, names in GROUPS[name] if flags & set(names)]
    assert places == sorted(places)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_can_be_typed(name: str) -> None:
    assert EXAMPLES[name]
    for line, _ in EXAMPLES[name]:
        assert line in CliRunner().invoke(app, [name, "--help"], terminal_width=80).output
        words = shlex.split(line.partition(" < ")[0])
        if words[0] == "ropebend":
            assert words[1] == name
            command_of(name).make_context(name, words[2:])  # raises for a flag that there is not


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sarch", "m.gguf"], "'sarch'; did you mean: ropebend search m.gguf"),
        (["add_scales"], "did you mean: ropebend add-scales"),
        (["run", "a b.gguf"], "did you mean: ropebend chat 'a b.gguf'"),
        (["perplexity"], "did you mean: ropebend eval"),
        (["m.gguf"], "m.gguf is no command; begin with: ropebend info m.gguf"),
        (["found.json"], "found.json is no command; look at scales with: ropebend show found.json"),
        (["zzz"], "ropebend --help lists all, and the road begins with: ropebend info MODEL.gguf"),
    ],
)
def test_wrong_guesses_name_the_command(words: list[str], expected: str) -> None:
    assert expected in no_such_command(*words)
