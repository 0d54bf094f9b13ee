"""Which conversations a template takes is found by trying, and what it does not take is put in another way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ropebend.chat_template import UNDEFINED, Renderer
from ropebend.server.chat.shape import ABSENT, Shape, probe
from ropebend.server.chat.templates import ChatTemplate

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or () %}"
    "<{{ c.function.name }} {{ c.function.arguments | tojson }} {{ c.id }}>"
    "{% endfor %}"
    "{% endfor %}"
)

TOOL = {"type": "function", "function": {"name": "f"}}
USER = {"role": "user", "content": "Ask."}


def call(id: str, arguments: Any, name: str = "f") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def found(source: str) -> dict[str, Any]:
    """What is not as OpenAI's API has it."""
    shape, default = probe(Renderer(source)), Shape()
    return {k: v for k, v in vars(shape).items() if v != getattr(default, k) and k not in ("parts", "developer")}


NO = "{{ raise_exception('no') }}"
TWO_USERS = "m.role == 'user' and loop.previtem and loop.previtem.role == 'user'"


def instead(old: str, new: str) -> str:
    """`CALLS` with something else in it."""
    assert old in CALLS
    return CALLS.replace(old, new)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CALLS, {}),
        (instead("arguments | tojson", "arguments + ''"), {"arguments": "text"}),
        (instead("{% for c", "{% if m.tool_calls | length > 1 %}" + NO + "{% endif %}{% for c"), {"parallel": False}),
        (instead("{{ c.id }}", "{% if c.id | length != 9 %}" + NO + "{% endif %}"), {"ids": "nine"}),
        (instead("{{ c.function.name }}", ""), {"ids": "named"}),
        (instead("{% if m.content %}", "{% if m.content and not m.tool_calls %}"), {"beside": False}),
        (instead("m.tool_calls or ()", "m.tool_calls if m.content is none"), {"empty": None, "beside": False}),
        (instead("{% if tools %}", "{% for t in tools %}{% endfor %}{% if tools %}"), {"no_tools": UNDEFINED}),
        (
            instead("{% if tools %}", "{% if tools is none or not tools is defined %}" + NO + "{% elif tools %}"),
            {"no_tools": []},
        ),
        ("{% if messages[0].role == 'system' %}" + NO + "{% endif %}" + CALLS, {"system": "never"}),
        ("{% for m in messages[1:] if m.role == 'system' %}" + NO + "{% endfor %}" + CALLS, {"system": "first"}),
        (
            "{% for m in messages %}{% if " + TWO_USERS + " %}" + NO + "{% endif %}{% endfor %}" + CALLS,
            {"repeats": False},
        ),
        ("{% if messages[0].role == 'assistant' %}" + NO + "{% endif %}" + CALLS, {"opens": False}),
    ],
)
def test_what_a_template_takes(source: str, expected: dict[str, Any]) -> None:
    assert found(source) == expected


def test_what_a_template_without_tools_takes() -> None:
    assert found(PLAIN) == {"tools": False, "calls": False, "results": False}


def test_a_content_that_is_left_out() -> None:
    source = (
        "{% for m in messages %}{% if 'content' in m %}{{ m.content + '' }}"
        "{% else %}{{ m | tojson }}{% endif %}{% endfor %}"
    )
    assert probe(Renderer(source)).empty is ABSENT


def render(source: str, *messages: dict[str, Any], tools: Any = None) -> str:
    return ChatTemplate(source).render(list(messages), tools).text


def test_strings_become_parts_where_only_those_are_shown() -> None:
    assert render(PARTS, USER) == "[user]Ask.;"
    assert (
        render(PARTS, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
        == "[user]a;b;"
    )


def test_parts_become_a_string_where_they_are_not_shown_one_by_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render(PLAIN, {"role": "user", "content": parts}) == "[user]a\nb"
    assert (
        render(PLAIN.replace("m.content", "m.content | tojson"), {"role": "user", "content": parts}) == '[user]"a\\nb"'
    )


def test_calls_and_results_are_written_out_for_a_template_that_knows_none() -> None:
    asked = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [call("1", '{"x": 1}'), call("2", {"y": "é"}, "g")],
    }
    results = [
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
    ]
    text = render(PLAIN, USER, asked, *results, tools=[TOOL])
    assert text.startswith("[system]You can call these functions:\n")
    assert text.endswith(
        "[user]Ask.[assistant]Let me see.\n"
        '{"name": "f", "arguments": {"x": 1}}\n{"name": "g", "arguments": {"y": "é"}}'
        "[user]Result of f:\none[user]Result of g:\ntwo"
    )  # fmt: skip


def test_ids_become_those_the_template_demands_and_stay_the_same() -> None:
    nine = CALLS.replace("{{ c.id }}", "{{ c.id if c.id | length == 9 else raise_exception('id') }}")
    nine = nine.replace("[{{ m.role }}]", "[{{ m.role }} {{ m.tool_call_id }}]")
    ours = "call_0123456789abcdef01234567"

    def ids(id: str) -> list[str]:
        asked = {"role": "assistant", "content": None, "tool_calls": [call(id, "{}")]}
        text = render(nine, USER, asked, {"role": "tool", "tool_call_id": id, "content": "one"}, tools=[TOOL])
        return [text.split("{} ")[1][:9], text.split("[tool ")[1][:9]]

    assert ids("aB3456789") == ["aB3456789"] * 2
    made = ids(ours)
    assert made[0] == made[1]
    assert made[0].isalnum()
    assert ids(ours) == made != ids(ours + "x")
    named = CALLS.replace("{{ c.function.name }}", "")
    asked = {"role": "assistant", "content": None, "tool_calls": [call(ours, "{}"), call("x", "{}", "g")]}
    text = render(named, USER, asked, tools=[TOOL])
    assert text.endswith("< {} functions.f:0>< {} functions.g:1>")


def test_several_calls_become_several_messages_each_with_its_result() -> None:
    one = CALLS.replace("{% for c", "{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}{% for c")
    asked = {"role": "assistant", "content": None, "tool_calls": [call("1", "{}"), call("2", "{}", "g")]}
    results = [
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
    ]
    text = render(one, USER, asked, *results, tools=[TOOL])
    assert text.endswith("[user]Ask.[assistant]<f {} 1>[tool]one[assistant]<g {} 2>[tool]two")


def test_results_come_in_the_order_of_their_calls() -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [call("1", "{}"), call("2", "{}", "g")]}
    results = [
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
    ]
    assert render(CALLS, USER, asked, *results, tools=[TOOL]).endswith("[tool]one[tool]two")


def test_arguments_that_are_no_json_are_shown() -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [call("1", '{"x": ')]}
    assert json.dumps({"arguments": '{"x": '}) in render(CALLS, USER, asked, tools=[TOOL])


def test_tools_get_what_the_template_takes_for_granted() -> None:
    each = "{% for t in tools or () %}{{ t.function.description + t.function.parameters.type }}{% endfor %}"
    assert '"name": "f"' in render(each + CALLS, USER, tools=[TOOL])


def test_a_template_that_shows_calls_but_not_the_tools_gets_an_example_of_its_own() -> None:
    text = render(CALLS.replace("{% if tools %}", "{% if false %}"), USER, tools=[TOOL])
    assert "To call one, answer like this:\n<name " in text
    assert '{"argument": "value"}' in text


def test_the_first_refusal_is_what_the_client_reads() -> None:
    source = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + PLAIN
    with pytest.raises(Exception, match="too long"):
        render(source, USER, {"role": "assistant", "content": "x"}, USER)
