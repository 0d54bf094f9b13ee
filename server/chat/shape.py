"""What conversations a chat template takes, found by rendering probes and looking which of their words arrive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ropebend.chat_template import UNDEFINED, Message, Refused, Renderer

ROLES = ("system", "user", "assistant", "tool")

Arguments = Literal["object", "text"]
Ids = Literal["any", "nine", "named"]
Way = Literal["json", "granite", "lfm2"]
ARGUMENTS: Final[tuple[Arguments, ...]] = ("object", "text")
KINDS_OF_IDS: Final[tuple[Ids, ...]] = ("any", "nine", "named")

#: A message without the key `content`.
ABSENT = object()


@dataclass(frozen=True)
class Shape:
    """What a template takes; the defaults are what OpenAI's own API takes.

    no_tools    what `tools` is without any: None, `UNDEFINED` or an empty list
    text        roles whose content may be a string
    parts       roles whose content may be a list of parts
    developer   the template has something of its own for this role
    system      where system messages may stand
    repeats     whether a role may speak twice in a row
    opens       whether the assistant may speak first
    tools       descriptions of tools are shown
    calls       calls are shown, and their results
    results     results are shown, even if calls are not
    way         how the model writes calls that the template does not show
    sample      what a call of `NAME` looks like, if the template shows calls but not which tools there are
    arguments   what the template expects the arguments of a call to be
    parallel    one message may hold several calls
    beside      text beside calls is shown
    empty       content of a message that holds calls and no text: "", None or `ABSENT`
    ids         which ids of calls are taken: any, nine letters and digits (Mistral), or the only place where the name
                of the function is shown (Kimi)
    filled      every tool has a description and parameters
    """

    no_tools: Any = None
    text: frozenset[str] = frozenset(ROLES)
    parts: frozenset[str] = frozenset(ROLES)
    developer: bool = True
    system: Literal["anywhere", "first", "never"] = "anywhere"
    repeats: bool = True
    opens: bool = True
    tools: bool = True
    calls: bool = True
    results: bool = True
    way: Way = "json"
    sample: str = ""
    arguments: Arguments = "object"
    parallel: bool = True
    beside: bool = True
    empty: Any = ""
    ids: Ids = "any"
    filled: bool = False


# ---- the words of the probes: they stand in no template, and survive any trimming and quoting

SYSTEM, LATER, USER, USER2, ASSISTANT = "zqsys", "zqlater", "zquser", "zqmore", "zqassist"
ANSWER, RESULT, RESULT2 = "zqanswer", "zqresa", "zqresb"
NAME, NAME2, KEY, VALUE, VALUE2, ABOUT = "zqfuna", "zqfunb", "zqkey", "zqvala", "zqvalb", "zqabout"

#: An id of each kind; the first is like those this server gives.
IDS = {"any": "call_0123456789abcdef01234567", "nine": "zq3456789", "named": f"functions.{NAME}:0"}


def probe_tool(name: str = NAME) -> dict[str, Any]:
    """A tool of one argument."""
    properties = {KEY: {"type": "string", "description": "text"}}
    parameters = {"type": "object", "properties": properties, "required": [KEY]}
    return {"type": "function", "function": {"name": name, "description": ABOUT, "parameters": parameters}}


def message(role: str, content: Any, **more: Any) -> Message:
    """A message; without content if that is `ABSENT`."""
    return {"role": role, **({} if content is ABSENT else {"content": content}), **more}


def call(id: str, name: str, arguments: Any) -> dict[str, Any]:
    """A call as OpenAI writes it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def probe(renderer: Renderer) -> Shape:
    """The shape of a template's conversations."""
    return _Probes(renderer).shape()


