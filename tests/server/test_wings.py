"""Data flows one way: HTTP to the engine and back.  What each wing of the server may import."""

import ast
from importlib import resources

import pytest

#: Wing → what it may import of the server besides itself, and what it must not know.
WINGS = {
    "engine": (("structured",), ("fastapi", "starlette", "uvicorn", "pydantic", "jinja2")),
    "chat": (("structured.parts",), ("fastapi", "starlette", "uvicorn", "pydantic", "llama_cpp")),
    "structured": ((), ("fastapi", "starlette", "uvicorn", "pydantic")),
    "openai": (("engine", "chat", "structured"), ("llama_cpp", "uvicorn")),
}


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_only_what_lies_behind_it(wing: str) -> None:
    behind, unknown = WINGS[wing]
    allowed = tuple(f"ropebend.server.{w}" for w in (wing, *behind))
    n = 0
    for file in resources.files(f"ropebend.server.{wing}").iterdir():
        if not file.name.endswith(".py"):
            continue
        n += 1
        for name in imported(file.read_text(encoding="utf-8")):
            assert name.partition(".")[0] not in unknown, f"{file.name} imports {name}"
            if name.startswith("ropebend.server."):
                assert name.startswith(allowed), f"{file.name} imports {name}"
    assert n > 1
