"""Thinking over HTTP: where it goes, and what switches it off.  A grammar makes the model write it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

THOUGHT = "\nI think.\n</think>\n\nYes."
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "max_tokens": 99, "seed": 1}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, thinker: openai.OpenAI) -> Any:
    """Ask for an answer that reads so, as (thinking, content, names of calls, why it ended)."""

    def run(text: str, **more: Any) -> tuple[str | None, str | None, list[str], str]:
        body = {"grammar": f"root ::= {json.dumps(text)}", **more.pop("extra_body", {})}
        answer = thinker.chat.completions.create(**{**ASK, **more}, stream=request.param, extra_body=body)
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


def test_the_effort_and_earlier_thinking_reach_the_template(thinker: openai.OpenAI) -> None:
    user = {"role": "user", "content": "?"}
    messages = [user, {"role": "assistant", "content": "!", "reasoning_content": "hm"}, user]
    url = str(thinker.base_url).removesuffix("v1/") + "apply-template"
    headers = {"Authorization": f"Bearer {thinker.api_key}"}
    answer = httpx.post(url, json={"messages": messages, "reasoning_effort": "low"}, headers=headers)
    assert answer.json()["prompt"] == "user:?\nassistant:<think>hm</think>!\nuser:?\nassistant:low<think>\n"


def test_thinking_that_is_cut_off_is_thinking(ask: Any) -> None:
    thought, content, calls, reason = ask("I think and think", max_tokens=8)
    assert thought
    assert "I think and".startswith(thought)
    assert (content or "", calls, reason) == ("", [], "length")


def test_what_the_switches_may_be(thinker: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="enable_thinking: expected true or false, got 'no'"):
        thinker.chat.completions.create(**ASK, extra_body={"chat_template_kwargs": {"enable_thinking": "no"}})
    with pytest.raises(openai.BadRequestError, match="reasoning_format"):
        thinker.chat.completions.create(**ASK, extra_body={"reasoning_format": "all"})
