"""What an answer must be where a call or a certain form is demanded, in the model's own way of writing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropebend.server.chat.arguments import kinds, properties, resolved
from ropebend.server.structured.parts import Choice, Json, Part, Regex, Seq, Several, Text, Until


@dataclass(frozen=True)
class Tags:
    """Parameters in tags; ``{key}`` stands for a parameter's name.

    open, close  around a value
    text         attributes of a text and of any other value stand here; "" if there are none
    """

    open: str
    close: str
    types: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Layout:
    """How a model writes calls; ``{name}`` stands for the function's name.

    call     before the arguments
    close    after them
    begin, between, end  around all calls, and between two
    tags     how the arguments are written, if not as JSON
    thought  around thinking that the model begins itself; None: as its chat template shows it
    answer   around an answer that is no call
    """

    call: tuple[str | Regex, ...]
    close: tuple[str | Regex, ...] = ()
    begin: str = ""
    between: str = ""
    end: str = ""
    tags: Tags | None = None
    thought: tuple[str, str] | None = None
    answer: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Function:
    """A function that may be called.  strict: whether what a schema asks for and nobody can hold to is refused."""

    name: str
    schema: Mapping[str, Any] | None
    strict: bool = True


#: White space between thinking and answer.
_BLANK = Regex(r"[ \n]{0,2}")


def calls(layout: Layout, functions: Sequence[Function], several: bool) -> Part:
    """One call of one of these functions, or with `several` any number from one on."""
    one = Choice(tuple(_call(layout, f) for f in functions))
    body = Several(one, between=layout.between) if several else one
    return Seq((Text(layout.begin), body, Text(layout.end)))


def after_thinking(part: Part, opened: str, tags: tuple[str, str] | None) -> Part:
    """The part, after thinking if there is any.

    opened  the prompt has opened the thinking
    tags    around thinking that the model may begin itself; None: it does not think
    """
    if tags is None:
        return part
    begin, end = tags
    if opened:
        return Seq((Until(end), _BLANK, part))
    return Choice((Seq((Text(begin), Until(end), _BLANK, part)), part))


def answer(layout: Layout, part: Part) -> Part:
    """An answer to the user that is this part."""
    return Seq((Text(layout.answer[0]), part, Text(layout.answer[1])))


def _filled(texts: tuple[str | Regex, ...], name: str) -> list[Part]:
    return [Text(t.replace("{name}", name)) if isinstance(t, str) else t for t in texts]


def _call(layout: Layout, function: Function) -> Part:
    arguments: Part
    if layout.tags:
        arguments = _tagged(layout.tags, function)
    else:
        arguments = Json(
            function.schema or {"type": "object", "properties": {}}, function.strict, f"the tool {function.name!r}"
        )
    return Seq((*_filled(layout.call, function.name), arguments, *_filled(layout.close, function.name)))


def _tagged(tags: Tags, function: Function) -> Part:
    """The parameters in the order of the schema; those that are not required may be left out."""
    schema = function.schema or {}
    required = resolved(schema, schema).get("required")
    known = properties(schema)
    wanted = {*known} & {*required} if isinstance(required, list) else set()
    parts: list[Part] = []
    for key, value in known.items():
        one = _parameter(tags, key, value, function)
        parts.append(one if key in wanted else Several(one, least=0, most=1))
    if schema and "properties" not in resolved(schema, schema):  # nothing is known about them
        open_, close = tags.open.split("{key}")
        rest = Seq((Text(close + tags.types[0]), Until(tags.close)))
        parts.append(Several(Seq((Text(open_), Regex(r"[\w.-]{1,64}"), rest)), least=0, most=16))
    return Seq(tuple(parts))


def _parameter(tags: Tags, key: str, value: Any, function: Function) -> Part:
    root = function.schema or {}
    open_ = tags.open.replace("{key}", key)
    schema = resolved(value, root)
    allowed = kinds(value, root)
    if "string" not in allowed:
        own = {k: root[k] for k in ("$defs", "definitions") if k in root}
        whole = Json({**own, **schema}, function.strict, f"the tool {function.name!r}, {key!r}")
        return Seq((Text(open_ + tags.types[1]), whole, Text(tags.close)))
    return Seq((Text(open_ + tags.types[0]), _text(schema, tags.close)))


def _text(schema: Mapping[str, Any], close: str) -> Part:
    """A text as it is, and what ends it."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
        return Seq((Choice(tuple(map(Text, values))), Text(close)))
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and (whole := _anchored(pattern)):
        return Until(close, whole)
    low, high = schema.get("minLength"), schema.get("maxLength")
    if isinstance(low, int) or isinstance(high, int):
        return Until(close, f"(?s:.{{{low or 0},{'' if high is None else high}}})")
    return Until(close)


def _anchored(pattern: str) -> str:
    """A regular expression for all of a text that a schema's pattern is found in; "" if it has inner anchors."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[int(begins) : len(pattern) - int(ends)]
    if re.search(r"(?<![\\\[])[\^$]", inner):
        return ""
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"
