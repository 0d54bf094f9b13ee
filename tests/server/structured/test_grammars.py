"""Grammars from JSON schemas: what they let llama.cpp write, and which schemas are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.server.engine.sampling import Sampler, Sampling
from ropebend.server.structured import grammars, ranges
from ropebend.server.structured.ranges import Bounds

from ..conftest import END, TOKEN


def test_a_tool_without_parameters_gets_none() -> None:
    for schema in (None, {}):
        assert '"{"' in grammars.tool_calls([("f", schema)], ("", ""), several=False)
        assert "value" not in grammars.tool_calls([("f", schema)], ("", ""), several=False)


Accepts = Callable[[str, str], bool]


@pytest.fixture(scope="module")
def accepts(models: dict[str, Path]) -> Iterator[Accepts]:
    """Whether llama.cpp, held to a grammar, may write exactly this text."""
    with Model(models["plain"]) as model:

        def run(grammar: str, text: str) -> bool:
            sampler = Sampler(Sampling(grammar=grammar), model.vocab)
            try:
                for token in [*model.tokenize(text), TOKEN[END.encode()]]:
                    if not sampler._allows(token):
                        return False
                    lib.llama_sampler_accept(sampler._grammar, token)
                return True
            finally:
                sampler.close()

        yield run


def with_definition(definition: dict[str, Any]) -> dict[str, Any]:
    """As pydantic writes a model in a model."""
    return {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}, "P": {"type": "object", "properties": {}}},
        "required": ["p"],
        "$defs": {"P": definition},
    }


def test_a_reference_is_to_the_schema_it_stands_in(accepts: Accepts) -> None:
    schemas = [with_definition({"type": t}) for t in ("integer", "boolean")]
    one = grammars.from_schema(schemas[0])
    assert accepts(one, '{"p": 5}')
    assert not accepts(one, '{"p": {}}')  # that is what the property called P may be
    calls = grammars.tool_calls(list(zip("fg", schemas, strict=True)), ("", ""), several=False)
    for name, value, right in (("f", "5", True), ("g", "true", True), ("f", "true", False), ("g", "5", False)):
        assert accepts(calls, f'{{"name": "{name}", "arguments": {{"p": {value}}}}}') is right


def test_a_schema_may_refer_to_itself(accepts: Accepts) -> None:
    tree = {"$ref": "#/$defs/T", "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}}}
    grammar = grammars.from_schema(tree)
    assert accepts(grammar, "[[], [[]]]")
    assert not accepts(grammar, "[1]")
    whole = {"properties": {"a~/": {"type": "null"}, "b": {"$ref": "#"}, "c": {"$ref": "#/properties/a~0~1"}}}
    calls = grammars.tool_calls([("f", whole)], ("", ""), several=False)
    assert accepts(calls, '{"name": "f", "arguments": {"b": {"c": null}}}')
    assert not accepts(calls, '{"name": "f", "arguments": {"b": {"c": 1}}}')


BOUND = st.none() | st.integers(-1200, 1200) | st.integers(-3, 3)


@settings(max_examples=300, deadline=None)
@given(st.builds(Bounds, BOUND, BOUND, st.booleans(), st.booleans()), st.data())
def test_ranges_are_exactly_the_numbers_within_the_bounds(b: Bounds, data: st.DataObject) -> None:
    def within(x: float) -> bool:
        above = b.low is None or (x > b.low if b.beyond_low else x >= b.low)
        return above and (b.high is None or (x < b.high if b.below_high else x <= b.high))

    near = [n + i for n in (b.low, b.high, 0) if n is not None for i in (-1, 0, 1)]
    for n in [*near, *data.draw(st.lists(st.integers(-1500, 1500), max_size=20))]:
        assert matches(ranges.integers(b), str(n)) is within(n)
        for text in (str(n), f"{n}.0", f"{n}.000", f"{n}.01", f"{n}.5", "0.25", "-0.25"):
            assert matches(ranges.numbers(b), text) is within(float(text)), text


def matches(gbnf: str, text: str) -> bool:
    """Whether a regular expression of the same alternatives matches; there are only literals, classes and counts."""
    literal = re.compile(r'"([^"]*)"')
    pattern = literal.sub(lambda m: f"(?:{re.escape(m[1])})", gbnf).replace(" ", "")
    return bool(gbnf) and re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer", "minimum": 100, "maximum": 120}, ["100", "120"], ["99", "121", "1e2", "110.0"]),
        ({"type": "integer", "exclusiveMinimum": -2.5, "maximum": 9.5}, ["-2", "0", "9"], ["-3", "10"]),
        ({"type": "integer", "minimum": 5, "exclusiveMinimum": 5}, ["6", "1234567890123456"], ["5", "-6"]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, ["0", str(2**64 - 1)], [str(2**64), "-1"]),
        ({"type": "integer", "minimum": -(2**63)}, [str(-(2**63)), "9" * 16], [str(-(2**63) - 1)]),
        ({"type": "number", "minimum": 0.0, "maximum": 1}, ["0", "0.75", "1.0"], ["1.01", "-0.5", "2"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.001", "12.5"], ["0", "0.0"]),
        ({"minimum": 3}, ["3", "3.5"], ["2", '"3"']),
        ({"type": ["integer", "null"], "minimum": 1}, ["1", "null"], ["0"]),
        ({"type": "array", "items": {"type": "integer", "maximum": -1}}, ["[-1, -20]"], ["[0]"]),
    ],
    ids=str,
)
def test_bounds_of_numbers_hold(accepts: Accepts, schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    grammar = grammars.from_schema(schema)
    assert [accepts(grammar, text) for text in (*right, *wrong)] == [True] * len(right) + [False] * len(wrong)


def test_many_fields_of_the_same_bounds_take_one_rule(accepts: Accepts) -> None:
    bounded = {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1}  # what zod writes for every integer
    properties: dict[str, Any] = {f"f{i}": bounded for i in range(100)}
    schema = {"type": "object", "properties": {"a": bounded, "b": {"$ref": "#/$defs/B"}, **properties}}
    grammar = grammars.from_schema({**schema, "required": ["a", "b"], "$defs": {"B": bounded}})
    assert len(grammar) < 20_000
    assert accepts(grammar, f'{{"a": {2**53 - 1}, "b": {-(2**53) + 1}, "f99": 0}}')
    assert not accepts(grammar, f'{{"a": {2**53}')
    assert not accepts(grammar, f'{{"a": 0, "b": {2**53}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "value"},
        {"type": []},
        {"$ref": "https://x.invalid/a"},
        {"$ref": "#/no"},
        {"$ref": "#no"},
        {"properties": 5},
        # what the converter would not follow
        {"type": "integer", "minimum": 120, "maximum": 100},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
        {"type": "integer", "minimum": 0, "exclusiveMinimum": True},  # an older draft
        {"type": "integer", "minimum": "0"},
        {"type": "integer", "maximum": 10**20},
        {"type": "number", "minimum": float("-inf")},
        {"type": "number", "maximum": 0.5},
        {"type": "integer", "multipleOf": 7},
        {"type": "array", "items": {}, "uniqueItems": True},
        {"type": "array", "contains": {"type": "integer"}},
        {"type": "object", "minProperties": 2},
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}},
        {"type": "object", "required": ["a"]},
        {"type": "object", "if": {}, "then": {"required": ["a"]}},
        {"not": {"type": "string"}},
        {"type": "string", "format": "email"},
        {"type": "string", "pattern": "^a$", "minLength": 3},
        {"type": "string", "pattern": "^[ -~]$"},  # holds " and \\, which JSON writes in another way
        {"type": "string", "pattern": '^"$'},
        {"type": "string", "pattern": r"^\\$"},
        {"type": "string", "pattern": "a"},
        {"type": "string", "pattern": "^a$|^b$"},
        {"type": "string", "pattern": "^(?!a)b$"},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "array", "minItems": 3, "maxItems": 2},
        {"type": "array", "prefixItems": [{}], "minItems": 2},
        {"type": "array", "items": False},
        {"type": "object", "properties": {"a": False}},
        {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 1}}},
        {"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": {"type": "string"}}},
        {"anyOf": [{"type": "object"}], "required": ["a"]},
        {"anyOf": []},
        {"enum": []},
        {"allOf": [{"type": "object"}, {"type": "object"}]},
    ],
    ids=str,
)
def test_schemas_that_cannot_be_used(schema: dict[str, Any]) -> None:
    with pytest.raises(RopebendError, match="the JSON schema cannot be used"):
        grammars.from_schema(schema)


def test_the_error_says_where_in_the_schema() -> None:
    schema = {"properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"properties": {"age": {"multipleOf": 2}}}}}
    with pytest.raises(RopebendError, match=r"multipleOf is not supported \(in ref-0-P-age\)"):
        grammars.from_schema(schema)
    with pytest.raises(RopebendError, match=r"minimum null is not supported \(in answer-age\)"):
        grammars.from_schema({"properties": {"age": {"type": "integer", "minimum": None}}})


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({}, ["1", '"a"', "null", '[{"a": 1}]'], ["a"]),
        ({"title": "Any", "x-order": 1}, ["1"], []),
        ({"type": ["string", "null"], "enum": ["a", None]}, ['"a"', "null"], ['"b"']),
        ({"type": ["string", "null"], "maxLength": 1}, ['"a"', "null"], ['"ab"', "1"]),
        ({"type": ["object"], "properties": {"a": {}}}, ['{"a": [2]}'], ['{"b": 1}']),
        ({"minLength": 2}, ['"ab"', r'"a\n"'], ['"a"', "1", '"a\n"']),
        ({"type": "string", "format": "date"}, ['"2026-11-24"'], ['"a"']),
        ({"type": "array"}, ["[]", '[1, "a"]'], ["1"]),
        ({"type": "array", "maxItems": 1, "uniqueItems": False}, ["[]", "[1]"], ["[1, 1]"]),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "items": False, "minItems": 1, "maxItems": 1},
            ["[null]"],
            ["[]", "[1]"],
        ),
        ({"allOf": [{"type": "boolean"}], "description": "d"}, ["true"], ["1"]),
        ({"properties": {}, "additionalProperties": True}, ['{"a": 1}', "{}"], ["1"]),
        *(({"const": c}, [json.dumps(c, ensure_ascii=False)], []) for c in ("a\\b", "a\nb", 'a"b', "né", "😀")),
        ({"properties": {"\\": {}}, "required": ["\\"]}, [r'{"\\": 1}'], [r'{"\": 1}']),
        ({"pattern": "^.[^a]$"}, ['"né"'], ['"na"', '"""', r'"n\"', '"n\t"']),
        ({"pattern": r"^[a-c]{2}\((x|y)\)?$"}, ['"ab(x"', '"ca(y)"'], ['"dd(x"']),
        ({"pattern": "^(open)|(closed)$"}, ['"open"', '"closed"'], ['"open', 'closed"', '"openclosed"']),
        ({"pattern": "^a(?:b|c)?$"}, ['"a"', '"ac"'], ['"abc"', '"a:b"']),
        ({"pattern": r"^a\(?:b$"}, ['"a(:b"', '"a:b"'], ['"ab"']),
        ({"pattern": r"^\d+\.\d{2}$"}, ['"12.50"'], ['"12x50"', '"1.5"']),
        ({"pattern": r"^[\w.\-/]+\-\/\s$"}, ['"a_1.-/-/ "'], ['"a b-/ "', '"é-/ "']),
        ({"pattern": r"^\D[^\d]\S\W$"}, ['"éab "'], ['"1ab "', '"a1b "', '"ab  "', '"abca"', r'"ab\n "']),
        ({"properties": {"": {"type": "null"}}, "required": [""]}, ['{"": null}'], ["null"]),
    ],
    ids=str,
)
def test_what_a_schema_allows(accepts: Accepts, schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    grammar = grammars.from_schema(schema)
    assert [text for text in right if not accepts(grammar, text)] == []
    assert [text for text in wrong if accepts(grammar, text)] == []


def test_hermes_calls_may_follow_each_other() -> None:
    grammar = grammars.tool_calls([("f", None), ("g", None)], ("<tool_call>\n", "\n</tool_call>"), several=True)
    assert grammar.splitlines()[0] == (
        r'root ::= "<tool_call>\n" call "\n</tool_call>" ("\n" "<tool_call>\n" call "\n</tool_call>")*'
    )
