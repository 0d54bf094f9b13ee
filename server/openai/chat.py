"""/v1/chat/completions: the next message of a chat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ropebend.server.chat import demanded
from ropebend.server.chat.demanded import Layout
from ropebend.server.chat.formats import format_of, thinking_of
from ropebend.server.chat.marks import TOKENS
from ropebend.server.chat.parser import Expected, ReasoningFormat, ends_thinking
from ropebend.server.engine import Generation
from ropebend.server.openai.bodies import Body, Int, Text
from ropebend.server.openai.chat_answers import ChatForm
from ropebend.server.openai.constraining import compiled, of_body
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.generation import (
    STREAMED,
    GenerationBody,
    MaxTokens,
    generations,
    respond,
)
from ropebend.server.openai.messages import FunctionName, Tool
from ropebend.server.openai.neutral import CHAT
from ropebend.server.openai.prompts import check_length
from ropebend.server.openai.serving import Served, Serving
from ropebend.server.openai.templating import (
    ChatBody,
    opened_thinking,
    prompt_of,
    template_of,
    tokens_of,
    variables_of,
)
from ropebend.server.structured.constraints import Constraint
from ropebend.server.structured.parts import Choice, Json, Part

router = APIRouter()


def _not_zero(value: Any) -> Any:
    # of llama-server, which takes the number of /v1/completions here, too
    return False if type(value) is int and value == 0 else value


class NamedFunction(Body):
    """The name of one function."""

    name: FunctionName


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A JSON schema with a name."""

    name: Text | None = None
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """text, json_object, or json_schema with the schema that the answer follows.

    schema: llama.cpp's way to say it, with json_object
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _every_schema_counts(self) -> ResponseFormat:
        for key, given, type_ in (
            ("json_schema", self.json_schema, "json_schema"),
            ("schema", self.schema_, "json_object"),
        ):
            if given is not None and self.type != type_:
                context = {"key": key, "type": type_, "got": self.type}
                raise PydanticCustomError(
                    "schema_of_other_type", "{key} is for type {type}, it would be ignored with type {got}", context
                )
        return self


class ChatRequest(GenerationBody, ChatBody):
    """Body of POST /v1/chat/completions."""

    neutral = CHAT

    max_completion_tokens: MaxTokens | None = None
    logprobs: Annotated[bool, BeforeValidator(_not_zero)] | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None

    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_format: ReasoningFormat | None = None


@router.post("/v1/chat/completions", responses=STREAMED)
@router.post("/chat/completions", include_in_schema=False)
async def chat_completions(request: Request, body: ChatRequest, serving: Served) -> Response:
    """Answer a chat."""
    ready = await prepared(body, serving)
    return await respond(request, serving, body, ready.wanted, ready.n_prompt, ChatForm(ready.expected))


@dataclass(frozen=True)
class Prepared:
    """A chat for the engine.  expected: what the texts may hold."""

    wanted: list[Generation]
    n_prompt: int
    expected: Expected


async def prepared(body: ChatRequest, serving: Serving) -> Prepared:
    """What to generate for a chat.  ApiError 400 if that cannot be done."""
    facts = serving.facts
    scaled = serving.is_scaled(body.model)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens: expected only one of them", param="max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: expected only together with logprobs: true", param="top_logprobs")
    tools, forced = _tools(body)
    prompt = await run_in_threadpool(prompt_of, body, tools, serving)
    tokens = await run_in_threadpool(tokens_of, prompt, serving)
    asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    if asked is None or asked == -1:
        check_length(len(tokens), 1, facts, "messages")
    else:
        check_length(len(tokens), asked, facts, "messages")
    max_tokens = serving.max_tokens(asked, len(tokens), -1, scaled=scaled)
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    expected = Expected(
        format_of(template_of(serving).source(with_tools=bool(tools))),
        {t.function.name: t.function.parameters for t in tools},
        body.parallel_tool_calls is not False,
        body.reasoning_format or serving.chats.reasoning,
        opened_thinking(body, prompt, serving.chats),
    )
    layout = expected.format.layout
    part, param = _demanded(body, layout, tools, forced)
    constraint: Constraint | None
    if part is not None:
        tags = layout.thought or thinking_of(template_of(serving).source(with_tools=bool(tools)))
        off = variables_of(body, serving.chats).get("enable_thinking") is False
        if expected.reasoning == "none" or (off and not expected.opened) or ends_thinking(prompt.text):
            tags = None  # there is no place for it
            expected = replace(expected, opened="")
        part = demanded.after_thinking(part, expected.opened, tags)
        constraint = await run_in_threadpool(compiled, part, param, serving.engine)
    else:
        constraint = await run_in_threadpool(of_body, body.grammar, body.json_schema, serving.engine)
    wanted = generations(body, [tokens], max_tokens, n_logprobs, serving, scaled, constraint, control=TOKENS)
    return Prepared(wanted, len(tokens), expected)


def _tools(body: ChatRequest) -> tuple[list[Tool], bool]:
    """The tools that may be called, and whether one must be."""
    tools, choice = body.tools or [], body.tool_choice
    if choice == "none":
        return [], False
    if isinstance(choice, NamedTool):
        named = [t for t in tools if t.function.name == choice.function.name]
        if not named:
            message = f"tool_choice: expected one of the tools, got {choice.function.name!r}"
            raise ApiError(400, message, param="tool_choice", code="invalid_value")
        return named, True
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice: required, but there are no tools", param="tool_choice", code="invalid_value")
    return tools, choice == "required"


def _demanded(body: ChatRequest, layout: Layout, tools: list[Tool], forced: bool) -> tuple[Part | None, str]:
    """What the answer must be in the model's way of writing, and the parameter that says so."""
    wanted = body.response_format
    if wanted is not None and wanted.type == "text":
        wanted = None
    if sum((wanted is not None, forced, bool(body.grammar), body.json_schema is not None)) > 1:
        message = "response_format, tool_choice, grammar and json_schema: expected only one of them"
        raise ApiError(400, message, param="json_schema" if body.json_schema is not None else "grammar")
    several = body.parallel_tool_calls is not False
    calls = demanded.calls(layout, [_function(t) for t in tools], several) if tools else None
    if forced:
        return calls, "tools"
    if wanted is None:
        return None, ""
    param = "response_format"
    if wanted.type == "json_object":
        part = demanded.answer(layout, Json(wanted.schema_ or {"type": "object"}))
    else:
        param = "response_format.json_schema"
        if wanted.json_schema is None:
            raise ApiError(400, f"Missing required parameter: {param}", param=param, code="missing_required_parameter")
        schema = Json(wanted.json_schema.schema_, wanted.json_schema.strict is not False)
        part = demanded.answer(layout, schema)
    return (Choice((part, calls)) if calls is not None else part), param


def _function(tool: Tool) -> demanded.Function:
    return demanded.Function(tool.function.name, tool.function.parameters, tool.function.strict is not False)


@router.post("/v1/chat/completions/input_tokens")
@router.post("/chat/completions/input_tokens", include_in_schema=False)
async def input_tokens(body: ChatRequest, serving: Served) -> dict[str, int]:
    """How many tokens the prompt of a chat has, as llama-server tells it."""
    prompt = await run_in_threadpool(prompt_of, body, _tools(body)[0], serving)
    tokens = await run_in_threadpool(tokens_of, prompt, serving)
    return {"input_tokens": len(tokens)}
