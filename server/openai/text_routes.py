"""Texts, tokens and vectors: /tokenize, /detokenize, /tokenizer_info and /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ropebend.server.engine.jobs import Cancelled, Done, Embed, Embedding, Failed
from ropebend.server.openai.answers import Events, api_error, cancelled_on_disconnect
from ropebend.server.openai.common import chat_prompt, check_length, check_tokens, is_scaled, prompts_of, ready
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.requests import DetokenizeRequest, EmbeddingRequest, TokenizeRequest

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> dict[str, Any]:
    """Tokens of a text (llama-server's content, vLLM's prompt) or of a chat (vLLM's messages)."""
    engine, facts = ready(request)
    is_scaled(body.model, facts)
    given = [x for x in (body.content, body.prompt, body.messages) if x is not None]
    if len(given) != 1:
        raise ApiError(400, "content, prompt, messages: expected exactly one of them", param="content")
    if body.messages is not None:
        tokens = await run_in_threadpool(chat_prompt, body.messages, None, engine, facts)
    else:
        special = body.add_special_tokens if body.add_special is None else body.add_special
        if special is None:
            special = body.prompt is not None
        text = body.prompt if body.content is None else body.content
        assert text is not None
        tokens = await run_in_threadpool(engine.tokenize, text, add_special=special, parse_special=body.parse_special)
    out: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": facts.n_ctx}
    if body.return_token_strs:
        out["token_strs"] = [p.decode(errors="replace") for p in engine.pieces(tokens)]
    if body.with_pieces:
        out["tokens"] = [{"id": t, "piece": _piece(p)} for t, p in zip(tokens, engine.pieces(tokens), strict=True)]
    return out


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, str]:
    """The text of tokens."""
    engine, facts = ready(request)
    is_scaled(body.model, facts)
    check_tokens(body.tokens, "tokens", "tokens", facts)
    text = await run_in_threadpool(engine.detokenize, body.tokens)
    return {"content": text, "prompt": text}


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """The tokeniser in vLLM's words (and lm-evaluation-harness's)."""
    _, facts = ready(request)
    return {
        "tokenizer_class": "llama.cpp",
        "vocab_size": facts.n_vocab,
        "bos_token": facts.bos or None,
        "eos_token": facts.eos or None,
        "pad_token": facts.eos or None,
        "add_bos_token": facts.add_bos,
        "model_max_length": facts.n_ctx,
        "chat_template": facts.chat_template,
    }


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """Vectors of length 1: the mean of the last layer's hidden states, or the first or last one (see --pooling)."""
    engine, facts = ready(request)
    scaled = is_scaled(body.model, facts)
    prompts = await run_in_threadpool(prompts_of, body.input, "input", engine, facts)
    for prompt in prompts:
        check_length(len(prompt), 0, facts, "input")
    events = Events()
    job = engine.submit([Embed(p, facts.pooling, scaled=scaled) for p in prompts], events.put)
    vectors: dict[int, tuple[float, ...]] = {}
    async with cancelled_on_disconnect(request.receive, job):
        while not isinstance(event := await events.get(), Done):
            if isinstance(event, Embedding):
                vectors[event.index] = event.vector
            elif isinstance(event, Failed):
                raise api_error(event)
            elif isinstance(event, Cancelled):
                return Response(status_code=499)
    n = sum(map(len, prompts))
    return JSONResponse(
        {
            "object": "list",
            "model": body.model or facts.id,
            "data": [
                {"object": "embedding", "index": i, "embedding": _encoded(vectors[i], body.encoding_format)}
                for i in range(len(prompts))
            ],
            "usage": {"prompt_tokens": n, "total_tokens": n},
        }
    )


def _encoded(vector: tuple[float, ...], encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return vector
