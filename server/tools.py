"""Calls of tools in what a model writes.

Models write them in one of three ways, all read here: ``<tool_call>{…}</tool_call>`` (Hermes, Qwen),
``[TOOL_CALLS] […]`` (Mistral), or nothing but a JSON object with a name and arguments or parameters (Llama 3; after
``<|python_tag|>``, too).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

#: What announces calls; from here on the text is held back until it is complete.
MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")

HERMES_TAGS = ("<tool_call>\n", "\n</tool_call>")


@dataclass(frozen=True)
class Call:
    """A function to call.  arguments: JSON text."""

    name: str
    arguments: str


class ToolStream:
    """Text in, text without calls out; the calls come at the end.

    names: functions there are; a JSON object that names none of them is an ordinary answer.
    """

    def __init__(self, names: Collection[str]):
        self._names = names
        self._held = ""
        self._began = False  # something else than white space was seen
        self._calling = False

    def feed(self, text: str) -> str:
        """Add text and return what is certainly no call."""
        self._held += text
        if self._calling:
            return ""
        if not self._began:
            start = self._held.lstrip()[:1]
            if not start:
                return ""
            self._began = True
            if start in "{[":
                self._calling = True
                return ""
        hits = [at for mark in MARKS if (at := self._held.find(mark)) >= 0]
        if hits:
            self._calling = True
            cut = min(hits)
        else:
            cut = len(self._held) - self._n_suspect()
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _n_suspect(self) -> int:
        """Length of the longest end of the held text that begins a mark."""
        for n in range(min(len(self._held), max(map(len, MARKS)) - 1), 0, -1):
            if any(mark.startswith(self._held[-n:]) for mark in MARKS):
                return n
        return 0

    def finish(self) -> tuple[str, list[Call]]:
        """What is left: text, or calls."""
        held, self._held = self._held, ""
        calls = parse(held, self._names) if self._calling else []
        return ("", calls) if calls else (held, [])


def parse(text: str, names: Collection[str]) -> list[Call]:
    """The calls in `text`; empty if it is not made of calls of functions in `names`."""
    text = text.strip()
    for mark in MARKS[1:]:
        text = text.removeprefix(mark).strip()
    values: list[Any] = []
    decoder = json.JSONDecoder()
    while text:
        text = text.removeprefix("<tool_call>").strip()
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        text = text[end:].strip().removeprefix("</tool_call>").strip().removeprefix(";").strip()
    calls = []
    for value in values:
        if not isinstance(value, dict) or value.get("name") not in names:
            return []
        arguments = value.get("arguments", value.get("parameters", {}))
        calls.append(Call(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return calls


def describe(tools: list[dict[str, Any]]) -> str:
    """What to tell a model whose chat template knows no tools."""
    lines = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
    return (
        f"You can call these functions:\n{lines}\n"
        'To call one, answer with nothing but {"name": its name, "arguments": an object with its arguments}.'
    )
