"""What a command imports before it says anything, and which names are public."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ropebend
from ropebend.cli import COMMANDS

ROOT = Path(__file__).parents[2]
SLOW = {"llama_cpp", "numpy", "gguf", "fastapi", "uvicorn", "scipy", "matplotlib", "ray", "jinja2"}


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        ["show", "factors.json"],
        *([name, "--help"] for name in ("show", "add-scales", "eval", "search", "serve", "chat", "demo")),
    ],
    ids=" ".join,
)
def test_small_commands_import_nothing_that_is_slow(tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "factors.json").write_text("[1, 1.5]")
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported', *sys.modules))\n"
        "from ropebend.cli import main\n"
        "main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    said, _, imported = run.stdout.rpartition("imported ")
    assert said.strip()
    modules = set(imported.split())
    assert not SLOW & {m.partition(".")[0] for m in modules}
    assert not {"ropebend.tasks", "ropebend.search", "ropebend.evaluate"} & modules


def test_the_list_of_commands_is_that_of_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from ropebend.cli import app

    listed = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    for name, (module, function, summary) in COMMANDS.items():
        assert callable(getattr(import_module(module), function))
        assert re.search(rf"^  {name} +{re.escape(summary)}$", listed, re.MULTILINE), name  # one line, nothing cut


def test_every_public_name_is_there_and_documented() -> None:
    for name in ropebend.__all__:
        value = getattr(ropebend, name)
        assert isinstance(value, str) or value.__doc__, name
    public = re.findall(r"`(ropebend\.\w+)`", ropebend.__doc__ or "")
    assert "ropebend.tasks" in public
    for name in public:
        assert import_module(name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        ropebend.Lama  # noqa: B018


def test_the_docs_import_public_names_only() -> None:
    public = {"ropebend", *re.findall(r"`(ropebend\.\w+)`", ropebend.__doc__ or "")}
    found = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for module, names in re.findall(r"^ *from (ropebend[\w.]*) import ([\w, ]+)", page.read_text(), re.MULTILINE):
            assert module in public or module.rpartition(".")[0] in public, f"{page.name}: {module}"
            for name in names.split(","):
                assert hasattr(import_module(module), name.strip()), f"{page.name}: {module}.{name}"
                assert module != "ropebend" or name.strip() in ropebend.__all__
                found += 1
    assert found > 5
