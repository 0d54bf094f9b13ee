"""What a model may write that is held to a schema or a grammar, and which of them are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.model import Model
from ropebend.server.chat.demanded import Function, calls
from ropebend.server.chat.formats import FORMATS, GENERIC
from ropebend.server.structured.constraints import Compiler
from ropebend.server.structured.parts import (
    Choice,
    Grammar,
    GrammarError,
    Json,
    Part,
    Regex,
    Seq,
    Several,
    Text,
    Until,
)
from ropebend.server.structured.tokens import tokenizer_of

from ..conftest import END, TOKEN


def forced_calls(functions: list[tuple[str, Any, bool]]) -> Part:
    """One call of one of these functions, where nothing is known of how the model writes calls."""
    return calls(GENERIC.layout, [Function(*f) for f in functions], several=False)


Accepts = Callable[[Part | Grammar, str], bool]


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Iterator[Model]:
    with Model(models["plain"]) as model:
        yield model


@pytest.fixture(scope="module")
def compiler(model: Model) -> Iterator[Compiler]:
    tokenizer = tokenizer_of(model.vocab)
    assert tokenizer is not None
    compiler = Compiler(tokenizer)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def accepts(model: Model, compiler: Compiler) -> Accepts:
    """Whether a model, held to this, may write exactly this text."""

    def run(part: Part | Grammar, text: str) -> bool:
        walk = compiler.compile(part).begin()
        for token in model.tokenize(text, add_special=False):
            in_mask = token in walk.allowed(model.n_vocab)
            if not walk.allows(token):
                assert not in_mask
                return False
            walk.accept(token)
        return walk.ended or walk.allows(TOKEN[END.encode()])

    return run


# ---- JSON schemas


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
    assert accepts(Json(schemas[0]), '{"p": 5}')
    assert not accepts(Json(schemas[0]), '{"p": {}}')  # that is what the property called P may be
    forced = forced_calls([(name, schema, True) for name, schema in zip("fg", schemas, strict=True)])
    for name, value, right in (("f", "5", True), ("g", "true", True), ("f", "true", False), ("g", "5", False)):
        assert accepts(forced, f'{{"name": "{name}", "arguments": {{"p": {value}}}}}') is right


def test_a_schema_may_refer_to_itself(accepts: Accepts) -> None:
    tree = Json({"$ref": "#/$defs/T", "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}}})
    assert accepts(tree, "[[], [[]]]")
    assert not accepts(tree, "[1]")
    whole = {"properties": {"a~/": {"type": "null"}, "b": {"$ref": "#"}, "c": {"$ref": "#/properties/a~0~1"}}}
    forced = forced_calls([("f", whole, True)])
    assert accepts(forced, '{"name": "f", "arguments": {"b": {"c": null}}}')
    assert not accepts(forced, '{"name": "f", "arguments": {"b": {"c": 1}}}')


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer", "minimum": 100, "maximum": 120}, ["100", "120"], ["99", "121", "1e2", "110.5"]),
        ({"type": "integer", "exclusiveMinimum": -2.5, "maximum": 9.5}, ["-2", "0", "9"], ["-3", "10"]),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, ["1"], ["0", "-1"]),  # an older draft
        ({"type": "integer", "minimum": 5, "exclusiveMinimum": 5}, ["6", "1234567890123456"], ["5", "-6"]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, ["0", str(2**62)], [str(2**64), "-1"]),
        ({"type": "integer", "minimum": -(2**63)}, [str(-(2**62)), "9" * 16], [str(-(2**63) - 1)]),
        ({"type": "integer", "maximum": 2**53 + 1}, [str(2**53)], [str(2**53 + 2)]),
        ({"type": "number", "minimum": 0.0, "maximum": 1}, ["0", "0.75", "1.0"], ["1.01", "-0.5", "2"]),
        ({"type": "number", "minimum": 0.5, "maximum": 1.25}, ["0.5", "1", "1.25"], ["0.49", "1.26", "2"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.001", "12.5"], ["0", "0.0"]),
        ({"minimum": 3}, ["3", "3.5"], ["2", '"3"']),
        ({"type": ["integer", "null"], "minimum": 1}, ["1", "null"], ["0"]),
        ({"type": "array", "items": {"type": "integer", "maximum": -1}}, ["[-1, -20]"], ["[0]"]),
        ({"type": "integer", "multipleOf": 7}, ["0", "7", "49"], ["8", "50"]),
        ({"type": "number", "multipleOf": 0.01}, ["9.25", "3"], ["9.255"]),
        ({"enum": [1, 5, 9], "minimum": 4}, ["5", "9"], ["1", "4"]),
    ],
    ids=str,
)
def test_bounds_of_numbers_hold(accepts: Accepts, schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert [accepts(Json(schema), x) for x in (*right, *wrong)] == [True] * len(right) + [False] * len(wrong)


BOUND = st.none() | st.integers(-1200, 1200) | st.integers(-3, 3) | st.integers(-40, 40).map(lambda n: n / 4)


@settings(max_examples=60, deadline=None)
@given(BOUND, BOUND, st.booleans(), st.booleans(), st.lists(st.integers(-5000, 5000), max_size=10))
def test_bounds_are_exact(
    accepts: Accepts,
    low: float | None,
    high: float | None,
    beyond_low: bool,
    below_high: bool,
    more: list[int],
) -> None:
    def within(x: float) -> bool:
        above = low is None or (x > low if beyond_low else x >= low)
        return above and (high is None or (x < high if below_high else x <= high))

    bounds = {("exclusiveMinimum" if beyond_low else "minimum"): low}
    bounds |= {("exclusiveMaximum" if below_high else "maximum"): high}
    schema = {"type": "number", **{k: v for k, v in bounds.items() if v is not None}}
    near = [n + i for n in (low, high, 0) if n is not None for i in (-1, -0.25, 0, 0.25, 1)]
    numbers = [*near, *(n / 4 for n in more)]
    if not any(map(within, numbers)):
        return  # there may be none at all, which is an error
    for x in numbers:
        assert accepts(Json(schema), f"{x:g}") is within(x), (schema, x)
        if x == int(x):
            assert accepts(Json(schema), str(int(x))) is within(x), (schema, x)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({}, ["1", '"a"', "null", '[{"a": 1}]'], ["a"]),
        ({"title": "Any", "x-order": 1}, ["1"], []),
        ({"type": ["string", "null"], "enum": ["a", None]}, ['"a"', "null"], ['"b"']),
        ({"type": ["string", "null"], "maxLength": 1}, ['"a"', "null"], ['"ab"', "1"]),
        ({"type": ["object"], "properties": {"a": {}}}, ['{"a": [2]}'], ['{"b": 1}']),
        ({"minLength": 2}, ['"ab"', r'"a\n"'], ['"a"', "1", '"a\n"']),
        ({"type": "string", "maxLength": 2000}, [f'"{"a" * 2000}"', '""'], [f'"{"a" * 2001}"']),
        ({"type": "string", "format": "date"}, ['"2026-11-24"'], ['"a"']),
        ({"type": "string", "format": "email"}, ['"a@b.example"'], ['"a"']),
        ({"type": "array"}, ["[]", '[1, "a"]'], ["1"]),
        ({"type": "array", "maxItems": 1, "uniqueItems": False}, ["[]", "[1]"], ["[1, 1]"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 1500}, ["[1, 2]"], ['["a"]']),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "items": False, "minItems": 1, "maxItems": 1},
            ["[null]"],
            ["[]", "[1]"],
        ),
        ({"prefixItems": [{"type": "null"}, {}]}, ['[null, "a"]'], ["[1]", "[null, 1, 2]"]),
        ({"allOf": [{"type": "boolean"}], "description": "d"}, ["true"], ["1"]),
        (
            {"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}], "type": "object"},
            ['{"a": 1, "b": 2}'],
            ['{"b": 2}'],
        ),
        ({"properties": {}, "additionalProperties": True}, ['{"a": 1}', "{}"], ["1"]),
        (
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
            ['{"a": 1}', '{"a": 1, "b": "x"}', '{"b": "x"}'],
            ['{"a": 1, "a": "x"}', '{"a": "x"}', '{"a": 1, "b": 1}'],
        ),
        (
            {"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
            ['{"x1": 1}'],
            ['{"y": 1}'],
        ),
        ({"required": ["a"]}, ['{"a": 1}', '{"a": 1, "b": 2}'], ["{}"]),
        ({"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": {"type": "string"}}}, ['"a"'], ['""']),
        ({"$ref": "#/$defs/x/1/a%20b", "$defs": {"x": [{}, {"a b": {"type": "null"}}]}}, ["null"], ["1"]),
        ({"$ref": "#/$defs/c~1d~0e", "$defs": {"c/d~e": {"type": "null"}}}, ["null"], ["1"]),
        ({"$ref": "#/anyOf/1", "anyOf": [{}, {"type": "null"}]}, ["null"], ["1"]),
        ({"$ref": "#n", "$defs": {"a": {"$anchor": "n", "type": "null"}}}, ["null"], ["1"]),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"']),
        *(({"const": c}, [json.dumps(c, ensure_ascii=False)], []) for c in ("a\\b", "a\nb", 'a"b', "né", "😀")),
        ({"type": "string"}, [r'"\u00e9"', r'"\ud83d\ude00"'], [r'"\ud83d"', r'"\x41"']),
        ({"properties": {"\\": {}}, "required": ["\\"]}, [r'{"\\": 1}'], [r'{"\": 1}']),
        ({"pattern": "^.[^a]$"}, ['"né"', r'"n\""'], ['"na"', '"""', r'"n\"']),
        ({"pattern": "b+?a"}, ['"xbbax"'], ['"bb"']),  # anywhere in the text
        ({"pattern": "^a+?b$"}, ['"aab"'], ['"aa"', '"aabb"']),
        ({"pattern": r"^[a-c]{2}\((x|y)\)?$"}, ['"ab(x"', '"ca(y)"'], ['"dd(x"']),
        ({"pattern": "^(open)|(closed)$"}, ['"open"', '"closed"'], ['"open', 'closed"', '"x"']),
        ({"pattern": "^a(?:b|c)?$"}, ['"a"', '"ac"'], ['"abc"', '"a:b"']),
        ({"pattern": r"^a\(?:b$"}, ['"a(:b"', '"a:b"'], ['"ab"']),
        ({"pattern": r"^\d+\.\d{2}$"}, ['"12.50"'], ['"12x50"', '"1.5"']),
        ({"pattern": r"^[\w.\-/]+\-\/\s$"}, ['"a_1.-/-/ "'], ['"a b-/ "', '"é-/ "']),
        ({"pattern": r"^\D[^\d]\S\W$"}, ['"éab "'], ['"1ab "', '"a1b "', '"ab  "', '"abca"']),
        ({"properties": {"": {"type": "null"}}, "required": [""]}, ['{"": null}'], ["null"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_schema_allows(accepts: Accepts, schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts(Json(schema), text)] == []
    assert [text for text in wrong if accepts(Json(schema), text)] == []


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "nothing"}, "Invalid type: nothing, at /"),
        ({"type": []}, "type"),
        ({"$ref": "https://x.invalid/a"}, "at / is to another document"),
        ({"properties": {"p": {"$ref": "#/no"}}}, "at /properties/p points nowhere"),
        ({"$ref": "#no"}, "no"),
        ({"properties": 5}, "properties must be an object, at /"),
        ({"type": "integer", "minimum": 120, "maximum": 100}, "minimum"),
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}, ""),
        ({"properties": {"age": {"type": "integer", "minimum": "0"}}}, "'minimum', got \"0\", at /properties/age"),
        ({"properties": {"age": {"uniqueItems": True}}}, "'uniqueItems' at /properties/age"),
        ({"items": {"anyOf": [{}, {"contains": {"type": "integer"}}]}}, "'contains' at /items/anyOf/1"),
        ({"$ref": "#/$defs/P", "$defs": {"P": {"properties": {"a/b": {"nullable": True}}}}}, "/properties/a~1b"),
        ({"type": "object", "if": {}, "then": {"required": ["a"]}}, "'if' at /"),
        ({"not": {"type": "string"}}, "'not' at /"),
        ({"minLenght": 3}, "'minLenght' at /"),
        ({"items": {"type": "string", "format": "stamp"}}, "stamp, at /items"),
        ({"properties": {"a": {"pattern": "^(?!a)b$"}}}, "look-around, .*, at /properties/a"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems"),
        ({"anyOf": []}, "anyOf is empty"),
        ({"enum": []}, "empty"),
        ({"properties": {"a": {"const": "a\0"}}}, "NUL"),
        ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, "use anyOf"),
        ({"$ref": "#"}, "no text can follow it"),
        (False, ""),
    ],
    ids=lambda value: str(value)[:60],
)
def test_schemas_that_cannot_be_used(compiler: Compiler, schema: Any, why: str) -> None:
    with pytest.raises(GrammarError, match=f"cannot be used: .*{why}"):
        compiler.compile(Json(schema))


