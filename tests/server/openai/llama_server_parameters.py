"""Remake `llama_server_parameters.json` from the sources of llama.cpp: python llama_server_parameters.py LLAMA_CPP

It holds what llama-server's README documents and its request schema reads, with the default of each where the README
or the declaration of the C++ variable tells it; null where neither does.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


def documented(readme: str) -> dict[str, Any]:
    """Parameters of /completion and /v1/chat/completions, with the default that their text tells."""
    found: dict[str, Any] = {}
    for heading in ("### POST `/completion`", "### POST `/v1/chat/completions`"):
        section = readme[readme.index(heading) :]
        section = section[: re.search(r"\n(?:\*\*Response|\*Examples|#{2,3} |.*Examples:)", section[10:]).start()]  # type: ignore[union-attr]
        for name, text in re.findall(r"^`(\w+)` ?: (.*)$", section, re.MULTILINE):
            default = re.search(r"Defaults?(?::| to) `([^`]*)`", text)
            found[name] = value(default[1]) if default else None
    return found


def value(text: str) -> Any:
    """A default of the README as JSON, None if it is in words."""
    try:
        return json.loads(text.replace("'", '"').replace('"""', r'"\""'))
    except ValueError:
        return None


def read(schema: str, declarations: str) -> dict[str, Any]:
    """Fields of the request schema, with the value that the C++ variable is declared with."""
    found: dict[str, Any] = {}
    for kind, name, variable, rest in re.findall(
        r'new field_(\w+)\("(\w+)"(?:, params\.([\w.]+))?\)(.*?)->set_desc', schema, re.DOTALL
    ):
        last = variable.rpartition(".")[2]
        declared = last and re.search(rf"\b{last}\s*=\s*(-?[\d.]+f?|true|false)\s*;", declarations)
        default = json.loads(declared[1].rstrip("f")) if declared else None
        for each in (name, *re.findall(r'add_alias\("(\w+)"\)', rest)):
            found[each] = bool(default) if kind == "bool" and default is not None else default
    return found


def main(sources: Path) -> None:
    server = sources / "tools" / "server"
    declarations = "".join((sources / path).read_text() for path in ("common/common.h", "tools/server/server-task.h"))
    schema = (server / "server-schema.cpp").read_text()
    parameters = {
        **read(schema, declarations),
        **{k: v for k, v in documented((server / "README.md").read_text()).items() if v is not None},
    }
    for name in documented((server / "README.md").read_text()):
        parameters.setdefault(name, None)
    FILE.write_text(json.dumps(dict(sorted(parameters.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
