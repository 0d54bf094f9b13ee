"""Chat templates and the messages that they get."""

import re
from typing import Any

import pytest

from ropebend.errors import RopebendError
from ropebend.server.chat.templates import ChatTemplate
from ropebend.server.openai.requests import ChatRequest

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "rain": {"type": "boolean"}},
            "required": ["unit", "rain"],
            "additionalProperties": False,
        },
    },
}


def test_special_tokens_and_generation_prompt() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        "<s>",
        "</s>",
    )
    assert template.render(HELLO) == "<s>[user]Hello</s>[assistant]"


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index == 2 %}\n{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}\n"
    )
    assert ChatTemplate(source).render(HELLO * 3) == "Hello\n"


def test_tojson_leaves_html_and_unicode_alone() -> None:
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([{"content": "<é'>"}]) == '"<é\'>"'


def test_a_developer_is_the_system_to_a_template_that_knows_none() -> None:
    messages = [{"role": "developer", "content": "short"}, *HELLO]
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert ChatTemplate(source).render(messages) == "[system]short[user]Hello"
    assert ChatTemplate("{# developer #}" + source).render(messages) == "[developer]short[user]Hello"


def test_variables_of_the_template() -> None:
    template = ChatTemplate("{% if enable_thinking is false %}<think></think>{% endif %}{{ messages[0].content }}")
    assert template.render(HELLO) == "Hello"
    assert template.render(HELLO, None, {"enable_thinking": False, "messages": []}) == "<think></think>Hello"


def test_messages_as_clients_send_them_back() -> None:
    said = [
        {"role": "assistant", "content": None},
        {"role": "tool", "content": None, "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "reasoning_content": "y", "cache_control": {}, "annotations": []},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ]
    given = [m.for_template() for m in ChatRequest.model_validate({"messages": said}).messages]
    assert [m["content"] for m in given] == ["", "", "x", ""]
    assert given[2] == {"role": "assistant", "content": "x", "reasoning_content": "y"}
    assert given[3]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_strftime_now() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(HELLO).startswith("2")


def test_tools_are_none() -> None:
    assert ChatTemplate("{% if tools is not none %}tools{% endif %}").render(HELLO) == ""


def test_raise_exception_shows_the_templates_words() -> None:
    with pytest.raises(RopebendError, match="refuses these messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(HELLO)


@pytest.mark.parametrize("source", ["{{ messages[0].content + 1 }}", "{{ missing.field }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_is_an_error(source: str) -> None:
    with pytest.raises(RopebendError, match="chat template"):
        ChatTemplate(source).render(HELLO)


def test_a_template_that_is_no_jinja_is_an_error() -> None:
    with pytest.raises(RopebendError, match="not valid"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(RopebendError):
        ChatTemplate(source).render(HELLO)


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": parts, "name": "Ada"}]})
    assert body.messages[0].for_template() == {"role": "user", "content": "a\nb", "name": "Ada"}


def test_a_template_that_knows_tools_gets_them_and_another_gets_them_described() -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    knows = ChatTemplate("{{ tools[0].function.name }}|{{ messages | length }}")
    assert knows.render(messages, [WEATHER]) == "weather|2"
    other = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    text = other.render(messages, [WEATHER])
    assert text.startswith("[system]Be kind.\n\nYou can call these functions:\n{")
    assert '"name": "weather"' in text
    assert text.endswith("[user]hi")
    assert other.render(messages[1:], [WEATHER]).startswith("[system]You can call")
    picky = ChatTemplate(
        "{% for m in messages %}{{ m.content if m.role == 'user' else raise_exception('no') }}{% endfor %}"
    )
    assert re.fullmatch("You can call .*\n\nhi", picky.render(messages[1:], [WEATHER]), re.DOTALL)
