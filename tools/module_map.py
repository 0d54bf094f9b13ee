"""Write the map of docs/structure.md anew: a line per module, from the first sentence of each."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "structure.md"
BEGIN, END = "<!-- the map: tools/module_map.py writes it -->\n", "<!-- end of the map -->"

#: Folders in the order in which data flows, and what is in each.
ROOMS = {
    "csrc": "the C core, the extension module and the preload library",
    "plugin": "the package `ropebend`: models and contexts with the hook",
    "plugin/scaling": "the one value that flows through everything",
    "plugin/doctor": "the proof that scales reach every rope node",
    "plugin/tasks": "what is measured",
    "plugin/tasks/ruler": "RULER's thirteen tasks",
    "plugin/evaluate": "measuring it, fast and exactly",
    "plugin/search": "finding the numbers",
    "plugin/tune": "the whole job by one command: task, baseline, search, judgement, file",
    "plugin/cli": "the command line",
    "convert": "`ropebend.convert`: scales into and out of a GGUF",
    "factors": "`ropebend.factors`: scales for public models, ready to take",
    "server": "`ropebend.server`: the process",
    "server/engine": "many requests on one model; knows no HTTP",
    "server/chat": "messages to prompts, answers to messages; pure text",
    "server/structured": "what an answer must look like",
    "server/openai": "HTTP: requests in, answers out; knows no llama.cpp",
}


def sentence(path: Path) -> str:
    """What a module says that it is: the first sentence of its docstring, or of the comment at its top."""
    text = path.read_text()
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = [line[2:].strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("//")]
        said = " ".join(lines)
    first = re.split(r"(?<=[.!?])\s|:?\n\n", said.strip(), maxsplit=1)[0]
    return " ".join(first.split()).rstrip(".:")


def modules(room: str) -> list[Path]:
    """The modules of a folder; of C the headers, and files without one."""
    folder = ROOT / room
    if room == "csrc":
        files = [p for p in folder.glob("*.[ch]") if p.suffix == ".h" or not p.with_suffix(".h").exists()]
    else:
        files = [p for p in folder.glob("*.py") if p.name not in ("__main__.py",) and sentence(p)]
    return sorted(files)


def render() -> str:
    """The map as Markdown."""
    out = []
    for room, what in ROOMS.items():
        out.append(f"\n### `{room}/`: {what}\n\n")
        for path in modules(room):
            name = path.stem if path.name != "__init__.py" else "(itself)"
            out.append(f"- **{name}** {sentence(path)}\n")
    return "".join(out) + "\n"


def page(text: str) -> str:
    """The page with its map as it should be."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + render() + END + rest.partition(END)[2]


if __name__ == "__main__":
    before = PAGE.read_text()
    PAGE.write_text(page(before))
    sys.exit(0)
