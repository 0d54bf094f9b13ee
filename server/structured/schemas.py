"""JSON schemas in words that llama-cpp-python's converter to GBNF follows; what it would leave out is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ropebend.errors import RopebendError
from ropebend.server.structured.ranges import Bounds

#: Keywords that demand nothing of a value; those that begin with x- do not either.
_ANNOTATIONS = frozenset(["$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "title", "description"])
_ANNOTATIONS |= {"default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}

#: Keywords that stand alone in the converter: whatever is beside them is left out.
_ALONE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")

#: Keywords that bound a number, which `grammars` follows by itself.
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")

#: They are smaller than this: 64 bits, as languages with types write them, and no grammars without end.
_MAX_BOUND = 10**20

#: What else the converter follows, by the type it is about.
_KEYWORDS: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": _BOUNDS,
    "integer": _BOUNDS,
    "boolean": (),
    "null": (),
}

#: The parts of a pattern that matter here: an escaped character, a class, or any other character.
_PATTERN_PART = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)

#: Characters that stand in a JSON string only escaped; the same in a class of GBNF.
_ESCAPED = frozenset('"\\') | {chr(i) for i in range(32)}
ESCAPED_CLASS = r'"\\\x00-\x1F'

#: Escapes of regular expressions in words that the converter knows.  A blank is the only \s that JSON writes as it is.
_IN_CLASS = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}
# As classes, because the converter lets a ? after \( be about all that stands before it.
_PLAIN_ESCAPES = {f"\\{c}": f"[{c}]" for c in ".-/(){}|*+?"} | {r"\[": r"[\[]", r"\]": r"[\]]"}
_PLAIN_ESCAPES |= {f"\\{k}": f"[{v}]" for k, v in _IN_CLASS.items()}
_PLAIN_ESCAPES |= {f"\\{k.upper()}": f"[^{ESCAPED_CLASS}{v}]" for k, v in _IN_CLASS.items()}

_FORMATS = ("date", "time", "date-time", "uuid")


def followed(schema: Any) -> dict[str, Any]:
    """The outermost level of `schema` with nothing in it that the converter leaves out.

    What follows the result follows `schema`, not the other way round: objects have no properties but those named, and
    where no type is said, the value is of one that a keyword is about.  RopebendError if the schema says more.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise _unsupported(repr(schema))
    s = {k: v for k, v in schema.items() if k not in _ANNOTATIONS and not k.startswith("x-")}
    if s.get("uniqueItems") is False:
        del s["uniqueItems"]
    alone = next((k for k in _ALONE if k in s), None)
    return _typed(s) if alone is None else _alone(alone, s)


def _unsupported(what: str) -> RopebendError:
    return RopebendError(f"the JSON schema cannot be used: {what} is not supported")


def _alone(keyword: str, s: dict[str, Any]) -> dict[str, Any]:
    value = s[keyword]
    beside = [k for k in s if k != keyword and not (k == "type" and keyword in ("const", "enum"))]
    if beside:
        raise _unsupported(f"{beside[0]} beside {keyword}")
    if keyword in ("enum", "anyOf", "oneOf") and not value:
        raise _unsupported(f"an empty {keyword}")
    if keyword != "allOf":
        return {keyword: value}
    if len(value) > 1:
        raise _unsupported("allOf of several schemas")
    return followed(value[0])  # how a reference is given a description


def _typed(s: dict[str, Any]) -> dict[str, Any]:
    unknown = [k for k in s if k != "type" and not any(k in keywords for keywords in _KEYWORDS.values())]
    if unknown:
        raise _unsupported(unknown[0])
    types = s.get("type", [t for t, keywords in _KEYWORDS.items() if any(k in s for k in keywords)])
    if not types and "type" not in s:
        return {"type": "value"}  # the converter's word for any JSON
    if isinstance(types, list) and len(types) != 1:
        if not types:
            raise _unsupported("an empty type")
        return {"anyOf": [{**s, "type": t} for t in dict.fromkeys(types)]}
    type_ = types[0] if isinstance(types, list) else types
    if type_ not in _KEYWORDS:
        raise _unsupported(f"type {type_!r}")
    s = {k: s[k] for k in _KEYWORDS[type_] if k in s}
    checked = {"object": _object, "array": _array, "string": _string, "number": _number}.get(type_)
    return {"type": type_, **(checked(s) if checked is not None else s)}


