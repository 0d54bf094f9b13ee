"""Text generation: /v1/completions and /v1/chat/completions.  No llama.cpp here."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ropebend.errors import RopebendError
from ropebend.server.chat.tool_calls import HERMES_TAGS
from ropebend.server.engine.engine import Engine
from ropebend.server.engine.jobs import Generation, Unavailable
from ropebend.server.engine.loading import Facts
from ropebend.server.openai.answers import (
    Answering,
    ChatForm,
    CompletionForm,
    EventStream,
    Form,
    cancelled_on_disconnect,
)
from ropebend.server.openai.common import chat_prompt, check_length, is_scaled, prompts_of, ready, texts_of
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.requests import MAX_CHOICES, MAX_GRAMMARS, ChatRequest, CompletionRequest, NamedTool, Tool
from ropebend.server.structured import grammars

router = APIRouter()

#: For the OpenAPI document: with stream: true the answer is server-sent events.
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.post("/v1/completions", responses=_STREAMED)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue one prompt or several."""
    engine, facts = ready(request)
    scaled = is_scaled(body.model, facts)
    prompts = await run_in_threadpool(prompts_of, body.prompt, "prompt", engine, facts)
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    if max_tokens == -1:
        max_tokens = max(facts.n_ctx - max(map(len, prompts)), 0)
    for prompt in prompts:
        check_length(len(prompt), max_tokens, facts, "prompt")
    grammar = None
    if body.grammar is not None:
        grammar = await run_in_threadpool(_checked_grammar, body.grammar, "grammar", engine)
    echo = texts_of(body.prompt) if body.echo else None
    generations = _generations(body, prompts, max_tokens, body.logprobs, facts, scaled, grammar, echo)
    return await _respond(request, body, generations, sum(map(len, prompts)), CompletionForm())


@router.post("/v1/chat/completions", responses=_STREAMED)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    engine, facts = ready(request)
    scaled = is_scaled(body.model, facts)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens: expected only one of them", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: expected only together with logprobs: true", param="top_logprobs")
    tools, forced = _tools(body)
    more = body.chat_template_kwargs
    prompt = await run_in_threadpool(chat_prompt, body.messages, tools, engine, facts, more)
    asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    if asked == -1:
        asked = None
    check_length(len(prompt), asked or 1, facts, "messages")
    max_tokens = asked or facts.n_ctx - len(prompt)
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    grammar = await run_in_threadpool(_chat_grammar, body, tools if forced else [], engine, facts)
    generations = _generations(body, [prompt], max_tokens, n_logprobs, facts, scaled, grammar, show_control=bool(tools))
    form = ChatForm([t.function.name for t in tools], body.parallel_tool_calls is not False)
    return await _respond(request, body, generations, len(prompt), form)


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


def _chat_grammar(body: ChatRequest, forced: list[Tool], engine: Engine, facts: Facts) -> str | None:
    """The grammar the answer must follow, from whichever parameter asks for one."""
    wanted = body.response_format
    structured = wanted is not None and wanted.type != "text"
    if sum((structured, bool(forced), body.grammar is not None)) > 1:
        raise ApiError(400, "response_format, tool_choice and grammar: expected only one of them", param="grammar")
    grammar, param = body.grammar, "grammar"
    try:
        if forced:
            param = "tools"
            tags = HERMES_TAGS if HERMES_TAGS[0].strip() in (facts.chat_template or "") else ("", "")
            functions = [(t.function.name, t.function.parameters) for t in forced]
            several = body.parallel_tool_calls is not False
            grammar = grammars.tool_calls(functions, tags, several)
        elif wanted is not None and wanted.type == "json_object":
            param = "response_format"
            grammar = grammars.from_schema(wanted.schema_) if wanted.schema_ else grammars.any_object()
        elif wanted is not None and structured:
            param = "response_format.json_schema"
            if wanted.json_schema is None:
                message = f"Missing required parameter: {param}"
                raise ApiError(400, message, param=param, code="missing_required_parameter")
            grammar = grammars.from_schema(wanted.json_schema.schema_)
    except RopebendError as e:
        raise ApiError(400, f"{param}: {e}", param=param, code="invalid_value") from None
    return None if grammar is None else _checked_grammar(grammar, param, engine)


def _checked_grammar(grammar: str, param: str, engine: Engine) -> str:
    try:
        engine.check_grammar(grammar)
    except Unavailable:
        raise
    except (RopebendError, UnicodeEncodeError) as e:
        raise ApiError(400, f"{param}: {e}", param=param, code="invalid_value") from None
    return grammar


def _generations(
    body: CompletionRequest | ChatRequest,
    prompts: Sequence[list[int]],
    max_tokens: int,
    n_logprobs: int | None,
    facts: Facts,
    scaled: bool,
    grammar: str | None,
    echo: Sequence[str | None] | None = None,
    show_control: bool = False,
) -> list[Generation]:
    """n generations of each prompt, in the order of the answer's choices; the i-th of a prompt has seed + i.

    echo: the texts of the prompts if the answers begin with them.
    """
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: expected only together with stream: true", param="stream_options")
    wrong = next((k for k in body.logit_bias or {} if int(k) >= facts.n_vocab), None)
    if wrong is not None:
        message = f"logit_bias: expected token ids from 0 to {facts.n_vocab - 1}, got {wrong}"
        raise ApiError(400, message, param="logit_bias")
    n = body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        message = f"expected at most {MAX_CHOICES} texts of one request, got {len(prompts)} prompts times n = {n}"
        raise ApiError(400, message, param="n", code="invalid_value")
    if grammar and len(prompts) * n > (most := max(MAX_GRAMMARS // len(grammar) ** 2, 1)):
        message = f"a grammar of {len(grammar)} characters: expected n times prompts to be at most {most}"
        raise ApiError(400, f"{message}, got {len(prompts) * n}", param="n", code="invalid_value")
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        Generation(
            prompt,
            max_tokens,
            body.sampling(seed + i, grammar),
            body.stop_strings(),
            n_logprobs,
            echo=echo is not None,
            text=text,
            scaled=scaled,
            show_control=show_control,
        )
        for prompt, text in zip(prompts, echo or [None] * len(prompts), strict=True)
        for i in range(n)
    ]


async def _respond(
    request: Request,
    body: CompletionRequest | ChatRequest,
    generations: Sequence[Generation],
    n_prompt: int,
    form: Form,
) -> Response:
    engine, facts = ready(request)
    plans = (facts.plan(generations[0].scaled, length) for length in {g.n_max for g in generations})
    hashes = sorted({plan.hash for plan in plans if plan is not None})
    head = {
        "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": body.model or facts.id,
        # OpenAI's field for "what else changes the output": here, the scales
        "system_fingerprint": f"ropebend-{'-'.join(hashes) or 'unscaled'}",
    }
    logprobs = generations[0].n_logprobs is not None
    answering = Answering(form, head, len(generations), n_prompt, body.n or 1, logprobs)
    job = engine.submit(generations, answering.on_event, stream=bool(body.stream))
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(answering.stream(include_usage), job)
    async with cancelled_on_disconnect(request.receive, job):
        answer = await answering.whole()
    # After a disconnect nobody reads the answer; the status is for the log.
    return Response(status_code=499) if answer is None else JSONResponse(answer)
