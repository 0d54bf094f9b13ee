"""Every request that cannot be answered as asked is refused in OpenAI's shape, and the parameter is named."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, ValidationError

from ropebend.server.openai.chat import ChatRequest
from ropebend.server.openai.completions import CompletionRequest
from ropebend.server.openai.embeddings import EmbeddingRequest
from ropebend.server.openai.tokens import DetokenizeRequest

from ..conftest import N_CTX_TRAIN, TOKEN

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}


UNIQUE = {"type": "function", "function": {"name": "f", "parameters": {"uniqueItems": True}}}
LONG_SCHEMA = {"enum": list(range(50_000))}


def refused(http: httpx.Client, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    # json.dumps writes ASCII, so that half a surrogate pair can be sent
    answer = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if error["code"] == "context_length_exceeded":  # llama-server's word for it
        assert error["type"] == "exceed_context_size_error"
        assert error.pop("n_prompt_tokens") >= 1
        assert error.pop("n_ctx") == N_CTX_TRAIN
    else:
        assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("more", "param", "code", "says"),
    [
        ({"best_of": 2}, "best_of", "unsupported_value", "only the value of n is supported"),
        ({"suffix": "x"}, "suffix", "unsupported_value", "only '' is supported"),
        ({"repeat_penalty": 0}, "repeat_penalty", "invalid_value", "greater"),
        ({"n_prediction": 5}, "n_prediction", "unknown_parameter", "Unrecognized"),
        ({"messages": []}, "messages", "unknown_parameter", "Unrecognized"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type", "valid integer"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value", "greater than or equal to -1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "unsupported_value", "only 1 is supported"),
        ({"n": 0}, "n", "invalid_value", "greater"),
        ({"n": True}, "n", "invalid_type", "integer"),
        ({"temperature": -0.1}, "temperature", "invalid_value", "greater"),
        ({"temperature": 2.1}, "temperature", "invalid_value", "less"),
        ({"top_p": "1"}, "top_p", "invalid_type", "number"),
        ({"top_k": -2}, "top_k", "invalid_value", "greater"),
        ({"min_p": 1.5}, "min_p", "invalid_value", "less"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value", "less"),
        ({"seed": 1.5}, "seed", "invalid_type", "integer"),
        ({"seed": 2**63}, "seed", "invalid_value", "less"),
        ({"logprobs": 21}, "logprobs", "invalid_value", "less"),
        ({"logprobs": True}, "logprobs", "invalid_type", "integer"),
        ({"stop": 5}, "stop", "invalid_type", "string"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "at most 16"),
        ({"stream": "yes"}, "stream", "invalid_type", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter", "Unrecognized"),
        ({"logit_bias": {"": 1}}, "logit_bias", "invalid_value", "token id"),
        ({"logit_bias": [[5]]}, "logit_bias", "invalid_value", "pairs"),
        ({"logit_bias": {"5": True}}, "logit_bias", "invalid_value", "5: expected a number"),
        ({"samplers": ["top_k", "what"]}, "samplers", "invalid_value", "typ_p"),
        ({"logit_bias": {str(len(TOKEN)): 1}}, "logit_bias", None, f"0 to {len(TOKEN) - 1}"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value", "-100 to 100"),
        ({"prompt": 5}, "prompt", "invalid_value", "expected a string"),
        ({"prompt": None}, "prompt", "invalid_value", "expected a string"),
        ({"prompt": []}, "prompt", "invalid_value", "expected a string"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value", "expected a string"),
        ({"prompt": [[1], [True]]}, "prompt[1][0]", "invalid_type", "integer"),
        ({"prompt": ["a"] * 2049}, "prompt", "invalid_value", "at most 2048 texts, got 2049"),
        ({"prompt": ["a"] * 17, "n": 128}, "n", "invalid_value", "17 prompts times n = 128"),
        ({"grammar": 'root ::= "a"\n\nb = "c"'}, "grammar", "invalid_value", "line 3, column 3"),
        ({"grammar": 'root ::= "a\0"'}, "grammar", "invalid_value", "NUL"),
        ({"grammar": "root ::= (("}, "grammar", "invalid_value", "without )"),
        ({"grammar": "%llguidance {}\nstart: b"}, "grammar", "invalid_value", "unknown name"),
        ({"prompt": ""}, "prompt", "invalid_value", "at least one token"),
        ({"prompt": ["a", ""]}, "prompt", "invalid_value", "prompt[1]: expected at least one token"),
        ({"prompt": [-1]}, "prompt", None, "got -1"),
        ({"prompt": [[1], [len(TOKEN)]]}, "prompt", None, f"prompt[1]: expected token ids from 0 to {len(TOKEN) - 1}"),
        ({"prompt": [2**70]}, "prompt", None, "got 118"),
        ({"prompt": "a\ud800"}, "prompt", "invalid_value", "surrogate"),
        ({"stop": "\udc00"}, "stop", "invalid_value", "surrogate"),
    ],
)
def test_completion_parameters(
    http: httpx.Client, more: dict[str, Any], param: str, code: str | None, says: str
) -> None:
    error = refused(http, "/v1/completions", {"prompt": "a", **more})
    assert (error["param"], error["code"]) == (param, code)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "got 'f'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}},
            "response_format.json_schema",
            "cannot be used",
        ),
        ({"grammar": "root ::= ("}, "grammar", "a ( without )"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": LONG_SCHEMA}}},
            "response_format.json_schema",
            "characters, expected at most 262144",
        ),
        ({"tools": [UNIQUE], "tool_choice": "required"}, "tools", "of the tool 'f' cannot be used: 'uniqueItems' at /"),
        ({"grammar": "x ::= y", "response_format": {"type": "json_object"}}, "grammar", "only one"),
        ({"grammar": 'root ::= "a"\0 "b"'}, "grammar", "NUL"),
        ({"response_format": {"type": "json_object", "schema": {"const": "a\0b"}}}, "response_format", "NUL"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"\0": {}}}}}},
            "response_format.json_schema",
            "NUL",
        ),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format",
            "json_schema is for type json_schema, it would be ignored with type json_object",
        ),
        (
            {"response_format": {"type": "text", "schema": {}}},
            "response_format",
            "schema is for type json_object, it would be ignored with type text",
        ),
        ({"response_format": {"type": "json_schema", "schema": {}}}, "response_format", "it would be ignored"),
        ({"tool_choice": {"function": {"name": "f"}}}, "tool_choice.type", "Missing required parameter"),
        ({"functions": [{}]}, "functions", "only [] is supported"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "only 'text'"),
        ({"modalities": ["text", "audio"]}, "modalities", "only ['text'] is supported"),
        ({"reasoning_effort": ""}, "reasoning_effort", "at least 1"),
        ({"prediction": {}}, "prediction", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"logprobs": 2}, "logprobs", "boolean"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "only one"),
        ({"prompt": "a"}, "prompt", "Unrecognized"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": "a"}] * 10_001}, "messages", "at most 10000 items"),
        ({"messages": None}, "messages", "valid list"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "expected a text"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]", "expected a text"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "surrogate"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "Missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "only 'text'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function",
            "Missing",
        ),
    ],
)
def test_chat_parameters(http: httpx.Client, more: dict[str, Any], param: str, says: str) -> None:
    error = refused(http, "/v1/chat/completions", {**CHAT, **more})
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True, "service_tier": "auto"},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"], "n": 1},
        {"temperature": None, "stop": None, "max_tokens": None, "seed": None, "stream": None, "logit_bias": None},
        {"model": None},
        {"model": ""},
        {"best_of": 1, "echo": False, "min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True, "top_k": -1},
        {"repetition_penalty": 1, "length_penalty": 1.0, "typical_p": 1.0, "cache_prompt": True, "guided_json": None},
        {"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "returns": {"type": "string"}}, "id": "t"}]},
        {"stop": ""},
        {"stop": ["", ""]},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
        {"logprobs": False, "top_logprobs": 0},
        {"best_of": 2, "n": 2},
        {"max_completion_tokens": 1.0, "seed": 3.0, "top_k": 5.0},
        {"logit_bias": []},
        {"messages": [{"role": "user", "content": "a", "id": "m", "metadata": {"x": 1}, "reasoning": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "id": "p"}]}]},
    ],
)
def test_what_changes_nothing_is_accepted(http: httpx.Client, more: dict[str, Any]) -> None:
    assert http.post("/v1/chat/completions", json={**CHAT, "max_completion_tokens": 1, **more}).status_code == 200


def test_embedding_parameters(http: httpx.Client) -> None:
    for texts in (["a"] * 2049, [[5]] * 2049):
        error = refused(http, "/v1/embeddings", {"input": texts})
        assert (error["param"], error["code"]) == ("input", "invalid_value")
        assert "at most 2048 texts, got 2049" in error["message"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [1] * 1000}, ChatRequest),
        ({"messages": [{"role": "user", "content": [1] * 1000}]}, ChatRequest),
        ({"messages": [], "stream_options": {f"x{i}": 1 for i in range(1000)}}, ChatRequest),
        ({"prompt": [[True] * 1000]}, CompletionRequest),
        ({"prompt": [2**70, *[True] * 1000]}, CompletionRequest),
        ({"prompt": "a", "logit_bias": {str(i): "x" for i in range(1000)}}, CompletionRequest),
        ({"prompt": "a", **{f"x{i}": 1 for i in range(1000)}}, CompletionRequest),
        ({"input": ["\ud800"] * 1000}, EmbeddingRequest),
        ({"tokens": ["a"] * 1000}, DetokenizeRequest),
    ],
)
def test_the_errors_of_a_large_body_are_not_gathered(body: dict[str, Any], kind: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as e:
        kind.model_validate(body)
    assert e.value.error_count() < 50


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as e:
        client.completions.create(model="gpt-4", prompt="a")
    assert (e.value.code, e.value.param) == ("model_not_found", "model")
    assert "'gpt-4' does not exist; this server runs 'tiny'" in e.value.message
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=CHAT["messages"])


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'{"prompt": "a",}', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [[], "a", 1, None, True])
def test_a_body_that_is_no_object(http: httpx.Client, body: Any) -> None:
    assert "JSON object" in refused(http, "/v1/completions", body)["message"]


def test_a_missing_prompt(http: httpx.Client) -> None:
    assert refused(http, "/v1/completions", {})["param"] == "prompt"


def test_not_a_number(http: httpx.Client) -> None:
    body = b'{"prompt": "a", "temperature": NaN}'
    answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(http: httpx.Client) -> None:
    text = "a" * 100_000
    chat = {"messages": [{"role": "user", "content": text}]}
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/chat/completions", chat),
        ("/v1/embeddings", {"input": ["a", text]}),
    ):
        error = refused(http, path, body)
        assert error["code"] == "context_length_exceeded"
        assert "at least 7693 tokens in your prompt" in error["message"] or path.startswith("/v1/chat")
    assert http.post("/tokenize", json={"content": text}).json()["count"] == 100_000  # it asks just that


def test_one_long_prompt_among_many_refuses_them_all(http: httpx.Client) -> None:
    error = refused(http, "/v1/completions", {"prompt": ["a", "a" * 1000], "max_tokens": 5})
    assert error["code"] == "context_length_exceeded"
    assert f"{N_CTX_TRAIN} tokens" in error["message"]
    assert "1005 tokens (1000 in your prompt; 5 for the completion)" in error["message"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("a" * (2**20 + 1), "1048577 bytes without white space"), ("ab\ud800", "half of a surrogate pair")],
)
def test_a_text_that_cannot_be_tokenised(http: httpx.Client, text: str, says: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post("/tokenize", content=json.dumps({"content": text}), headers=headers)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
