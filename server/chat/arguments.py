"""Arguments that are not written as JSON: made JSON by what the function's schema says."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

Schema = Mapping[str, Any]

_KINDS = {str: "string", bool: "boolean", type(None): "null", dict: "object", list: "array"}
_EVERY = frozenset({"string", "boolean", "null", "object", "array", "number"})


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def is_object(source: str) -> bool:
    """Whether this is the source of a JSON object."""
    try:
        return isinstance(json.loads(source, parse_constant=_no_json), dict)
    except (ValueError, RecursionError):
        return False


def properties(schema: Any) -> Mapping[str, Any]:
    """The schemas of an object's properties; none if there are none to find."""
    found = resolved(schema, schema).get("properties")
    return found if isinstance(found, Mapping) else {}


def kinds(schema: Any, root: Any, depth: int = 8) -> frozenset[str]:
    """The types of JSON values that a schema may allow; an integer is a number."""
    schema = resolved(schema, root)
    if "const" in schema:
        return frozenset({_kind(schema["const"])})
    if isinstance(schema.get("enum"), list):
        return frozenset(map(_kind, schema["enum"]))
    wanted = schema.get("type")
    if isinstance(wanted, str):
        wanted = [wanted]
    if isinstance(wanted, list):
        return frozenset("number" if k == "integer" else k for k in wanted if isinstance(k, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and depth:
            return frozenset[str]().union(*(kinds(s, root, depth - 1) for s in schema[key]))
    if isinstance(schema.get("allOf"), list) and depth:
        return _EVERY.intersection(*(kinds(s, root, depth - 1) for s in schema["allOf"]))
    if "properties" in schema:
        return frozenset({"object"})
    if "pattern" in schema or "maxLength" in schema or "minLength" in schema:
        return frozenset({"string"})
    return _EVERY


def resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """The schema that a local reference refers to."""
    for _ in range(8):
        if not isinstance(schema, Mapping):
            return {}
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#"):
            return schema
        schema = root
        for part in ref[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return {}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "number")


def json_of(text: str, allowed: frozenset[str]) -> str:
    """The JSON source of a value written as plain text.

    Text that is JSON of an allowed type is that value (of a string only where anything is allowed: elsewhere its
    quotes are its own), any other a string.
    """
    source = text.strip()
    source = {"True": "true", "False": "false", "None": "null"}.get(source, source)
    try:
        value = json.loads(source, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    kind = _kind(value)
    if kind == "string" and allowed != _EVERY:
        return json.dumps(text, ensure_ascii=False)
    if kind in allowed or "string" not in allowed:
        return source
    return json.dumps(text, ensure_ascii=False)


_WORDS = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|\b(true|false|null)\b""", re.DOTALL)
_PYTHON = {"true": "True", "false": "False", "null": "None"}


def json_of_python(text: str) -> str:
    """The JSON source of a value written as in Python (or JSON); of what is neither, a string."""
    text = text.strip()
    source = _WORDS.sub(lambda m: m[1] or _PYTHON[m[2]], text)
    for attempt in (source, source.replace("\n", "\\n")):  # templates show line breaks in texts as they are
        try:
            return json.dumps(ast.literal_eval(attempt), ensure_ascii=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return json.dumps(text, ensure_ascii=False)


#: Stands around texts in Gemma 4's calls.
GEMMA_QUOTE = '<|"|>'

_GEMMA = re.compile(r"<\|\"\|>(?P<text>.*?)<\|\"\|>|(?P<sign>[][{},:])|(?P<word>(?:(?!<\|\"\|>)[^][{},:])+)", re.DOTALL)


def json_of_gemma(text: str) -> str:
    """The JSON source of a value as Gemma 4 writes it: texts in marks of their own, names of properties bare."""
    out: list[str] = []
    for part in _GEMMA.finditer(text.strip()):
        if part["sign"]:
            out.append({",": ", ", ":": ": "}.get(part["sign"], part["sign"]))
        elif part["text"] is not None:
            out.append(json.dumps(part["text"], ensure_ascii=False))
        elif word := part["word"].strip():
            key = text.strip()[part.end() : part.end() + 1] == ":"
            out.append(json.dumps(word, ensure_ascii=False) if key else json_of(word, _EVERY))
    source = "".join(out)
    try:
        json.loads(source)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return source
