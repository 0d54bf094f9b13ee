"""Published templates: the prompts are those of Hugging Face's transformers, or nothing of the conversation is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import published_templates as published
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropebend import chat_template as renderer

#: What ours makes of them instead, because transformers' prompt fails or drops a part of the conversation.
ADAPTED = {
    # these print a list of parts in Python's or JSON's notation, or leave it out
    ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "parts"),
    ("LFM2-8B-A1B", "parts"),
    ("SmolLM2-135M-Instruct.Q4_1", "parts"),
    ("google-gemma-2-2b-it", "parts"),
    ("meta-llama-Llama-3.1-8B-Instruct", "parts"),
    ("meta-llama-Llama-3.2-3B-Instruct", "parts"),
    # these show no tools, or no calls
    *((name, c) for name in ("SmolLM2-135M-Instruct.Q4_1",) for c in ("tools", "call", "called")),
    *((name, c) for name in ("microsoft-Phi-3.5-mini-instruct",) for c in ("tools", "call", "called")),
    *((name, c) for name in ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",) for c in ("tools", "call", "called")),
    *((name, c) for name in ("LFM2-8B-A1B", "ibm-granite-granite-3.3-2B-Instruct") for c in ("call", "called")),
}


@pytest.fixture(autouse=True)
def _that_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "now", lambda: published.TODAY)


@pytest.mark.parametrize("name", published.NAMES)
def test_prompts_are_those_of_transformers(name: str) -> None:
    for c, (messages, tools, variables) in published.CONVERSATIONS.items():
        text = published.template(name).render(messages, tools, variables).text
        expected = published.EXPECTED[name][c]
        if expected is None or (name, c) in ADAPTED:
            assert text != expected
            assert missing(messages, tools, text) == []
        else:
            assert text == expected


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from strings(v)


def said(messages: list[Any], tools: list[Any] | None) -> Iterator[str]:
    """Every word that must be in the prompt: all but roles, ids and thoughts."""
    for m in messages:
        yield from (p["text"] for p in m["content"]) if isinstance(m.get("content"), list) else [m.get("content") or ""]
        for call in m.get("tool_calls") or ():
            yield call["function"]["name"]
            arguments = call["function"]["arguments"]
            yield from strings(json.loads(arguments) if isinstance(arguments, str) else arguments)
    for tool in tools or ():
        yield tool["function"]["name"]
        yield tool["function"].get("description", "")


def missing(messages: list[Any], tools: list[Any] | None, text: str) -> list[str]:
    """What was said and is not in the prompt, as it stands or in JSON."""
    return [word for word in said(messages, tools) if word not in text and json.dumps(word)[1:-1] not in text]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Any], list[Any] | None]:
    """What clients may send: any order of roles, calls with and without text, results, parts and nulls."""
    words = iter(f"w{i}d" for i in range(1000))

    def content() -> Any:
        if draw(st.integers(0, 3)) == 0:
            return [{"type": "text", "text": f"{next(words)} {next(words)}"} for _ in range(draw(st.integers(1, 2)))]
        return f"{next(words)} {next(words)}"

    messages: list[Any] = []
    for kind in draw(st.lists(st.sampled_from(["system", "developer", "user", "assistant", "calls"]), max_size=6)):
        if kind != "calls":
            messages.append({"role": kind, "content": content()})
            continue
        ids = draw(
            st.lists(st.sampled_from(["call_1", "call_2", "aB3456789", "functions.f:0"]), min_size=1, unique=True)
        )
        calls = []
        for id in ids:
            arguments: Any = {"x": next(words), "n": 1}
            if draw(st.booleans()):
                arguments = json.dumps(arguments)
            calls.append({"id": id, "type": "function", "function": {"name": next(words), "arguments": arguments}})
        empty = draw(st.sampled_from([None, "", "text"]))
        messages.append({"role": "assistant", "content": content() if empty == "text" else empty, "tool_calls": calls})
        for id in draw(st.permutations(ids)):
            messages.append({"role": "tool", "tool_call_id": id, "content": content()})
    messages.append({"role": "user", "content": content()})
    tools = None
    if draw(st.booleans()):
        tools = [{"type": "function", "function": {"name": next(words)}}]
        if draw(st.booleans()):
            tools[0]["function"] |= {"description": next(words), "parameters": {"type": "object", "properties": {}}}
    return messages, tools


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(conversation=conversations())
@pytest.mark.parametrize("name", published.NAMES)
def test_nothing_is_lost(name: str, conversation: tuple[list[Any], list[Any] | None]) -> None:
    messages, tools = conversation
    before = json.dumps(conversation)
    text = published.template(name).render(messages, tools).text
    assert missing(messages, tools, text) == []
    assert json.dumps(conversation) == before
