"""Calls and thinking in what a model writes, in every format; cut anywhere.  Texts as the models' own templates and
llama.cpp's expectations have them."""

# ruff: noqa: E501 (tables)

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.server.chat.events import Answer, mistral_id, openai_id
from ropebend.server.chat.formats import FORMATS, GENERIC, Format, format_of
from ropebend.server.chat.marks import TOKENS, WAYS
from ropebend.server.chat.parser import ChatParser, Expected, opened_by, parse

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
FUNCTIONS: dict[str, Any] = {
    "weather": {"type": "object", "properties": {"city": STRING, "days": INTEGER}},
    "time": {"type": "object", "properties": {}},
    "edit": {"type": "object", "properties": {"path": STRING, "old": STRING, "new": STRING}},
    "todo": {"type": "object", "properties": {"items": {"type": "array"}, "on": {"type": "boolean"}}},
    "Calendar.add": {"type": "object", "properties": {"title": STRING, "tags": {}}},
    "loose": None,
    "union": {
        "$defs": {"S": STRING},
        "properties": {
            "either": {"type": ["string", "null"]},
            "one": {"oneOf": [{"type": "object"}, {"type": "string"}]},
            "ref": {"$ref": "#/$defs/S"},
            "unit": {"enum": ["c", "f"]},
        },
    },
}
ROWS = {f.name: f for f in FORMATS}
BERLIN = [("weather", {"city": "Berlin"})]
BOTH = [("weather", {"city": "Berlin", "days": 2}), ("time", {})]


def counted() -> Callable[[], str]:
    """Ids that two runs give alike."""
    numbers = itertools.count()
    return lambda: f"id{next(numbers)}"


def expected(format: Format = GENERIC, **more: Any) -> Expected:
    return Expected(format, FUNCTIONS, **more)


def cut(text: str, places: Sequence[int], expected: Expected) -> Answer:
    """The answer of a text that comes in pieces."""
    parser, answer, at = ChatParser(expected, counted()), Answer(), 0
    for place in [*sorted(places), len(text)]:
        for event in parser.feed(text[at:place]):
            answer.add(event)
        at = max(at, place)
    for event in parser.finish():
        answer.add(event)
    return answer


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    return [(c.name, json.loads(c.arguments)) for c in answer.calls]


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Berlin"}}\n</tool_call>'
QWEN = "<tool_call>\n<function=weather>\n<parameter=city>\nBerlin\n</parameter>\n</function>\n</tool_call>"

