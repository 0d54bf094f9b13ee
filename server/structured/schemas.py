"""What a JSON schema asks for: its keywords, where each stands, and what objects that do not say so may hold."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ropebend.server.structured.parts import GrammarError, Json
from ropebend.server.structured.repeats import check_regex

Node = dict[str, Any]

#: Keywords that demand something of a value and that llguidance can hold a model to, by the type they are about.
_HELD: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    "array": ("items", "additionalItems", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"),
}
_BOUNDS = _HELD["number"][:4]

#: The largest float64 below 2^63.
_MAX_BOUND = 2**63 - 1024

#: Keywords about the same value that their own subschemas are about.
_APPLIED = ("allOf", "anyOf", "oneOf")
_REFERENCE = "$ref"

#: Keywords that demand nothing of a value; those that begin with x- do not either.
_ANNOTATIONS = frozenset(["$schema", "$id", "id", "$comment", "$anchor", "$defs", "definitions", "title"])
_ANNOTATIONS |= {
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "discriminator",
}
_ANNOTATIONS |= {"contentMediaType", "contentEncoding", "contentSchema"}

_KNOWN = frozenset(k for ks in _HELD.values() for k in ks) | {*_APPLIED, _REFERENCE, "const", "enum", "type"}

#: Values with which a keyword demands nothing either.
_IDLE: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "nullable": (False,),
    "minContains": (0,),
    "unevaluatedProperties": (True,),
    "unevaluatedItems": (True,),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "not": (False,),
}

#: Keywords that mean nothing without another one.
_GOVERNORS = {"then": "if", "else": "if", "minContains": "contains", "maxContains": "contains"}
_GOVERNORS |= {"$dynamicAnchor": "$dynamicRef", "$vocabulary": ""}

#: Characters of a schema in JSON.
MAX_SCHEMA = 2**18


@dataclass(frozen=True)
class _Place:
    """A schema inside of the document.

    path      JSON pointer
    composed  other schemas speak of the same value, so that this one alone does not say what it may hold
    """

    node: Node
    path: str
    composed: bool


@dataclass(frozen=True)
class Settled:
    """A schema that llguidance can be asked to follow.

    places    path → schema, of every schema in it that matters
    warnings  about what was left out
    """

    root: Node
    places: dict[str, Node]
    warnings: tuple[str, ...]


def unusable(part: Json, why: object) -> GrammarError:
    """The error that says so of a schema."""
    of = f" of {part.owner}" if part.owner else ""
    return GrammarError(f"the JSON schema{of} cannot be used: {why}")


def settled(part: Json) -> Settled:
    """The schema without what llguidance does not know or reads otherwise.

    GrammarError if the schema is none, or if it is strict and there is something to leave out.
    """
    try:
        root = _copied(part.schema)
        places = list(_places(root))
        warnings = [w for place in places for w in _without_unknown(place)]
        for place in places:
            _checked(place)
    except GrammarError as e:
        raise unusable(part, e) from None
    if warnings and part.strict:
        raise unusable(part, f'{warnings[0]} is not supported ("strict": false leaves it out)')
    if part.closed:
        for place in places:
            if not place.composed:
                _close(place.node)
    of = f"of {part.owner}: " if part.owner else ""
    told = tuple(f"{of}{w} is not supported and was left out" for w in warnings)
    return Settled(root, {place.path: place.node for place in places}, told)


def _copied(schema: Any) -> Node:
    if isinstance(schema, bool):
        return {} if schema else {"anyOf": []}
    try:
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise GrammarError(f"it has {len(text)} characters, expected at most {MAX_SCHEMA}")
        text.encode()
        root: Node = copy.deepcopy(dict(schema))
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    if "\\u0000" in text.replace("\\\\", ""):
        raise GrammarError("a text in it has a NUL character")
    root.pop("x-guidance", None)  # llguidance's own options, which are ours to set
    return root


def _children(node: Node) -> Iterator[tuple[str, Any, bool]]:
    """Path below the node, subschema, and whether it is about the same value."""
    for keyword in (*_APPLIED, "prefixItems", "items"):
        value = node.get(keyword)
        if isinstance(value, list):
            for i, child in enumerate(value):
                yield f"/{keyword}/{i}", child, keyword in _APPLIED
        elif keyword == "items":
            yield f"/{keyword}", value, False
    for keyword in ("additionalItems", "additionalProperties"):
        yield f"/{keyword}", node.get(keyword), False
    for keyword in ("properties", "patternProperties"):
        value = node.get(keyword)
        if isinstance(value, dict):
            for name, child in value.items():
                yield f"/{keyword}/{name.replace('~', '~0').replace('/', '~1')}", child, False


def _places(root: Node) -> Iterator[_Place]:
    """Every schema that the document's answer depends on, once, those that refer to others before them."""
    found: dict[int, _Place] = {}
    waiting = [_Place(root, "", False)]
    while waiting:
        place = waiting.pop()
        before = found.get(id(place.node))
        if before is not None and (before.composed or not place.composed):
            continue
        found[id(place.node)] = place
        node = place.node
        many = len(node.get("allOf") or ()) > 1 if isinstance(node.get("allOf"), list) else False
        beside = sum(k in node for k in _KNOWN if k != "type") > 1 or many
        children = list(_children(node))
        if isinstance(ref := node.get(_REFERENCE), str):
            children += [(path, child, True) for path, child in _targets(root, ref, place.path)]
        for path, child, same in children:
            if isinstance(child, dict):
                path = path if path.startswith("#") else place.path + path
                waiting.append(_Place(child, path.removeprefix("#"), place.composed or (same and beside)))
    yield from found.values()


