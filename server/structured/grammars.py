"""GBNF grammars from JSON schemas, by llama-cpp-python's converter."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_cpp.llama_grammar import SchemaConverter

from ropebend.errors import RopebendError
from ropebend.server.structured.ranges import integers, numbers
from ropebend.server.structured.schemas import ESCAPED_CLASS, bounds, followed


class _Converter(SchemaConverter):  # type: ignore[misc] # llama_cpp has no types
    """The converter, which may take several schemas: a reference means the schema that it stands in."""

    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._rule_of_ref: dict[str, str] = {}
        self._rule_of_bounded: dict[str, str] = {}

    def visit(self, schema: Any, name: str) -> str:
        """The name of the rule for `schema`."""
        try:
            schema = followed(schema)
            bounded = _bounded(schema) if schema.get("type") in ("integer", "number") else None
        except RopebendError as e:
            raise RopebendError(f"{str(e)[:200]} (in {name[-100:]})") from None
        if bounded is not None:
            if bounded not in self._rule_of_bounded:  # many fields have the same bounds
                self._rule_of_bounded[bounded] = self._add_rule(name, f"({bounded}) space")
            return self._rule_of_bounded[bounded]
        return str(super().visit(schema, name))

    def _format_literal(self, literal: str) -> str:
        # literal: JSON in ASCII.  The converter's own forgets backslashes, and \ud83d is no character in GBNF.
        return json.dumps(json.dumps(json.loads(literal), ensure_ascii=False), ensure_ascii=False)

    def _add_rule(self, name: str, rule: str) -> str:
        # A character of a string, and what . in a pattern stands for: theirs let through what JSON writes escaped.
        if name == "char":
            rule = rule.replace(r'[^"\\]', f"[^{ESCAPED_CLASS}]")
        elif name == "dot":
            rule = f"[^{ESCAPED_CLASS}]"
        return str(super()._add_rule(name, rule))

    def document(self, schema: Any, name: str) -> Any:
        """A copy of `schema` for `visit`, with references that mean this document, not what it becomes a part of."""
        schema = copy.deepcopy(schema)

        def walk(node: Any) -> None:
            for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                walk(child)
            if isinstance(node, dict) and isinstance(ref := node.get("$ref"), str):
                node["$ref"] = name + ref
                self._refs[name + ref] = _target(schema, ref)

        walk(schema)
        return schema

    def _resolve_ref(self, ref: str) -> str:
        # The converter's own takes the last part of the path for the rule's name, whatever else is called that.
        if ref not in self._rule_of_ref:
            name = f"ref-{len(self._rule_of_ref)}-{ref.rpartition('/')[2]}"
            rule = self._rule_of_ref[ref] = self._add_rule(name, ref)  # named first: it may refer to itself
            self._rules[rule] = self.visit(self._refs[ref], rule)
        return self._rule_of_ref[ref]


def _bounded(schema: dict[str, Any]) -> str | None:
    """GBNF for an integer or number with bounds, None if it has none."""
    within = bounds(schema)
    if within is None:
        return None
    rule = (integers if schema["type"] == "integer" else numbers)(within)
    if not rule:
        raise RopebendError("the JSON schema cannot be used: there is no number within the bounds")
    return rule


def _target(schema: Any, ref: str) -> Any:
    first, *parts = ref.split("/")
    if first != "#":
        raise RopebendError(f"the JSON schema cannot be used: a reference like {ref!r} is not supported")
    for part in parts:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, dict) or part not in schema:
            raise RopebendError(f"the JSON schema cannot be used: {ref!r} points nowhere")
        schema = schema[part]
    return schema


@contextmanager
def _schema_errors() -> Iterator[None]:
    try:
        yield
    except RopebendError:
        raise
    except RecursionError:
        raise RopebendError("the JSON schema is nested too deeply") from None
    except Exception as e:  # the converter asserts, indexes and raises in its own ways
        raise RopebendError(f"the JSON schema cannot be used: {type(e).__name__}: {e}"[:300]) from None


def from_schema(schema: dict[str, Any]) -> str:
    """A grammar for JSON that follows `schema`.  RopebendError if the schema is wrong or uses what GBNF cannot say."""
    with _schema_errors():
        converter = _Converter()
        answer = converter.visit(converter.document(schema, ""), "answer")
        return f"root ::= {answer}\n{converter.format_grammar()}"


def any_object() -> str:
    """A grammar for any JSON object."""
    return from_schema({"type": "object"})


def tool_calls(functions: Sequence[tuple[str, dict[str, Any] | None]], tags: tuple[str, str], several: bool) -> str:
    """A grammar for calls ``{"name": …, "arguments": …}`` of these functions (name, schema of its arguments).

    tags: what stands before and after each call; several: more than one call may follow (needs tags).
    """
    with _schema_errors():
        converter = _Converter()
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": converter.document(schema or {"type": "object", "properties": {}}, str(i)),
                },
                "required": ["name", "arguments"],
            }
            for i, (name, schema) in enumerate(functions)
        ]
        call = converter.visit({"anyOf": calls}, "call")
        rules = converter.format_grammar()
    before, after = (json.dumps(tag) for tag in tags)
    root = f"root ::= {before} {call} {after}" if tags[0] else f"root ::= {call}"
    if several and tags[0]:
        root += f' ("\\n" {before} {call} {after})*'
    return f"{root}\n{rules}"