# format, text, content, calls
CALLS: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", HERMES, "", BERLIN),
    ("hermes", f"I look.\n{HERMES}\nWait.\n{HERMES}", "I look.\n\nWait.", BERLIN * 2),
    ("hermes", HERMES.replace("\n", ""), "", BERLIN),
    ("hermes", HERMES.replace("arguments", "parameters"), "", BERLIN),
    ("hermes", '<tool_call>[{"name": "time"}, {"name": "time", "arguments": null}]</tool_call>', "", [("time", {})] * 2),
    ("hermes", '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("time", {"a": 1})]),
    ("hermes", '<tool_call>{"type": "function", "function": {"name": "time", "arguments": {}}}</tool_call>', "", [("time", {})]),
    ("hermes", '<tool_call>{"arguments": {"city": "Berlin"}, "name": "weather"}</tool_call>', "", BERLIN),
    ("qwen3-coder", QWEN, "", BERLIN),
    ("qwen3-coder", QWEN.removeprefix("<tool_call>\n"), "", BERLIN),
    (
        "qwen3-coder",
        "<tool_call>\n<function=edit>\n<parameter=path>\na.c\n</parameter>\n<parameter=old>\n  if (a < 1) { \"x\" }\n"
        "</parameter>\n<parameter=new>\n\\n格\n\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=time>\n</function>\n</tool_call>",
        "",
        [("edit", {"path": "a.c", "old": '  if (a < 1) { "x" }', "new": "\\n格\n"}), ("time", {})],
    ),
    (
        "qwen3-coder",
        "<tool_call>\n<function=todo>\n<parameter=items>\n[{\"a\": false}, 1]\n</parameter>\n<parameter=on>\nTrue\n"
        "</parameter>\n</function>\n</tool_call>",
        "",
        [("todo", {"items": [{"a": False}, 1], "on": True})],
    ),
    (
        "qwen3-coder",
        "<function=union><parameter=either>null</parameter><parameter=one>{\"a\": 1}</parameter><parameter=ref>5"
        "</parameter><parameter=unit>c</parameter></function>",
        "",
        [("union", {"either": None, "one": {"a": 1}, "ref": "5", "unit": "c"})],
    ),
    (
        "qwen3-coder",
        "<function=union><parameter=either>no</parameter><parameter=one>{no</parameter></function>",
        "",
        [("union", {"either": "no", "one": "{no"})],
    ),
    ("qwen3-coder", "<function=loose><parameter=n>\n5\n</parameter><parameter=t>\na b\n</parameter></function>", "", [("loose", {"n": 5, "t": "a b"})]),
    (
        "seed-oss",
        '<seed:tool_call>\n<function=edit>\n<parameter=new>f("x")\n</parameter>\n</function>\n</seed:tool_call>',
        "",
        [("edit", {"new": 'f("x")\n'})],
    ),
    (
        "glm-4.5",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Berlin</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>time\n</tool_call>",
        "",
        BOTH,
    ),
    ("glm-4.5", "Hm.<tool_call>weather<arg_key>city</arg_key><arg_value>Berlin</arg_value></tool_call>", "Hm.", BERLIN),
    ("glm-4.5", "<tool_call>time</tool_call>", "", [("time", {})]),
    ("llama-3", '{"name": "weather", "parameters": {"city": "Berlin"}}', "", BERLIN),
    ("llama-3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Berlin"}}', "", BERLIN),
    ("llama-3", '<|python_tag|>weather.call(city="Berlin")', "", BERLIN),
    ("llama-3", '{"type": "function", "function": "time", "parameters": {}}; {"name": "time", "parameters": {}}', "", [("time", {})] * 2),
    ("llama-3", '[weather(city="Berlin", days=2), time()]', "", BOTH),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Berlin"}, "id": "123456789"}]', "", BERLIN),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Berlin", "days": 2}}, {"name": "time", "arguments": {}}]', "", BOTH),
    ("mistral-args", '[TOOL_CALLS]weather[ARGS]{"city": "Berlin", "days": 2}[TOOL_CALLS]time[ARGS]{}', "", BOTH),
    ("mistral-args", 'Hm. [TOOL_CALLS]weather{"city": "Berlin"}', "Hm.", BERLIN),
    ("mistral-ids", '[TOOL_CALLS]weather[CALL_ID]000000001[ARGS]{"city": "Berlin", "days": 2}[TOOL_CALLS]time[CALL_ID]000000002[ARGS]{}', "", BOTH),
    (
        "deepseek-r1",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Berlin", "days": 2}\n```'
        "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        BOTH,
    ),
    (
        "deepseek-3.1",
        'C<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Berlin", "days": 2}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "C",
        BOTH,
    ),
    (
        "deepseek-3.2",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Berlin</｜DSML｜'
        'parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="time">\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "",
        BOTH,
    ),
    (
        "minimax-m2",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Berlin</parameter>\n<parameter name="days">2</parameter>'
        '\n</invoke>\n<invoke name="time">\n</invoke>\n</minimax:tool_call>',
        "",
        BOTH,
    ),
    (
        "kimi-k2",
        'Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Berlin", "days": 2}'
        "<|tool_call_end|><|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "Hm.",
        BOTH,
    ),
    ("kimi-k2", '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Berlin"}', "", BERLIN),
    ("granite", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Berlin"}}]', "", BERLIN),
    ("phi-4-mini", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Berlin"}}]<|/tool_call|>', "", BERLIN),
    ("firefunction", ' functools[{"name": "weather", "arguments": {"city": "Berlin"}}]', "", BERLIN),
    ("nemotron-2", '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Berlin"}}]</TOOLCALL>\n', "", BERLIN),
    ("apriel", '<tool_calls>[{"name": "weather", "arguments": {"city": "Berlin"}}]</tool_calls>', "", BERLIN),
    (
        "command-r7b",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Berlin", "days": 2}},\n'
        '    {"tool_call_id": "1", "tool_name": "time", "parameters": {}}\n]<|END_ACTION|>',
        "",
        BOTH,
    ),
    ("command-r7b", "<|START_RESPONSE|>Hello,\nyou!<|END_RESPONSE|>", "Hello,\nyou!", []),
    ("command-r-plus", 'Action:\n```json\n[{"tool_name": "weather", "parameters": {"city": "Berlin"}}]\n```', "", BERLIN),
    ("lfm2", 'Hm.<|tool_call_start|>[weather(city="Berlin", days=2), time()]<|tool_call_end|>', "Hm.", BOTH),
    (
        "lfm2",
        '<|tool_call_start|>[Calendar.add(title="a\\n\\"b\\", c", tags=[\'x\', True, None, {"k": false, "t": "true"}])]<|tool_call_end|>',
        "",
        [("Calendar.add", {"title": 'a\n"b", c', "tags": ["x", True, None, {"k": False, "t": "true"}]})],
    ),
    ("lfm2", "<|tool_call_start|>[Calendar.add(title='a\nb')]<|tool_call_end|>", "", [("Calendar.add", {"title": "a\nb"})]),
    ("gemma-4", 'Hm.<|tool_call>call:weather{city:<|"|>Berlin<|"|>,days:2}<tool_call|><|tool_call>call:time{}<tool_call|>', "Hm.", BOTH),
    (
        "gemma-4",
        '<|tool_call>call:Calendar.add{title:<|"|>a, "b": {c}<|"|>,tags:[{k:true,l:<|"|>x<|"|>},-1.5,null]}<tool_call|>',
        "",
        [("Calendar.add", {"title": 'a, "b": {c}', "tags": [{"k": True, "l": "x"}, -1.5, None]})],
    ),
    ("apertus", '<|tools_prefix|>[{"weather": {"city": "Berlin", "days": 2}}, {"time": {}}]<|tools_suffix|>', "", BOTH),
    ("gigachat", 'Hm.<|function_call|>{"name": "weather", "arguments": {"city": "Berlin"}}', "Hm.", BERLIN),
    ("gigachat", '<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "weather", "arguments": {"city": "Berlin"}}', "", BERLIN),
    (
        "hunyuan",
        "<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n"
        "<arg_value:opensource>Berlin</arg_value:opensource>\n<arg_key:opensource>days</arg_key:opensource>\n<arg_value:opensource>2"
        "</arg_value:opensource>\n</tool_call:opensource>\n<tool_call:opensource>time<tool_sep:opensource>\n</tool_call:opensource>\n"
        "</tool_calls:opensource>",
        "",
        BOTH,
    ),
    ("functionary-3.1", '<function=weather>{"city": "Berlin", "days": 2}</function><function=time>{}</function>', "", BOTH),
    ("functionary-3.2", 'weather\n{"city": "Berlin"}', "", BERLIN),
    ("functionary-3.2", 'all\nHm.\n>>>weather\n{"city": "Berlin", "days": 2}>>>time\n{}', "Hm.", BOTH),
    ("functionary-3.2", "all\nHello, you!", "Hello, you!", []),
    ("harmony", "<|channel|>final<|message|>Hello!", "Hello!", []),
    ("harmony", "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "Berlin"}', "I look.", BERLIN),
    ("harmony", ' to=functions.weather<|channel|>analysis <|constrain|>json<|message|>{"city": "Berlin"}', "", BERLIN),
    ("harmony", '<|channel|>analysis to=functions.weather<|message|>{"city": "Berlin"}<|call|>', "", BERLIN),
    ("harmony", "Just text.", "Just text.", []),
    ("generic", 'To look, I call:\n```json\n{"name": "weather", "arguments": {"city": "Berlin"}}\n```\nThen I say.', "To look, I call:\n\nThen I say.", BERLIN),
    ("generic", '```\n[{"name": "weather", "arguments": {"city": "Berlin", "days": 2}}, {"name": "time"}]\n```', "", BOTH),
    ("generic", HERMES, "", BERLIN),
    ("generic", QWEN, "", BERLIN),
]  # fmt: skip

PROSE = [
    "Hello, you!",
    "  leading and trailing \n",
    "Write <tool_call> and a call in JSON, then </tool_call>.",
    "<tool_call>{no}</tool_call>",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '{"name": "John", "arguments": {}}',
    '{"name": "time", "arguments": []}',
    '{"name": ["time"], "arguments": {}}',
    '{"city": "Berlin"}',
    "[1, 2, 3]",
    "[link](https://example.invalid) and f(x=1)",
    "[TOOL_CALLS] is Mistral's mark, [ARGS] too",
    "<function=weather> opens a call",
    '```json\n{"city": "Berlin"}\n```',
    "```python\nimport functools[0]\n```",
    "Action: none.",
    "<｜tool▁calls▁begin｜>",
    "[" * 2000,
    '{"arguments": ' * 500,
    "<|tool_call_start|>[",
]


@pytest.mark.parametrize(
    ("format", "text", "content", "calls"), CALLS, ids=lambda x: None if isinstance(x, list) else x
)
def test_calls(format: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    answer = parse(text, expected(ROWS.get(format, GENERIC)))
    assert (answer.content, calls_of(answer), answer.reasoning) == (content, calls, "")
    if content != text and not text.startswith("<|START_RESPONSE|>"):
        if "mistral" in format and ("CALL_ID" in text or '"id"' in text):
            assert answer.calls[0].id in text
        elif "kimi" in format:
            assert answer.calls[0].id == "functions.weather:0"


@pytest.mark.parametrize("text", PROSE)
def test_what_is_no_call_stays_as_it_was_written(text: str) -> None:
    assert parse(text, expected()) == Answer(text)
    assert parse(text, Expected()) == Answer(text)


@pytest.mark.parametrize(("format", "text"), [(f, t) for f, t, _, calls in CALLS if calls])
def test_without_functions_there_are_no_calls(format: str, text: str) -> None:
    row = ROWS.get(format, GENERIC)
    answer = parse(text, Expected(row))
    assert not answer.calls
    if row.protocol is None:
        assert answer.content == text
    else:
        assert "Berlin" in answer.content


# format, opened, text, reasoning, content
THOUGHTS = [
    ("hermes", "", "<think>\nI'm\nthinking\n</think>\n\nHello!", "I'm\nthinking", "Hello!"),
    ("hermes", "", "\n<think></think>\n\nHello!", "", "Hello!"),
    ("hermes", "<think>\n", "I'm\nthinking\n</think>\n\nHello!", "I'm\nthinking", "Hello!"),
    ("hermes", "<think>\n", "</think>Hello!", "", "Hello!"),
    ("hermes", "<think>\n", "<think>\n\n</think>\n\nHello!", "", "Hello!"),
    ("hermes", "<think>\n", "cut off", "cut off", ""),
    ("hermes", "", "I write <think> and </think>.", "", "I write <think> and </think>."),
    ("mistral-args", "", "[THINK]I'm\nthinking[/THINK]Hello!", "I'm\nthinking", "Hello!"),
    ("seed-oss", "", "<seed:think>hm</seed:think>\nHello!", "hm", "Hello!"),
    ("apriel", "Here are my reasoning steps:\n", "hm\n[BEGIN FINAL RESPONSE]\nHello!", "hm", "Hello!"),
    (
        "command-r7b",
        "",
        "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Hello!<|END_RESPONSE|>",
        "hm",
        "Hello!",
    ),
    ("harmony", "", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello!", "hm", "Hello!"),
    (
        "harmony",
        "",
        "<|channel|>commentary to=assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello!",
        "hm",
        "Hello!",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("format", "opened", "text", "reasoning", "content"), THOUGHTS)
def test_thinking(format: str, opened: str, text: str, reasoning: str, content: str) -> None:
    row = ROWS[format]
    assert parse(text, Expected(row, opened=opened)) == Answer(content, reasoning)
    raw = parse(text, Expected(row, opened=opened, reasoning="none"))
    assert not raw.reasoning
    if row.protocol is None and "RESPONSE|>" not in text:
        assert raw.content == opened + text
    else:
        assert raw.content.endswith(content)
        assert reasoning in raw.content


def test_a_call_after_thinking_and_one_within() -> None:
    for text in (f"<think>hm</think>\n\n{QWEN}", f"<think>hm\n{QWEN}"):
        answer = parse(text, expected(ROWS["qwen3-coder"]))
        assert (answer.reasoning, answer.content, calls_of(answer)) == ("hm", "", BERLIN)
    # elsewhere what stands in the thinking is thought of, not made
    answer = parse(f"[THINK]I could {HERMES} now[/THINK]{HERMES}", expected(ROWS["mistral"]))
    assert (answer.reasoning, calls_of(answer)) == (f"I could {HERMES} now", BERLIN)


def test_the_prompt_opens_the_thinking() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_by("<|im_start|>assistant\n") == ""


def test_arguments_come_as_they_are_written() -> None:
    for text in (HERMES, QWEN, '[TOOL_CALLS]weather[ARGS]{"city": "Berlin"}'):
        parser = ChatParser(expected(), counted())
        at = text.index("rlin")
        answer = Answer()
        for event in parser.feed(text[:at]):
            answer.add(event)
        assert [(c.name, c.arguments) for c in answer.calls] == [("weather", '{"city": "Be')]


def test_a_call_that_is_cut_off_keeps_what_there_is() -> None:
    for text in (HERMES, QWEN, '[TOOL_CALLS]weather[ARGS]{"city": "Berlin"}'):
        answer = parse(text[: text.index("rlin")], expected())
        assert [(c.name, c.arguments) for c in answer.calls] == [("weather", '{"city": "Be')]
        assert answer.content == ""
    assert parse(HERMES[:-3], expected()).content == ""
    assert parse(QWEN[:-14], expected()).content == ""


def test_arguments_are_as_the_model_wrote_them() -> None:
    for arguments in ('{"x": 1e400, "y": 0.10000000000000000001}', '{"a" :{"b":[ 1,"]}" ]}}', "{}"):
        for call in ('{"name": "time", "arguments": %s}', '[{"parameters":%s , "name":"time"}]'):
            for written in (arguments, json.dumps(arguments)):
                answer = parse(call % written, expected())
                assert [c.arguments for c in answer.calls] == [arguments]


def test_only_the_first_call_counts_if_one_is_wanted() -> None:
    answer = parse(f"a {HERMES} b {QWEN} c", expected(several=False))
    assert (answer.content, calls_of(answer)) == ("a  b  c", BERLIN)


def test_ids() -> None:
    assert len({openai_id() for _ in range(50)} | {mistral_id() for _ in range(50)}) == 100
    assert all(len(mistral_id()) == 9 and mistral_id().isalnum() for _ in range(50))
    (call,) = parse(HERMES, expected()).calls
    assert call.id.startswith("call_")
    (call,) = parse(HERMES, expected(ROWS["mistral"])).calls
    assert len(call.id) == 9


@pytest.mark.parametrize(
    ("format", "text"), [(f, t) for f, t, *_ in (*CALLS, *THOUGHTS)] + [("hermes", t) for t in PROSE]
)
def test_character_by_character_is_the_same(format: str, text: str) -> None:
    wanted = expected(ROWS.get(format, GENERIC))
    assert cut(text, range(len(text)), wanted) == cut(text, [], wanted)


FRAGMENTS = sorted(
    {text for _, text, *_ in CALLS}
    | {*WAYS, *TOKENS, *PROSE[:6], " ", "\n", '"', "{", "}", "weather", "time", "city", ">", "\\"}
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_cuts_make_no_difference(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=6))
    text = "".join(parts)
    text = text[: data.draw(st.integers(0, len(text)))]
    wanted = expected(
        data.draw(st.sampled_from([GENERIC, *FORMATS])),
        reasoning=data.draw(st.sampled_from(["none", "auto"])),
        opened=data.draw(st.sampled_from(["", "<think>\n"])),
    )
    whole = cut(text, [], wanted)
    assert cut(text, data.draw(st.lists(st.integers(0, len(text)), max_size=8)), wanted) == whole
    assert cut(text, range(len(text)), wanted) == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=6).map("".join))
def test_text_is_text_where_nothing_else_is_expected(text: str) -> None:
    assert parse(text, Expected(reasoning="none")).content == text


def test_the_format_is_found_in_the_template() -> None:
    assert format_of(None).name == "generic"
    assert format_of("{{ messages }}").name == "generic"
    assert format_of("<tool_call> <function= <parameter=").name == "qwen3-coder"
    assert format_of("<tool_call>").name == "hermes"