def test_errors_name_the_tool(compiler: Compiler) -> None:
    functions = [("f", {"properties": {}}, True), ("g", {"properties": {"age": {"uniqueItems": True}}}, True)]
    with pytest.raises(GrammarError, match=r"schema of the tool 'g' cannot be used: 'uniqueItems' at /properties/age"):
        compiler.compile(forced_calls(functions))
    functions[1] = ("g", {"properties": {"age": {"type": "nothing"}}}, True)
    with pytest.raises(GrammarError, match=r"schema of the tool 'g' cannot be used: .*nothing, at /properties/age"):
        compiler.compile(forced_calls(functions))


def test_what_is_not_strict_is_left_out_and_said(compiler: Compiler, accepts: Accepts) -> None:
    loose = Json(
        {"items": {"type": "integer"}, "uniqueItems": True, "contains": {"const": 1}},
        strict=False,
        owner="the tool 'f'",
    )
    assert accepts(loose, "[2, 2]")
    assert not accepts(loose, '["a"]')
    assert compiler.compile(loose).warnings == (
        "of the tool 'f': 'uniqueItems' at / is not supported and was left out",
        "of the tool 'f': 'contains' at / is not supported and was left out",
    )
    assert compiler.compile(Json({"format": "stamp", "type": "string"}, strict=False)).warnings


