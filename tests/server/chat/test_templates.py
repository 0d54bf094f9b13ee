"""Chat templates and the messages that they get."""

import datetime
import json
import re
from typing import Any

import pytest

from ropebend import chat_template as renderer
from ropebend.chat_template import Renderer
from ropebend.errors import RopebendError
from ropebend.server.chat.templates import ChatTemplate
from ropebend.server.openai.chat import ChatRequest

from ..conftest import WEATHER

HELLO = [{"role": "user", "content": "Hello"}]


def test_special_tokens_and_generation_prompt() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        "<s>",
        "</s>",
    )
    assert template.render(HELLO).text == "<s>[user]Hello</s>[assistant]"


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index == 2 %}\n{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}\n"
    )
    assert Renderer(source).render(HELLO * 3) == "Hello\n"


def test_tojson_leaves_html_and_unicode_alone() -> None:
    assert Renderer("{{ messages[0].content | tojson }}").render([{"content": "<é'>"}]) == '"<é\'>"'


def test_a_developer_is_the_system_to_a_template_that_knows_none() -> None:
    messages = [{"role": "developer", "content": "short"}, *HELLO]
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert ChatTemplate(source).render(messages).text == "[system]short[user]Hello"
    assert ChatTemplate("{# developer #}" + source).render(messages).text == "[developer]short[user]Hello"


def test_variables_of_the_template() -> None:
    template = ChatTemplate("{% if enable_thinking is false %}<think></think>{% endif %}{{ messages[0].content }}")
    assert template.render(HELLO).text == "Hello"
    assert template.render(HELLO, None, {"enable_thinking": False, "messages": []}).text == "<think></think>Hello"


def test_messages_as_clients_send_them_back() -> None:
    said = [
        {"role": "assistant", "content": None},
        {"role": "tool", "content": None, "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "reasoning_content": "y", "cache_control": {}, "annotations": []},
        {"role": "assistant", "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": None}}}]},
        {"role": "user", "name": "Ada", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
    ]
    given = [m.for_template() for m in ChatRequest.model_validate({"messages": said}).messages]
    assert given == [
        {"role": "assistant"},
        {"role": "tool", "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "reasoning_content": "y"},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": None}}}],
        },
        {"role": "user", "name": "Ada", "content": [{"type": "text", "text": "a"}]},
    ]


def test_what_the_assistant_said_may_be_marked_for_training() -> None:
    source = "{% for m in messages %}\n{%- generation -%}\n  {{ m.content }}\n{%- endgeneration %}\n{% endfor %}."
    assert ChatTemplate(source).render(HELLO * 2).text == "HelloHello."


def test_a_template_may_append_to_lists_but_not_to_ours() -> None:
    source = "{% set _ = messages.append(messages[0]) %}{{ messages | length }}{{ messages[0].content }}"
    messages = list(HELLO)
    assert ChatTemplate(source).render(messages).text == "2Hello"
    assert messages == HELLO


def test_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "now", lambda: datetime.datetime(2025, 1, 31))
    source = "{{ date_string }}, {{ strftime_now('%Y') }}, {{ datetime }}{{ messages[0].content }}"
    assert ChatTemplate(source).render(HELLO).text == "31 Jan 2025, 2025, Jan 31 2025Hello"
    assert ChatTemplate(source).render(HELLO, None, {"date_string": "x"}).text.startswith("x, 2025")


def test_another_template_with_tools() -> None:
    template = ChatTemplate(
        "plain {{ messages[0].content }}", tool_use="tools {{ tools | tojson }}{{ messages[0].content }}"
    )
    assert template.render(HELLO).text == "plain Hello"
    assert template.render(HELLO, []).text == "plain Hello"
    assert template.render(HELLO, [WEATHER]).text.startswith('tools [{"type": ')


def test_a_template_that_is_nested_too_deep_is_an_error() -> None:
    with pytest.raises(RopebendError, match="not valid"):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "content", ["Once upon", "Once ", [{"type": "text", "text": "Once"}, {"type": "text", "text": "up"}]]
)
def test_the_last_message_is_continued(content: Any) -> None:
    messages = [*HELLO, {"role": "assistant", "content": content}]
    text = content if isinstance(content, str) else "Once\n\nup"
    assert ChatTemplate(CHATML).render(messages, continue_final="content").text == (
        f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{text}"
    )
    trims = ChatTemplate(CHATML.replace("m.content", "m.content | trim"))
    assert trims.render(messages, continue_final="content").text.endswith(f"assistant\n{text.rstrip()}")


def test_a_thought_is_continued() -> None:
    source = "{% for m in messages %}<{{ m.reasoning_content }}>{{ m.content }}{% endfor %}"
    messages = [*HELLO, {"role": "assistant", "reasoning_content": "Let me", "content": None}]
    assert ChatTemplate(source).render(messages, continue_final="reasoning_content").text == "<>Hello<Let me"


@pytest.mark.parametrize("last", [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}])
def test_only_a_text_of_the_assistant_is_continued(last: Any) -> None:
    with pytest.raises(RopebendError, match="cannot be continued"):
        ChatTemplate(CHATML).render([*HELLO, last], continue_final="content")


def test_tools_are_none() -> None:
    assert ChatTemplate("{% if tools is not none %}tools{% endif %}").render(HELLO).text == ""


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


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ lipsum.__globals__.os }}"])
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(RopebendError):
        ChatTemplate(source).render(HELLO)


def test_a_template_that_knows_tools_gets_them_and_another_gets_them_described() -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    knows = ChatTemplate("{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert knows.render(messages, [WEATHER]).text == f"[{json.dumps(WEATHER)}][system]Be kind.[user]hi"
    other = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    text = other.render(messages, [WEATHER]).text
    assert text.startswith("[system]Be kind.\n\nYou can call these functions:\n{")
    assert '"name": "weather"' in text
    assert text.endswith("[user]hi")
    assert other.render(messages[1:], [WEATHER]).text.startswith("[system]You can call")
    picky = ChatTemplate(
        "{% for m in messages %}{{ m.content if m.role == 'user' else raise_exception('no') }}{% endfor %}"
    )
    assert re.fullmatch("You can call .*\n\nhi", picky.render(messages[1:], [WEATHER]).text, re.DOTALL)
