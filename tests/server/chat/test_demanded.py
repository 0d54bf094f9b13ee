"""Calls that are demanded are written as the model writes them, and read back."""

from __future__ import annotations

import json
import re
from typing import Any

import published_templates as published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.server.chat.demanded import Function, after_thinking, answer, calls
from ropebend.server.chat.formats import FORMATS, GENERIC, Format, format_of, thinking_of
from ropebend.server.chat.parser import Expected, opened_by, parse
from ropebend.server.structured.parts import Choice, Json, Part, Regex, Seq, Text, Until

FUNCTIONS = {
    "find.it": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "unit": {"enum": ["c", "f"]},
            "short": {"type": "string", "minLength": 1, "maxLength": 3},
            "code": {"type": "string", "pattern": "^[a-f]{2}$"},
            "n": {"type": "integer"},
            "filter": {"$ref": "#/$defs/F"},
            "maybe": {"type": ["string", "null"]},
        },
        "required": ["query", "unit", "n", "filter"],
        "$defs": {"F": {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}}},
    },
    "now": {"type": "object", "properties": {}},
    "any": None,
}
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n"\\{}'), max_size=12).map(
    lambda text: text.replace("<", "(").replace(">", ")")
)


def instance(schema: Any, root: Any, draw: Any) -> Any:
    """Something that follows a schema, of those above."""
    if "$ref" in schema:
        return instance(root["$defs"]["F"], root, draw)
    if schema.get("type") == "integer":
        return draw(st.integers(-99, 99))
    if schema.get("type") == "array":
        return draw(st.lists(WORDS, max_size=2))
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    if "pattern" in schema:
        return draw(st.from_regex(r"\A[a-f]{2}\Z"))
    if schema.get("maxLength"):
        return draw(st.text("xyz", min_size=1, max_size=3))
    if schema.get("type") == "object":
        required = schema.get("required", [])
        return {
            k: instance(v, root, draw)
            for k, v in schema.get("properties", {}).items()
            if k in required or draw(st.booleans())
        }
    return draw(WORDS)


def written(part: Part, draw: Any) -> str:
    """A text that this part allows."""
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Json):
        return json.dumps(instance(part.schema, part.schema, draw), ensure_ascii=False)
    if isinstance(part, Regex):
        return str(draw(st.from_regex(rf"\A(?:{part.pattern})\Z")))
    if isinstance(part, Until):
        pattern = part.pattern.replace("(?s:.{1,3})", "[xyz]{1,3}")
        text = WORDS if pattern == "(?s:.*)" else st.from_regex(rf"\A(?:{pattern})\Z")
        return str(draw(text)) + part.end
    if isinstance(part, Seq):
        return "".join(written(p, draw) for p in part.parts)
    if isinstance(part, Choice):
        return written(draw(st.sampled_from(part.parts)), draw)
    most = part.least + 2 if part.most is None else part.most
    n = draw(st.integers(part.least, most))
    return part.between.join(written(part.part, draw) for _ in range(n))


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([GENERIC, *FORMATS]), st.booleans(), st.booleans())
def test_what_is_demanded_is_read_back(data: st.DataObject, format: Format, several: bool, thinks: bool) -> None:
    functions = [Function(name, schema) for name, schema in FUNCTIONS.items()]
    part: Part = calls(format.layout, functions, several)
    tags = ("<think>", "</think>")
    if thinks and format.name != "functionary-3.2":
        part = after_thinking(part, "", format.layout.thought or tags)
    text = written(part, data.draw)
    found = parse(text, Expected(format, FUNCTIONS))
    assert found.content == ""
    assert len(found.calls) >= 1
    assert several or len(found.calls) == 1
    for call in found.calls:
        arguments = json.loads(call.arguments)
        if call.name == "find.it":
            assert {"query", "unit", "n", "filter"} <= arguments.keys() <= FUNCTIONS["find.it"]["properties"].keys()  # type: ignore[index]
            assert arguments["unit"] in ("c", "f")
            assert type(arguments["n"]) is int
            assert type(arguments["filter"]) is dict
            assert re.fullmatch("[a-f]{2}", arguments.get("code", "aa"))
            assert 1 <= len(arguments.get("short", "x")) <= 3
        elif call.name == "now":
            assert arguments == {}


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([GENERIC, *FORMATS]), st.sampled_from(["", "<think>\n"]))
def test_a_demanded_answer_is_all_there_is(data: st.DataObject, format: Format, opened: str) -> None:
    if format.protocol:
        opened = ""
    part = answer(format.layout, Json({"type": "object", "properties": {"a": {"type": "integer"}}}))
    tags = ("<think>", "</think>") if data.draw(st.booleans()) or opened else None
    if format.name != "functionary-3.2":
        part = after_thinking(part, opened, tags and (format.layout.thought or tags))
    found = parse(written(part, data.draw), Expected(format, opened=opened))
    assert set(json.loads(found.content)) <= {"a"}


@pytest.mark.parametrize("name", published.NAMES)
def test_what_a_template_shows_is_read_back(name: str) -> None:
    (asked, called, *_), tools, variables = published.CONVERSATIONS["call"]
    template = published.template(name)
    prompt = template.render([asked], tools, variables).text
    whole = template.render([asked, called], tools, variables, add_generation_prompt=False).text
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    while prompt[same:] and whole[same - 1] != "<":  # not in the middle of a tag
        same -= 1
    text = whole[max(same - 1, 0) :] if prompt[same:] else whole[same:]
    functions = {t["function"]["name"]: t["function"].get("parameters") for t in tools}
    opened = "" if prompt[same:] else opened_by(prompt)
    found = parse(text, Expected(format_of(template.source(with_tools=True)), functions, opened=opened))
    assert [(c.name, json.loads(c.arguments)) for c in found.calls] == [
        (c["function"]["name"], c["function"]["arguments"]) for c in called["tool_calls"]
    ]


def test_the_tags_of_thinking_are_found_in_the_template() -> None:
    assert thinking_of("{{ '<think>' }} … </think>") == ("<think>", "</think>")
    assert thinking_of("{{ messages }}") is None
    assert thinking_of(None) is None