def test_blanks_in_json_come_to_an_end(accepts: Accepts) -> None:
    for blank, right in (("", True), (" ", True), ("\n    ", True), ("  ", False), ("\n\n\n", False)):
        assert accepts(Json({"type": "array"}), f"[{blank}1]") is right


# ---- calls, and other parts put together


def test_a_tool_without_parameters_gets_none(accepts: Accepts) -> None:
    for schema in (None, {}):
        forced = forced_calls([("f", schema, True)])
        assert accepts(forced, '{"name": "f", "arguments": {}}')
        assert not accepts(forced, '{"name": "f", "arguments": {"a": 1}}')


def test_hermes_calls_may_follow_each_other(accepts: Accepts) -> None:
    (hermes,) = (f for f in FORMATS if f.name == "hermes")
    forced = calls(hermes.layout, [Function("f", None), Function("fg", None)], several=True)
    one = '<tool_call>\n{"name": "fg", "arguments": {}}\n</tool_call>'
    assert accepts(forced, one)
    assert accepts(forced, f"{one}\n{one}")
    assert not accepts(forced, "")
    assert not accepts(forced, one + one)
    assert not accepts(forced, one.replace("fg", "g"))


def test_parts(accepts: Accepts) -> None:
    thought = Seq((Until("</think>"), Choice((Text("a"), Regex("b[/]+")))))
    for text, right in (("hm</think>a", True), ("</think>b//", True), ("a", False), ("</think></think>a", False)):
        assert accepts(thought, text) is right
    listed = Seq((Text("["), Several(Text("ab"), 0, 2, ","), Text("]")))
    for text, right in (("[]", True), ("[ab]", True), ("[ab,ab]", True), ("[ab,]", False), ("[ab,ab,ab]", False)):
        assert accepts(listed, text) is right


