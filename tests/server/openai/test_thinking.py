"""Thinking over HTTP: where it goes, and what switches it off.  A grammar makes the model write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ..conftest import EXACT, Server

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}\n{% endfor %}{% if tools %}<tool_call>{% endif %}{% if add_generation_prompt %}assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% elif reasoning_effort %}{{ reasoning_effort }}<think>\n{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
THOUGHT = "\nI think.\n</think>\n\nYes."
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "max_tokens": 99, "seed": 1}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(
    start: Callable[..., Server], models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    file = tmp_path_factory.mktemp("template") / "thinks.jinja"
    file.write_text(TEMPLATE)
    server = start(models["plain"], *EXACT, "-c", "1024", "--chat-template", str(file)).wait_until_ready()
    with server.client() as client:
        yield client
    assert server.stop() == 0


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, client: openai.OpenAI) -> Any:
    """Ask for an answer that reads so, as (thinking, content, names of calls, why it ended)."""

    def run(text: str, **more: Any) -> tuple[str | None, str | None, list[str], str]:
        body = {"grammar": f"root ::= {json.dumps(text)}", **more.pop("extra_body", {})}
        answer = client.chat.completions.create(**{**ASK, **more}, stream=request.param, extra_body=body)
        if not request.param:
            choice = answer.choices[0]
            calls = [c.function.name for c in choice.message.tool_calls or []]
            thought = getattr(choice.message, "reasoning_content", None)
            return thought, choice.message.content, calls, choice.finish_reason
        parts: dict[str, str] = {}
        names: list[str] = []
        reason = ""
        for chunk in answer:
            delta = chunk.choices[0].delta
            for key in ("reasoning_content", "content"):
                if value := getattr(delta, key, None):
                    parts[key] = parts.get(key, "") + value
            names += [c.function.name for c in delta.tool_calls or [] if c.function.name]
            reason = chunk.choices[0].finish_reason or reason
        return parts.get("reasoning_content"), parts.get("content"), names, reason

    return run


def test_thinking_that_the_prompt_opens_is_told_apart(ask: Any) -> None:
    assert ask(THOUGHT) == ("I think.", "Yes.", [], "stop")


def test_a_call_after_thinking(ask: Any) -> None:
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert ask(f"hm</think>\n{call}", tools=[CLOCK]) == ("hm", None, ["clock"], "tool_calls")


def test_thinking_stays_in_the_text_if_that_is_asked_for(ask: Any) -> None:
    whole = (None, "<think>\n" + THOUGHT, [], "stop")
    assert ask(THOUGHT, extra_body={"reasoning_format": "none"}) == whole
    assert ask(THOUGHT, extra_body={"reasoning_format": "deepseek"})[0] == "I think."


@pytest.mark.parametrize(
    "more",
    [{"reasoning_effort": "none"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}],
    ids=str,
)
def test_thinking_is_switched_off(ask: Any, more: dict[str, Any]) -> None:
    assert ask("Yes.", **more) == (None, "Yes.", [], "stop")


def test_the_effort_and_earlier_thinking_reach_the_template(client: openai.OpenAI) -> None:
    user = {"role": "user", "content": "?"}
    messages = [user, {"role": "assistant", "content": "!", "reasoning_content": "hm"}, user]
    url = str(client.base_url).removesuffix("v1/") + "apply-template"
    headers = {"Authorization": f"Bearer {client.api_key}"}
    answer = httpx.post(url, json={"messages": messages, "reasoning_effort": "low"}, headers=headers)
    assert answer.json()["prompt"] == "user:?\nassistant:<think>hm</think>!\nuser:?\nassistant:low<think>\n"


def test_thinking_that_is_cut_off_is_thinking(ask: Any) -> None:
    thought, content, calls, reason = ask("I think and think", max_tokens=8)
    assert thought
    assert "I think and".startswith(thought)
    assert (content or "", calls, reason) == ("", [], "length")


def test_what_the_switches_may_be(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="enable_thinking: expected true or false, got 'no'"):
        client.chat.completions.create(**ASK, extra_body={"chat_template_kwargs": {"enable_thinking": "no"}})
    with pytest.raises(openai.BadRequestError, match="reasoning_format"):
        client.chat.completions.create(**ASK, extra_body={"reasoning_format": "all"})
