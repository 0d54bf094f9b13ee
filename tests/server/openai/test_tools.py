"""Tools, response formats and grammars over HTTP, where the model is made to obey."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ..conftest import EXACT, WEATHER, Server

MESSAGES = [{"role": "user", "content": "the dog"}]
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 1, "max_tokens": 90}


@pytest.fixture(scope="module")
def client(start: Callable[..., Server], models: dict[str, Path]) -> Iterator[openai.OpenAI]:
    """The descriptions of the tools are longer than the model's trained context: a byte is a token."""
    server = start(models["plain"], *EXACT, "-c", "1024").wait_until_ready()
    with server.client() as client:
        yield client
    assert server.stop() == 0


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, client: openai.OpenAI) -> Any:
    """Ask for a choice as (content, calls as (name, arguments), finish_reason)."""

    def run(**more: Any) -> tuple[str | None, list[tuple[str, str]], str]:
        if not request.param:
            choice = client.chat.completions.create(**ASK, **more).choices[0]
            calls = choice.message.tool_calls or []
            assert all(c.id.startswith("call_") for c in calls)
            return (
                choice.message.content,
                [(c.function.name, c.function.arguments) for c in calls],
                choice.finish_reason,
            )
        text, reason = "", ""
        streamed: dict[int, tuple[str, str]] = {}
        for chunk in client.chat.completions.create(**ASK, **more, stream=True):
            choice = chunk.choices[0]
            text += choice.delta.content or ""
            for c in choice.delta.tool_calls or []:
                name, arguments = streamed.get(c.index, ("", ""))
                assert bool(c.id) is bool(c.function.name) is not bool(name)
                streamed[c.index] = (name + (c.function.name or ""), arguments + c.function.arguments)
            reason = choice.finish_reason or reason
        return text or None, [streamed[i] for i in sorted(streamed)], reason

    return run


def test_a_required_tool_is_called_with_arguments_of_its_schema(ask: Any) -> None:
    content, ((name, arguments),), reason = ask(tools=[WEATHER], tool_choice="required")
    assert (content, name, reason) == (None, "weather", "tool_calls")
    got = json.loads(arguments)
    assert got["unit"] in ("C", "F")
    assert isinstance(got["rain"], bool)
    assert len(got) == 2


def test_a_named_tool_is_called(ask: Any) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    _, ((name, _),), reason = ask(tools=[CLOCK, WEATHER], tool_choice=choice)
    assert (name, reason) == ("weather", "tool_calls")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_model_that_calls_nothing_just_answers(ask: Any, choice: str) -> None:
    content, calls, reason = ask(tools=[CLOCK], tool_choice=choice)
    assert content
    assert (calls, reason) == ([], "length")


def test_a_call_and_its_result_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**ASK, tools=[WEATHER], tool_choice="required")
    call = (first.choices[0].message.tool_calls or [])[0]
    history = [*MESSAGES, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
    again = client.chat.completions.create(**{**ASK, "messages": history}, tools=[WEATHER], tool_choice="none")
    assert again.choices[0].message.content


def test_json_schema(ask: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"const": "x"}}, "required": ["a", "b"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "ab", "schema": schema, "strict": True}}
    content, _, reason = ask(response_format=wanted)
    assert reason == "stop"
    got = json.loads(content)
    assert isinstance(got["a"], bool)
    assert got["b"] == "x"


def test_json_object_with_a_schema(ask: Any) -> None:
    content, _, _ = ask(response_format={"type": "json_object", "schema": {"type": "integer", "maximum": 5}})
    assert json.loads(content) <= 5


def test_json_object(ask: Any) -> None:
    content, _, _ = ask(response_format={"type": "json_object"})
    assert re.match(r'\{\s*("|\})', content)


def test_a_grammar_of_ones_own(client: openai.OpenAI) -> None:
    more = {"grammar": 'root ::= ("né" | "€"){3} "."'}
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=40, seed=1, extra_body=more)
    assert re.fullmatch("(né|€){3}[.]", answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def test_a_grammar_is_followed_by_each_of_several_texts(client: openai.OpenAI) -> None:
    more = {"grammar": 'root ::= word "x"\nword ::= [a-c]{2,4}'}
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=4, max_tokens=20, seed=1, extra_body=more)
    assert len(answer.choices) == 8
    for choice in answer.choices:
        assert re.fullmatch("[a-c]{2,4}x", choice.text)
        assert choice.finish_reason == "stop"


def test_json_schema_as_llama_server_has_it(http: httpx.Client) -> None:
    more = {"json_schema": {"enum": ["ab", "cd"]}, "max_tokens": 20, "seed": 1}
    assert http.post("/v1/completions", json={"prompt": "a", **more}).json()["choices"][0]["text"] in ('"ab"', '"cd"')
    chat = http.post("/v1/chat/completions", json={**ASK, **more}).json()
    assert chat["choices"][0]["message"]["content"] in ('"ab"', '"cd"')
    both = http.post("/v1/completions", json={"prompt": "a", **more, "grammar": "root ::= [a]"})
    assert both.status_code == 400
    assert both.json()["error"]["param"] == "json_schema"


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_schema_leaves_out_is_said_in_a_header(http: httpx.Client, stream: bool) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
    body = {**ASK, "response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}}
    answer = http.post("/v1/chat/completions", json={**body, "stream": stream})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Ropebend-Warning"] == "'uniqueItems' at / is not supported and was left out"
    del schema["uniqueItems"]
    assert "X-Ropebend-Warning" not in http.post("/v1/chat/completions", json={**body, "stream": stream}).headers


def test_a_constrained_greedy_answer_takes_the_likeliest_tokens_that_may_come(http: httpx.Client) -> None:
    body = {"prompt": "the", "max_tokens": 12, "temperature": 0, "logprobs": 5}
    free = http.post("/v1/completions", json=body).json()["choices"][0]
    held = http.post("/v1/completions", json={**body, "grammar": "root ::= .*"}).json()["choices"][0]
    assert held["text"] == free["text"]
    assert held["logprobs"]["tokens"] == free["logprobs"]["tokens"]
    assert held["logprobs"]["token_logprobs"] == pytest.approx(free["logprobs"]["token_logprobs"], abs=0.01)


def test_a_tool_with_a_nested_model_is_called(ask: Any) -> None:
    definition = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    schema = {  # as pydantic writes a model in a model
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}, "P": {"type": "object", "properties": {}}},
        "required": ["p"],
        "$defs": {"P": definition},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    _, ((name, arguments),), _ = ask(tools=[tool], tool_choice="required")
    assert (name, type(json.loads(arguments)["p"]["x"])) == ("f", bool)