# ---- GBNF and Lark


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ('root ::= ("né" | "€"){3} "."', ["né€€."], ["né€.", "né€€"]),
        # what takes words, not characters, does not find these
        ('root ::= word "x"\nword ::= [a-z]+', ["abcx", "xx"], ["x", "abc"]),
        ('root ::= s "e"\ns ::= "" | "c" s | "ce" s', ["e", "cce", "cee"], ["cc"]),
        ('root ::= ("a" | "ab") ("b" | "bc")', ["ab", "abb", "abc", "abbc"], ["a", "ac"]),
        ('root ::= list # a comment with "quotes" (\nlist ::=\n  "[" ( "a"\n | list\n )* "]"', ["[]", "[a[a]]"], ["["]),
        ('root ::= "a"?  "b"* "c"{2} "d"{1,} "e"{0,1}\r\n', ["ccd", "abbccdde"], ["cd", "ccdee"]),
        ('root ::= "a"{2,3}?', ["", "aa", "aaa"], ["a", "aaaa"]),
        ("root ::= [^a-c&~] [&-~] [x-] [\\]\\[]", ["d&-]", "é~x["], ["a&-]", "d&y]"]),
        (r'root ::= "\x41\u00e9\U0001F600\t\\\"" [\x00-\x1F]', ['Aé😀\t\\"\n'], ['Aé😀\t\\"a']),
        ("root ::= . .", ["a\n", "é😀"], ["a"]),
        ("root ::= " + "(" * 900 + '"a"' + ")" * 900, ["a"], [""]),
        ('root ::= "a" | ', ["a", ""], ["b"]),
        ('%llguidance {}\nstart: /[a-z]+/ B\nB: "1"', ["abc1"], ["abc", "1"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_grammar_allows(accepts: Accepts, grammar: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts(Grammar(grammar), text)] == []
    assert [text for text in wrong if accepts(Grammar(grammar), text)] == []


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("root ::= (", r"line 1, column 10, .*a \( without \)"),
        ('root ::= "a" )', r"a \) without \("),
        ('root ::= "a', "line 1, column 10, .*expected"),
        ('root ::= "a"\n\nb = "c"', "line 3, column 3"),
        ('a ::= "b"', "no rule called root"),
        ("", "no rule called root"),
        ("root ::= b", "no rule called b"),
        ('root ::= * "a"', "nothing before it"),
        ("root ::= [z-a]", "backwards"),
        ("root ::= []", "without characters"),
        (r'root ::= "\q"', r"the escape \\q"),
        (r'root ::= "\ud800"', "no character"),
        ('root ::= "a"{3,2}', "more repetitions"),
        ('root ::= "a"{5000}', "at most 2000"),
        ("root ::= <nothing>", "no control token <nothing>"),
        ('root ::= "a\0"', "NUL"),
        ("%llguidance {}\nstart: b", 'unknown name: "b"'),
    ],
    ids=lambda value: str(value)[:60],
)
def test_grammars_that_cannot_be_used_say_why(compiler: Compiler, grammar: str, why: str) -> None:
    with pytest.raises(GrammarError, match=why):
        compiler.compile(Grammar(grammar))


