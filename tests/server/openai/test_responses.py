"""/v1/responses through the openai client; a schema or a demanded call makes the model say something definite."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall

from ..conftest import WEATHER

TOOL = {"type": "function", **WEATHER["function"], "description": "The weather", "strict": True}
YES = {"type": "object", "properties": {"answer": {"const": "yes"}}, "required": ["answer"]}
SAYS_YES: Any = {"format": {"type": "json_schema", "name": "yes", "schema": YES, "strict": True}}


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, thinker: openai.OpenAI) -> Any:
    """Ask for a response; the events of a stream are held against the response at its end."""

    def run(input: Any, **more: Any) -> Response:
        given: dict[str, Any] = {"max_output_tokens": 200, "reasoning": {"effort": "none"}, **more}
        given["extra_body"] = {"seed": 1, **given.get("extra_body", {})}
        if not request.param:
            return thinker.responses.create(model="tiny", input=input, **given)
        with thinker.responses.stream(model="tiny", input=input, **given) as stream:
            events = list(stream)
        assert [e.sequence_number for e in events if e.type in ("response.created", "response.in_progress")] == [0, 1]
        last = events[-1]
        assert last.type in ("response.completed", "response.incomplete")
        deltas: dict[tuple[int, str], str] = {}
        for e in events:
            if e.type.endswith(".delta"):
                key = e.output_index, e.type.removesuffix(".delta")
                deltas[key] = deltas.get(key, "") + e.delta
            elif e.type == "response.output_item.done":
                assert e.item.model_dump(exclude={"parsed_arguments", "content"}) == last.response.output[
                    e.output_index
                ].model_dump(exclude={"parsed_arguments", "content"})
        for i, item in enumerate(last.response.output):
            if item.type == "function_call":
                assert deltas[i, "response.function_call_arguments"] == item.arguments
            elif item.type == "message" and item.content[0].text:
                assert deltas[i, "response.output_text"] == item.content[0].text
            elif item.type == "reasoning":
                assert deltas[i, "response.reasoning_text"] == item.content[0].text
        return last.response

    return run


def test_a_text(ask: Any) -> None:
    response = ask("the dog", instructions="Be kind.", max_output_tokens=8, metadata={"a": "b"})
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text
    usage = response.usage
    assert usage.output_tokens == 8
    assert usage.total_tokens == usage.input_tokens + 8
    assert (response.instructions, response.metadata, response.store) == ("Be kind.", {"a": "b"}, False)


def test_a_schema(ask: Any) -> None:
    response = ask([{"role": "user", "content": [{"type": "input_text", "text": "?"}]}], text=SAYS_YES)
    assert response.status == "completed"
    assert json.loads(response.output_text) == {"answer": "yes"}


def test_a_call_and_its_result(ask: Any) -> None:
    asked = [{"role": "user", "content": "?"}]
    response = ask(asked, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    (call,) = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "weather"
    assert set(json.loads(call.arguments)) == {"unit", "rain"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    back = call.model_dump(exclude={"parsed_arguments"}, exclude_none=True)
    again = ask([*asked, back, result], tools=[TOOL], tool_choice="none", max_output_tokens=8)
    assert again.output_text
    named = ask(asked, tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False)
    assert [item.type for item in named.output] == ["function_call"]


def test_thinking(thinker: openai.OpenAI) -> None:
    first = thinker.responses.create(model="tiny", input="?", max_output_tokens=6, reasoning={"effort": "low"})
    (thought,) = first.output
    assert thought.type == "reasoning"
    assert thought.content
    assert first.usage
    assert 0 < first.usage.output_tokens_details.reasoning_tokens <= 6
    # it can be sent back
    history: Any = [{"role": "user", "content": "?"}, thought.model_dump(), {"role": "user", "content": "!"}]
    assert thinker.responses.create(model="tiny", input=history, max_output_tokens=2).output


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not stored here; send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "not stored here"),
        ({"store": True}, "store", "only false is supported"),
        ({"background": True}, "background", "only false is supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "only 'function' is supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "item_reference"),
        ({"input": []}, "input", "at least 1"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"temperature": 5}, "temperature", "less than or equal to 2"),
        ({"nonsense": 5}, "nonsense", "Unrecognized"),
    ],
    ids=str,
)
def test_what_is_refused(thinker: openai.OpenAI, more: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        thinker.post("/responses", body={"input": "?", "max_output_tokens": 2, **more}, cast_to=object)
    assert e.value.param == param
    assert words in str(e.value)


def test_what_agents_always_send_is_taken(thinker: openai.OpenAI) -> None:
    body = {
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
    }
    more: dict[str, Any] = {"input": "?", "max_output_tokens": 2, "reasoning": {"effort": "low", "summary": "auto"}}
    assert thinker.post("/responses", body={**body, **more}, cast_to=object)
