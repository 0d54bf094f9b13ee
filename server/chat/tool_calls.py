"""Calls of tools in what a model writes.

Models write them in one of three ways, all read here: ``<tool_call>{…}</tool_call>`` (Hermes, Qwen),
``[TOOL_CALLS] […]`` (Mistral), or nothing but a JSON object with a name and arguments or parameters (Llama 3; after
``<|python_tag|>``, too).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)

#: What announces calls; from here on the text is held back until it is complete.
MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")

HERMES_TAGS = ("<tool_call>\n", "\n</tool_call>")


@dataclass(frozen=True)
class Call:
    """A function to call.  arguments: a JSON object, as it was written."""

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
        """What is left: text, and calls."""
        held, self._held = self._held, ""
        return parse(held, self._names) if self._calling else (held, [])


def parse(text: str, names: Collection[str]) -> tuple[str, list[Call]]:
    """The calls that `text` begins with, of functions in `names`, and the text after them.

    Without a mark before it, JSON is a call only if nothing follows; of several values all must be calls.
    """
    calls: list[Call] = []
    rest = text
    while True:
        value = rest.strip()
        for mark in (";", *MARKS):
            value = value.removeprefix(mark).strip()
        try:
            end = _DECODER.raw_decode(value)[1]
            sources = _parts(value[:end]) if value[0] == "[" else [value[:end]]
            calls += [_call(source, names) for source in sources]
        except (ValueError, RecursionError):
            break
        rest = value[end:].lstrip().removeprefix("</tool_call>")
    if not calls or (rest.strip() and not text.lstrip().startswith(MARKS)):
        return text, []
    return rest if rest.strip() else "", calls


def _call(source: str, names: Collection[str]) -> Call:
    """The call that this JSON is.  ValueError if it is none."""
    if not source.startswith("{"):
        raise ValueError("no object")
    parts = _parts(source)
    members = {json.loads(k): v for k, v in zip(parts[::2], parts[1::2], strict=True)}
    name = json.loads(members.get("name", "null"))
    if not isinstance(name, str) or name not in names:
        raise ValueError("no name of a function")
    arguments = members.get("arguments", members.get("parameters", "null"))
    if arguments == "null":
        arguments = "{}"
    elif arguments.startswith('"'):  # some models write the object into a string
        arguments = json.loads(arguments)
    if not isinstance(_DECODER.decode(arguments), dict):
        raise ValueError("no arguments")
    return Call(name, arguments)


def _parts(source: str) -> list[str]:
    """The sources of the values in a JSON array or object; of an object its keys and values in turn."""
    parts: list[str] = []
    at = 1
    while True:
        while source[at] in " \t\r\n,:":
            at += 1
        if source[at] in "]}":
            return parts
        end = _DECODER.raw_decode(source, at)[1]
        parts.append(source[at:end])
        at = end


def describe(tools: list[dict[str, Any]]) -> str:
    """What to tell a model whose chat template knows no tools."""
    lines = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
    return (
        f"You can call these functions:\n{lines}\n"
        'To call one, answer with nothing but {"name": its name, "arguments": an object with its arguments}.'
    )