class _Probes:
    def __init__(self, renderer: Renderer):
        self._renderer = renderer
        self._no_tools: Any = None
        self._text: frozenset[str] = frozenset()
        self._tools = [probe_tool(), probe_tool(NAME2)]

    def shape(self) -> Shape:
        self._find_no_tools()
        parts = frozenset(role for role in ROLES if role != "tool" and self._takes_parts(role))
        s, u, a = self._say("system", SYSTEM), self._say("user", USER), self._say("assistant", ASSISTANT)
        u2, later = self._say("user", USER2), self._say("system", LATER)
        system: Literal["anywhere", "first", "never"] = "anywhere"
        if not self._arrive([s, u], SYSTEM, USER):
            system = "never"
        elif not self._arrive([s, u, a, later, u2], SYSTEM, LATER, USER2):
            system = "first"
        lead = [] if system == "never" else [s]
        found = Shape(
            no_tools=self._no_tools,
            developer="developer" in self._renderer.source,
            system=system,
            repeats=self._arrive([u, u2], USER, USER2),
            opens=self._arrive([a, u], ASSISTANT, USER),
            tools=self._arrive([*lead, u], NAME, NAME2, ABOUT, KEY, tools=True),
        )
        found = self._calls(found)
        if not found.calls:
            called = self._say("assistant", ASSISTANT)
            results = found.tools and self._arrive([u, called, message("tool", RESULT, name=NAME)], RESULT, tools=True)
            found = replace(found, results=results, way=_way(self._renderer.source) if found.tools else "json")
        elif not found.tools:
            found = replace(found, sample=self._sample(found))
        if found.calls:
            two = [{"type": "text", "text": RESULT}, {"type": "text", "text": RESULT2}]
            text = self._render(self._round(found, content=two), tools=True)
            if text is not None and RESULT in text and RESULT2 in text and not _lists(text, RESULT, RESULT2):
                parts |= {"tool"}
        return replace(found, text=self._text, parts=parts)

    def _render(self, messages: Sequence[Message], *, tools: bool = False, asks: bool = True) -> str | None:
        """The text, or None if the template refuses.  asks: with the beginning of an answer at the end."""
        shown = self._tools if tools else self._no_tools
        try:
            return self._renderer.render(messages, shown, add_generation_prompt=asks)
        except Refused:
            return None

    def _arrive(self, messages: Sequence[Message], *words: str, tools: bool = False) -> bool:
        text = self._render(messages, tools=tools)
        return text is not None and all(word in text for word in words)

    def _say(self, role: str, text: str) -> Message:
        return message(role, text if role in self._text else [{"type": "text", "text": text}])

    def _find_no_tools(self) -> None:
        for self._no_tools in (None, UNDEFINED, []):
            for self._text in (frozenset(ROLES), frozenset()):
                if self._arrive([self._say("user", USER)], USER):
                    break
            else:
                continue
            break
        else:
            self._no_tools, self._text = None, frozenset(ROLES)
        # a role that shows neither string nor parts gets strings: those do the least harm
        for role in ("system", "assistant"):
            text = self._text
            for self._text in (text | {role}, text - {role}, text | {role}):
                if self._arrive(self._around(role, self._say(role, ANSWER)["content"]), ANSWER):
                    break
        self._text |= {"tool"}

    def _around(self, role: str, content: Any) -> list[Message]:
        u, said = self._say("user", USER), message(role, content)
        return {"system": [said, u], "user": [said], "assistant": [u, said, u]}[role]

    def _takes_parts(self, role: str) -> bool:
        two = [{"type": "text", "text": ANSWER}, {"type": "text", "text": LATER}]
        text = self._render(self._around(role, two))
        return text is not None and ANSWER in text and LATER in text and not _lists(text, ANSWER, LATER)

    def _round(
        self, shape: Shape, *, name: str = NAME, said: str | None = None, content: Any = RESULT, more: bool = False
    ) -> list[Message]:
        """A question, a call (two with `more`), its result, and nothing after it."""

        def arguments(value: str) -> Any:
            return {KEY: value} if shape.arguments == "object" else json.dumps({KEY: value})

        id, id2 = IDS[shape.ids], IDS[shape.ids][:-1] + "1"
        calls = [call(id, name, arguments(VALUE))]
        results = [message("tool", content, tool_call_id=id, name=NAME)]
        if more:
            calls.append(call(id2, NAME, arguments(VALUE2)))
            results.append(message("tool", RESULT2, tool_call_id=id2, name=NAME))
        text = shape.empty if said is None else self._say("assistant", said)["content"]
        return [self._say("user", USER), message("assistant", text, tool_calls=calls), *results]

    def _calls(self, shape: Shape) -> Shape:
        """With how calls are taken: of the ways in which all arrives the first, with the least around it."""
        for arguments in ARGUMENTS:
            for ids in KINDS_OF_IDS:
                ways = [replace(shape, arguments=arguments, ids=ids, empty=empty) for empty in ("", None, ABSENT)]
                texts = [(len(text), i) for i, way in enumerate(ways) if (text := self._shows_call(way)) is not None]
                if not texts:
                    continue
                found = ways[min(texts)[1]]
                return replace(
                    found,
                    beside=self._arrive(self._round(found, said=ANSWER), ANSWER, VALUE, RESULT, tools=True),
                    parallel=self._arrive(self._round(found, more=True), VALUE, VALUE2, RESULT, RESULT2, tools=True),
                )
        return replace(shape, calls=False)

    def _shows_call(self, way: Shape) -> str | None:
        """The text of a call and its result if name, arguments and result are shown, and as they should be."""
        text = self._render(self._round(way), tools=True)
        if text is None or VALUE not in text or RESULT not in text:
            return None
        without = self._render(self._round(way)[:1], tools=True) or ""
        if any(text.count(wrong) > without.count(wrong) for wrong in (f'\\"{KEY}', f"'{KEY}'")):
            return None  # JSON in a JSON string, or Python's notation
        other = self._round(way, name=NAME2)
        if way.ids == "named":
            other[1]["tool_calls"][0]["id"] = IDS["named"].replace(NAME, NAME2)
        return text if self._render(other, tools=True) != text else None

    def _sample(self, shape: Shape) -> str:
        """How the template writes a call: what is different from an answer in words."""
        called = self._render(self._round(shape)[:2], asks=False)
        said = self._render([self._say("user", USER), self._say("assistant", ANSWER)], asks=False)
        if called is None or said is None or ANSWER not in said:
            return ""
        n = next((i for i, (a, b) in enumerate(zip(called, said, strict=False)) if a != b), 0)
        block = called[n:].removesuffix(said[said.index(ANSWER) + len(ANSWER) :])
        return block if NAME in block and VALUE in block else ""


def _way(source: str) -> Way:
    """From what such templates say of the tools: the form itself they leave to the model's training."""
    if "<|tool_call|> followed by a JSON list" in source:
        return "granite"
    return "lfm2" if '"List of tools: ' in source else "json"


def _lists(text: str, *words: str) -> bool:
    """Whether a list of parts was printed instead of the words in it."""
    return "type" in text and any(f"{q}{word}{q}" in text for q in "'\"" for word in words)
