"""The parser of tool calls: every way to write one, and what only looks like one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropebend.server.chat.tool_calls import Call, ToolStream, parse


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]',
        '<|python_tag|>{"name": "f", "parameters": {"x": 1}}',
        ' {"name": "f", "parameters": {"x": 1}}',
    ],
)
@given(cuts=st.lists(st.integers(0, 70), max_size=5))
def test_every_way_to_write_a_call_is_read_however_it_is_cut(text: str, cuts: list[int]) -> None:
    stream, out, at = ToolStream({"f"}), "", 0
    for cut in [*sorted(cuts), len(text)]:
        out += stream.feed(text[at:cut])
        at = max(at, cut)
    rest, calls = stream.finish()
    assert (out + rest).strip() == ""
    assert calls == [Call("f", '{"x": 1}')]


@given(st.text(st.sampled_from("<tol_ca>{}[]x \n"), max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_text_that_is_no_call_comes_out_as_it_is(text: str, cuts: list[int]) -> None:
    stream, out, at = ToolStream({"f"}), "", 0
    for cut in [*sorted(cuts), len(text)]:
        out += stream.feed(text[at:cut])
        at = max(at, cut)
    rest, calls = stream.finish()
    assert out + rest == text
    assert calls == []


def test_text_before_a_call_and_several_calls() -> None:
    stream = ToolStream({"f", "g"})
    said = stream.feed('I look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    said += stream.feed('<tool_call>{"name": "g", "arguments": "{}"}</tool_call>')
    assert said == "I look.\n"
    assert stream.finish() == ("", [Call("f", "{}"), Call("g", "{}")])


@pytest.mark.parametrize("text", ['{"name": "h", "arguments": {}}', '{"name": "f"', "{} {}", "[1]", "[" * 100_000])
def test_what_only_looks_like_a_call(text: str) -> None:
    assert parse(text, {"f"}) == (text, [])


@pytest.mark.parametrize("text", ['{"x": 1e400, "y": 0.10000000000000000001}', '{"a" :{"b":[ 1,2 ]}}', "{}"])
@pytest.mark.parametrize("call", ['{"name": "f", "arguments": %s}', '[{"parameters":%s , "name":"f"}]'])
def test_arguments_are_as_the_model_wrote_them(text: str, call: str) -> None:
    assert parse(call % text, {"f"}) == ("", [Call("f", text)])
    assert parse(call % json.dumps(text), {"f"}) == ("", [Call("f", text)])


def test_no_arguments_are_an_empty_object() -> None:
    for text in ('{"name": "f"}', '{"name": "f", "parameters": null}'):
        assert parse(text, {"f"}) == ("", [Call("f", "{}")])


@pytest.mark.parametrize("arguments", ["1", "[]", '"not json"', '"[1]"', "NaN", '{"x": Infinity}', '{"x": 1'])
def test_what_is_no_object_is_no_arguments(arguments: str) -> None:
    text = f'{{"name": "f", "arguments": {arguments}}}'
    assert parse(text, ("f",)) == (text, [])


def test_a_name_that_is_no_text_is_no_call() -> None:
    for name in ("[]", "{}", "5", "null"):
        text = f'{{"name": {name}, "arguments": {{}}}}'
        assert parse(text, {"f"}) == (text, [])


def test_text_after_a_call_is_kept() -> None:
    call = '{"name": "f", "arguments": {}}'
    stream = ToolStream({"f"})
    assert stream.feed(f"First.<tool_call>{call}</tool_call> Done.") == "First."
    assert stream.finish() == (" Done.", [Call("f", "{}")])
    cut = f"<tool_call>{call}</tool_call>\n<tool_call>{call[:20]}"
    assert parse(cut, {"f"}) == (f"\n<tool_call>{call[:20]}", [Call("f", "{}")])
    assert parse(f"{call} Done.", {"f"}) == (f"{call} Done.", [])  # JSON in an answer
