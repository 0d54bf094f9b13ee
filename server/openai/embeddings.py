"""/v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import field_validator
from starlette.responses import JSONResponse

from ropebend.server.engine import Cancelled, Completed, Embed, Embedding, Failed
from ropebend.server.openai.answering import Events, api_error
from ropebend.server.openai.bodies import Body, Text
from ropebend.server.openai.neutral import EMBEDDING
from ropebend.server.openai.prompts import Prompts, check_length, prompt_shape, token_lists
from ropebend.server.openai.serving import Served
from ropebend.server.openai.sse import cancelled_on_disconnect

router = APIRouter()


class EmbeddingRequest(Body):
    """Body of POST /v1/embeddings."""

    neutral = EMBEDDING

    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None

    _input_shape = field_validator("input", mode="before")(prompt_shape)


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest, serving: Served) -> Response:
    """Vectors of length 1: the mean of the last layer's hidden states, or the first or last one (see --pooling)."""
    facts = serving.facts
    scaled = serving.is_scaled(body.model)
    prompts = await run_in_threadpool(token_lists, body.input, "input", serving)
    for prompt in prompts:
        check_length(len(prompt), 0, facts, "input")
    events = Events()
    submission = serving.engine.submit([Embed(p, facts.pooling, scaled=scaled) for p in prompts], events.put)
    vectors: dict[int, tuple[float, ...]] = {}
    async with cancelled_on_disconnect(request.receive, submission):
        while not isinstance(event := await events.get(), Completed):
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
            "model": body.model or serving.model,
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
