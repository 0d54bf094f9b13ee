"""The endpoints.  They turn requests into `Generation`s for the engine; no llama.cpp here."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ropebend.errors import RopebendError
from ropebend.server import errors
from ropebend.server.answers import Answering, ChatForm, CompletionForm, EventStream, Form, cancelled_on_disconnect
from ropebend.server.api import ChatRequest, CompletionRequest
from ropebend.server.chat import ChatTemplate
from ropebend.server.engine import Engine, Facts, Generation, Unavailable
from ropebend.server.errors import ApiError

router = APIRouter()


# ---- what the server is


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """200 once requests can be served."""
    _ready(request)
    return {"status": "ok"}


@router.get("/props")
async def props(request: Request) -> dict[str, Any]:
    """The model, the scales in effect and the state of the queue."""
    engine, facts = _ready(request)
    scaling = facts.scaling
    return {
        "model": facts.id,
        "model_path": facts.path,
        "architecture": facts.architecture,
        "n_ctx": facts.n_ctx,
        "n_ctx_train": facts.n_ctx_train,
        "layer_scale": list(scaling.layer_scale) if scaling is not None else None,
        "rope": asdict(scaling.rope) if scaling is not None else None,
        "plan_hash": facts.plan_hash,
        "chat_template": facts.chat_template,
        "bos_token": facts.bos,
        "eos_token": facts.eos,
        "build_info": facts.build,
        "requests": {"running": engine.n_running, "queued": engine.n_queued, **asdict(engine.stats)},
    }


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model."""
    _, facts = _ready(request)
    return {"object": "list", "data": [_model_card(facts)]}


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """The one model, if it is called that."""
    _, facts = _ready(request)
    _check_model(model, facts)
    return _model_card(facts)


def _model_card(facts: Facts) -> dict[str, Any]:
    return {
        "id": facts.id,
        "object": "model",
        "created": facts.created,
        "owned_by": "ropebend",
        "meta": {
            "n_ctx": facts.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_params": facts.n_params,
            "n_vocab": facts.n_vocab,
        },
    }


# ---- generation


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue one prompt or several."""
    engine, facts = _ready(request)
    _check_model(body.model, facts)
    prompts = await run_in_threadpool(_prompts, body, engine, facts)
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    for prompt in prompts:
        _check_length(len(prompt), max_tokens, facts, "prompt")
    generations = _generations(body, prompts, max_tokens, body.logprobs, facts)
    return await _respond(request, body, generations, sum(map(len, prompts)), CompletionForm())


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    engine, facts = _ready(request)
    _check_model(body.model, facts)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens: expected only one of them", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: expected only together with logprobs: true", param="top_logprobs")
    prompt = await run_in_threadpool(_chat_prompt, body, engine, facts)
    asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    _check_length(len(prompt), asked or 1, facts, "messages")
    max_tokens = asked or facts.n_ctx - len(prompt)
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    generations = _generations(body, [prompt], max_tokens, n_logprobs, facts)
    return await _respond(request, body, generations, len(prompt), ChatForm())


def _ready(request: Request) -> tuple[Engine, Facts]:
    engine: Engine = request.app.state.engine
    if engine.facts is None:
        raise errors.loading()
    return engine, engine.facts


def _check_model(name: str | None, facts: Facts) -> None:
    if name and name != facts.id:
        message = f"The model {name!r} does not exist; this server runs {facts.id!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _check_length(n_prompt: int, max_tokens: int, facts: Facts, param: str) -> None:
    if n_prompt + max_tokens > facts.n_ctx:
        raise ApiError(
            400,
            f"This model's maximum context length is {facts.n_ctx} tokens, however you requested "
            f"{n_prompt + max_tokens} tokens ({n_prompt} in your prompt; {max_tokens} for the completion). "
            "Please reduce your prompt or the completion length, or start the server with a larger --ctx-size.",
            param=param,
            code="context_length_exceeded",
        )


def _prompts(body: CompletionRequest, engine: Engine, facts: Facts) -> list[list[int]]:
    raw: Any = body.prompt
    items: list[Any] = [raw] if isinstance(raw, str) or isinstance(raw[0], int) else raw
    prompts: list[list[int]] = [engine.tokenize(x) if isinstance(x, str) else x for x in items]
    for i, prompt in enumerate(prompts):
        where = "prompt" if items[0] is raw else f"prompt[{i}]"
        if not prompt:
            raise ApiError(400, f"{where}: expected at least one token", param="prompt", code="invalid_value")
        wrong = next((t for t in prompt if not 0 <= t < facts.n_vocab), None)
        if wrong is not None:
            message = f"{where}: expected token ids from 0 to {facts.n_vocab - 1}, got {wrong}"
            raise ApiError(400, message, param="prompt")
    return prompts


def _chat_prompt(body: ChatRequest, engine: Engine, facts: Facts) -> list[int]:
    if not facts.chat_template:
        message = f"The model {facts.id!r} carries no chat template; use /v1/completions"
        raise ApiError(400, message, code="no_chat_template")
    try:
        text = ChatTemplate(facts.chat_template, facts.bos, facts.eos).render([m.for_template() for m in body.messages])
    except RopebendError as e:
        raise ApiError(400, str(e), param="messages") from None
    # Most templates write BOS themselves; a second one harms the answer.
    tokens = engine.tokenize(text, add_special=not (facts.bos and text.startswith(facts.bos)))
    if not tokens:
        raise ApiError(400, "messages: the chat template made an empty prompt of them", param="messages")
    return tokens


def _generations(
    body: CompletionRequest | ChatRequest,
    prompts: Sequence[list[int]],
    max_tokens: int,
    n_logprobs: int | None,
    facts: Facts,
) -> list[Generation]:
    """n generations of each prompt, in the order of the answer's choices; the i-th of a prompt has seed + i."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: expected only together with stream: true", param="stream_options")
    wrong = next((k for k in body.logit_bias or {} if int(k) >= facts.n_vocab), None)
    if wrong is not None:
        message = f"logit_bias: expected token ids from 0 to {facts.n_vocab - 1}, got {wrong}"
        raise ApiError(400, message, param="logit_bias")
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        Generation(prompt, max_tokens, body.sampling(seed + i), body.stop_strings(), n_logprobs)
        for prompt in prompts
        for i in range(body.n or 1)
    ]


async def _respond(
    request: Request,
    body: CompletionRequest | ChatRequest,
    generations: Sequence[Generation],
    n_prompt: int,
    form: Form,
) -> Response:
    engine, facts = _ready(request)
    head = {
        "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": facts.id,
        # OpenAI's field for "what else changes the output": here, the scales
        "system_fingerprint": f"ropebend-{facts.plan_hash or 'unscaled'}",
    }
    logprobs = generations[0].n_logprobs is not None
    answering = Answering(form, head, len(generations), n_prompt, logprobs)
    try:
        job = engine.submit(generations, answering.on_event)
    except Unavailable as e:
        raise errors.unavailable(str(e)) from None
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(answering.stream(include_usage), job)
    async with cancelled_on_disconnect(request.receive, job):
        answer = await answering.whole()
    # After a disconnect nobody reads the answer; the status is for the log.
    return Response(status_code=499) if answer is None else JSONResponse(answer)
