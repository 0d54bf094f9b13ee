"""What asks for nothing is accepted, for every parameter that other servers document; what asks for more is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai.types.chat.completion_create_params
import openai.types.completion_create_params
import pytest
from pydantic import ValidationError

from ropebend.server.openai import neutral
from ropebend.server.openai.bodies import Body
from ropebend.server.openai.chat import ChatRequest
from ropebend.server.openai.completions import CompletionRequest
from ropebend.server.openai.embeddings import EmbeddingRequest
from ropebend.server.openai.errors import from_validation
from ropebend.server.openai.generation import GenerationBody
from ropebend.server.openai.tokens import DetokenizeRequest, TokenizeRequest

#: Name and default, made by llama_server_parameters.py.
LLAMA_SERVER: dict[str, Any] = json.loads(Path(__file__).with_name("llama_server_parameters.json").read_text())

#: The least that each body needs.
BODIES: dict[type[Body], dict[str, Any]] = {
    CompletionRequest: {"prompt": "a"},
    ChatRequest: {"messages": [{"role": "user", "content": "a"}]},
    EmbeddingRequest: {"input": "a"},
    TokenizeRequest: {"content": "a"},
    DetokenizeRequest: {"tokens": [1]},
}
GENERATING: tuple[type[GenerationBody], ...] = (CompletionRequest, ChatRequest)


def documented_by_openai(kind: type[Body]) -> set[str]:
    params = openai.types.completion_create_params, openai.types.chat.completion_create_params
    return set(params[kind is ChatRequest].CompletionCreateParamsBase.__annotations__) | {"stream"}


def known(kind: type[Body]) -> set[str]:
    names = {field.alias or name for name, field in kind.model_fields.items()}
    return names | kind.neutral.keys() | kind.other_names.keys()


def test_every_documented_parameter_is_known() -> None:
    for kind in GENERATING:
        assert documented_by_openai(kind) - known(kind) == set()
    # /v1/completions has no messages, and no template
    of_chats = {"chat_template_kwargs", "parallel_tool_calls", "reasoning_effort", "max_completion_tokens", "prompt"}
    for kind in GENERATING:
        assert set(LLAMA_SERVER) - known(kind) - of_chats == set()


@pytest.mark.parametrize("name", sorted(LLAMA_SERVER.keys() - {"prompt"}))
def test_llama_servers_defaults_pass(name: str) -> None:
    for kind in GENERATING:
        if name in known(kind):
            body = kind.model_validate({**BODIES[kind], name: LLAMA_SERVER[name]})
            if name in kind.neutral:  # it changes nothing
                assert body == kind.model_validate(BODIES[kind])


@pytest.mark.parametrize("name", sorted(neutral.CHAT.keys() | neutral.COMPLETION.keys()))
def test_other_values_are_refused_by_name(name: str) -> None:
    """Or every value passes, of what has no influence at all."""
    for kind in GENERATING:
        rule = kind.neutral.get(name)
        if rule is None or rule is neutral.ANYTHING:
            continue
        body = {**BODIES[kind], name: {"what": "else"}}
        with pytest.raises(ValidationError) as e:
            kind.model_validate(body)
        error = from_validation([{**x, "loc": ("body", *x["loc"])} for x in e.value.errors()], body)
        assert error.body["error"]["param"] == name
        assert error.body["error"]["code"] == ("unsupported_value" if rule.expected else "unsupported_parameter")


def test_numbers_are_compared_as_json_has_them() -> None:
    for value in (1, 1.0):
        assert neutral.only(1).lets_pass(value, {})
    assert not neutral.only(1).lets_pass(True, {})
    assert not neutral.only(False).lets_pass(0, {})
    assert neutral.AS_MANY_AS_N.lets_pass(3, {"n": 3})
    assert not neutral.AS_MANY_AS_N.lets_pass(3, {})


def test_whole_numbers_may_be_written_with_a_point() -> None:
    n = 0
    for kind, least in BODIES.items():
        for name in kind.model_fields:
            try:
                body = kind.model_validate({**least, name: 1})
            except ValidationError:
                continue
            if type(getattr(body, name)) is int:
                assert kind.model_validate({**least, name: 1.0}) == body
                n += 1
    assert n > 10
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"prompt": "a", "max_tokens": 1.5})
    assert CompletionRequest.model_validate({"prompt": [1.0, 2]}).prompt == [1, 2]


def test_other_names() -> None:
    body = CompletionRequest.model_validate({"prompt": "a", "n_predict": 5, "n_cmpl": 2.0})
    assert (body.max_tokens, body.n) == (5, 2)
    assert CompletionRequest.model_validate({"prompt": "a", "n_predict": 5, "max_tokens": 7}).max_tokens == 7


VALUES: list[Any] = [
    *(1, 1.5, "x", True, [], [1], ["x"], {}, {"type": "x"}, {"function": {"name": "f"}}, {"type": "function"}),
    *([{}], [[]], [{"type": "text"}], {"type": "json_schema", "json_schema": 5}, [{"role": "user", "content": {}}]),
    *([{"role": "user", "content": [{}]}], [{"role": "user", "content": [5]}], [{"type": "function", "function": 5}]),
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}],
]


def class_names(kind: type = Body) -> set[str]:
    return {kind.__name__}.union(*map(class_names, kind.__subclasses__()))


def test_no_error_names_a_class_of_ours() -> None:
    """Nor another word that pydantic has for the members of a union."""
    internal = {"function-", "literal[", "list[", "dict[", "constrained", "nullable", *class_names() - {"Message"}}
    n = 0
    for kind, least in BODIES.items():
        for name, field in kind.model_fields.items():
            for value in VALUES:
                body = {**least, field.alias or name: value}
                try:
                    kind.model_validate(body)
                except ValidationError as e:
                    error = from_validation([{**x, "loc": ("body", *x["loc"])} for x in e.errors()], body)
                    said = f"{error.body['error']['message']} {error.body['error']['param']}"
                    assert not [word for word in internal if word in said], said
                    assert error.body["error"]["param"].startswith(field.alias or name)
                    n += 1
    assert n > 300