def _object(s: dict[str, Any]) -> dict[str, Any]:
    unnamed = set(s.get("required", ())) - set(s.get("properties", ()))
    if unnamed:
        raise _unsupported(f"required {min(unnamed)!r}, which is not among the properties,")
    return s


def _array(s: dict[str, Any]) -> dict[str, Any]:
    items, least, most = s.get("items", True), s.get("minItems", 0), s.get("maxItems")
    if most is not None and least > most:
        raise _unsupported(f"minItems {least} and maxItems {most}")
    tuple_ = items if isinstance(items, list) else s.get("prefixItems")
    if tuple_ is not None:
        if len(tuple_) < least or (most is not None and len(tuple_) > most):
            raise _unsupported(f"an array of {len(tuple_)} items with minItems {least} and maxItems {most}")
        return {"prefixItems": tuple_}
    if items is False:
        raise _unsupported("items: false")
    return {**s, "items": items or True}


def _string(s: dict[str, Any]) -> dict[str, Any]:
    if len(s) > 1 and s.keys() != {"minLength", "maxLength"}:
        raise _unsupported(" beside ".join(s))
    if s.get("format", _FORMATS[0]) not in _FORMATS:
        raise _unsupported(f"format {s['format']!r}")
    if s.get("minLength", 0) > s.get("maxLength", float("inf")):
        raise _unsupported(f"minLength {s['minLength']} and maxLength {s['maxLength']}")
    return {"pattern": _plain_pattern(s["pattern"])} if "pattern" in s else s


def _number(s: dict[str, Any]) -> dict[str, Any]:
    fractional = next((k for k, v in s.items() if isinstance(v, float) and not v.is_integer()), None)
    if fractional is not None:
        raise _unsupported(f"{fractional} {s[fractional]}, not a whole number,")
    return s


def bounds(s: dict[str, Any]) -> Bounds | None:
    """The bounds of a number or an integer, None if it has none.  RopebendError if they cannot be used."""
    given = {k: s[k] for k in _BOUNDS if k in s}
    for k, v in given.items():
        if isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) < _MAX_BOUND:
            raise _unsupported(f"{k} {json.dumps(v)}")
    # more than 0.5 of an integer is 1 or more; of two bounds the narrower one counts
    lows = [(math.ceil(v), k == "exclusiveMinimum" and v == math.ceil(v)) for k, v in given.items() if k in _BOUNDS[:2]]
    highs = [(math.floor(v), k == "maximum" or v != math.floor(v)) for k, v in given.items() if k in _BOUNDS[2:]]
    (low, beyond_low), (high, reaches_high) = max(lows, default=(None, False)), min(highs, default=(None, True))
    return Bounds(low, high, beyond_low, not reaches_high) if given else None


def _plain_pattern(pattern: str) -> str:
    """The pattern in words that the converter knows, without what would end the JSON string or need an escape in it.

    The converter takes a pattern as the text between the quotes, so such characters must be refused; so are those that
    it would take for others than they are.
    """
    if not (pattern.startswith("^") and pattern.endswith("$") and not pattern.endswith(r"\$")):
        raise _unsupported("a pattern that does not begin with ^ and end with $")
    parts: list[str] = []
    for part in _PATTERN_PART.findall(pattern[1:-1]):
        parts.append(part)
        if parts[-3:] == ["(", "?", ":"]:  # a group all the same
            del parts[-2:]
    for i, part in enumerate(parts):
        plain = _plain_class(part) if part[0] == "[" else _PLAIN_ESCAPES.get(part, part)
        if (
            plain[0] == "\\"
            or (plain in ("^", "$") or (plain == "?" and i and parts[i - 1] == "("))
            or plain in _ESCAPED
            or (plain[0] == "[" and any(re.match(plain, c) for c in _ESCAPED))
        ):
            raise _unsupported(f"{part} in a pattern")
        parts[i] = plain
    # in parentheses, so that the quotes stand around all of the alternatives
    return f"^({''.join(parts)})$" if "|" in parts else f"^{''.join(parts)}$"


def _plain_class(part: str) -> str:
    """A class of characters without escapes that GBNF does not know; what is no class of it stays as it is."""
    inner = re.sub(r"\\([dws./])", lambda m: _IN_CLASS.get(m[1], m[1]), part[1:-1])
    if r"\-" in inner:
        inner = inner.replace(r"\-", "") + "-"
    if inner.startswith("^") and len(inner) > 1:
        return f"[^{ESCAPED_CLASS}{inner[1:]}]"
    return f"[{inner}]"
