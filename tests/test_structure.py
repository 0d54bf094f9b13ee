"""docs/structure.md has a line for every module, and says of each what it says itself."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_map_is_current() -> None:
    spec = importlib.util.spec_from_file_location("module_map", ROOT / "tools" / "module_map.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text()
    assert tool.page(text) == text, "run python tools/module_map.py"
    rooms = {p.parent.relative_to(ROOT).as_posix() for top in ("plugin", "convert", "factors", "server")
             for p in (ROOT / top).rglob("*.py") if not any(part.is_symlink() for part in p.parents)}  # fmt: skip
    assert rooms == set(tool.ROOMS) - {"csrc"}