def _targets(root: Node, ref: str, path: str) -> Iterator[tuple[str, Any]]:
    """What a reference means.  One by $id or $anchor is followed by llguidance; it may be any definition."""
    if ref != "#" and not ref.startswith("#/"):
        if "://" in ref.partition("#")[0]:
            raise GrammarError(f"$ref {ref!r} at {path or '/'} is to another document, which is not fetched")
        for keyword in ("$defs", "definitions"):
            definitions = root.get(keyword)
            for name, child in definitions.items() if isinstance(definitions, dict) else ():
                yield f"#/{keyword}/{name}", child
        return
    target: Any = root
    for part in ref.split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            target = target[int(part)] if isinstance(target, list) else target[part]
        except (LookupError, TypeError, ValueError):
            raise GrammarError(f"$ref {ref!r} at {path or '/'} points nowhere") from None
    yield ref, target


def _without_unknown(place: _Place) -> Iterator[str]:
    node = place.node
    for keyword in [k for k in node if k not in _KNOWN and k not in _ANNOTATIONS and not k.startswith("x-")]:
        value = node.pop(keyword)
        if _GOVERNORS.get(keyword, keyword) not in {*node, keyword}:
            continue
        if not any(value == idle and type(value) is type(idle) for idle in _IDLE.get(keyword, ())):
            yield f"{keyword!r} at {place.path or '/'}"


def _checked(place: _Place) -> None:
    """Refuse patterns that take too much, and draw in bounds that llguidance's 64-bit numbers do not hold."""
    if place.node.get("type") == []:
        raise GrammarError(f"an empty type at {place.path or '/'}")
    for keyword in _BOUNDS:
        value: Any = place.node.get(keyword)
        if type(value) in (int, float) and (abs(value) >= _MAX_BOUND or int(float(value)) != value == int(value)):
            inward = -math.inf if "max" in keyword.lower() else math.inf
            held = min(max(value, -_MAX_BOUND), _MAX_BOUND)
            nearest = float(held)
            beyond = nearest > held if inward < 0 else nearest < held
            place.node[keyword] = int(math.nextafter(nearest, inward) if beyond else nearest)
    named = place.node.get("patternProperties")
    for pattern in (place.node.get("pattern"), *(named if isinstance(named, dict) else ())):
        if isinstance(pattern, str):
            try:
                check_regex(pattern)
            except GrammarError as e:
                raise GrammarError(f"the pattern at {place.path or '/'} has {e}") from None


def _close(node: Node) -> None:
    """Say what a schema that says nothing else is taken for: no properties or items but those named, a type."""
    if any(k in node for k in (*_APPLIED, _REFERENCE, "const", "enum")):
        return
    named = node.get("properties")
    if isinstance(named, dict) and "additionalProperties" not in node and "minProperties" not in node:
        required = node.get("required")
        if not isinstance(required, list) or all(isinstance(k, str) and k in named for k in required):
            node["additionalProperties"] = False
    if "prefixItems" in node and "items" not in node and not node.get("minItems", 0) > len(node["prefixItems"]):
        node["items"] = False
    types = [t for t, keywords in _HELD.items() if any(k in node for k in keywords)]
    if types and "type" not in node:
        node["type"] = types