def test_control_tokens_are_meant_by_their_names(model: Model, compiler: Compiler) -> None:
    user = next(name for name, _ in compiler.specials.items() if name != END)
    tokens = model.tokenize(user, add_special=False)
    assert len(tokens) == 1
    for part in (Text(f"a{user}b"), Grammar(f'root ::= "a{user}b"'), Grammar(f"root ::= [a] {user} [b]")):
        walk = compiler.compile(part).begin()
        for token in (*model.tokenize("a", add_special=False), *tokens, *model.tokenize("b", add_special=False)):
            assert walk.allows(token), part
            walk.accept(token)
        assert walk.ended


# ---- what is sent to do harm


def chain(n: int, link: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{n}": {"type": "integer"}}}


def deep(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "part",
    [
        Json(chain(5000, lambda ref: {"allOf": [ref]})),  # overflows llguidance's stack
        Json(deep(400)),
        Json(deep(5000)),
        Json({"required": [f"r{i}" for i in range(15_000)]}),
        Json({"pattern": "^((a{1000}){1000}){1000}$"}),  # 23 GB and minutes
        Json({"pattern": "(" * 50_000 + "a" + ")" * 50_000}),
        Json({"enum": ["x" * 300_000]}),
        Json({"type": "integer", "multipleOf": 999_999_937}),
        Json({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for i in range(8)]} for j in range(10)]}),
        Regex("(a{1000}){1000}"),
        Grammar("%llguidance {}\nstart: " + "(" * 100_000 + '"a"' + ")" * 100_000),
        Grammar("%llguidance {}\nstart: A\nA: B{1000}\nB: C{1000}\nC: /a{1000}/"),
        Grammar("root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(20_000)) + '\nr20000 ::= "a"'),
    ],
    ids=lambda part: repr(part)[:50],
)
def test_what_takes_too_much_is_refused(compiler: Compiler, accepts: Accepts, part: Part | Grammar) -> None:
    started = time.process_time()
    with pytest.raises(GrammarError):
        compiler.compile(part)
    assert time.process_time() - started < 5
    assert accepts(Json({"type": "integer"}), "1")  # and the next one is compiled


def test_schemas_that_branch_without_end_are_followed(accepts: Accepts) -> None:
    twice = chain(40, lambda ref: {"type": "object", "properties": {"x": ref, "y": ref}})
    assert accepts(Json(twice), '{"x": {"y": {}}}')
    assert not accepts(Json(twice), '{"x": 1}')
