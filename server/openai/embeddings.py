"""/v1/embeddings, and /embedding in llama-server's own form: texts as vectors."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, field_validator
from starlette.responses import JSONResponse

from ropebend.server.engine import Cancelled, Completed, Embed, Embedding, Failed
from ropebend.server.openai.answering import Events, api_error
from ropebend.server.openai.bodies import Body, Int, Text
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.neutral import EMBEDDING
from ropebend.server.openai.prompts import check_length, mixed_shape, mixed_tokens
from ropebend.server.openai.serving import Served, Serving
from ropebend.server.openai.sse import cancelled_on_disconnect

router = APIRouter()

Vectors = tuple[tuple[float, ...], ...]


class EmbeddingRequest(Body):
    """Body of POST /v1/embeddings.

    input           a text, token ids, both mixed in a list, an object as `{"prompt_string": text}`, or a list of such
    embd_normalize  -1: not at all, 0: as whole numbers up to 32760, else the p of the norm that becomes 1
    """

    neutral = EMBEDDING
    other_names: ClassVar[Mapping[str, str]] = {"content": "input"}

    model: Text | None = None
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    embd_normalize: Annotated[Int, Field(ge=-1, le=64)] | None = None

    _input_shape = field_validator("input", mode="before")(mixed_shape)


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest, serving: Served) -> Response:
    """Vectors of length 1: the mean of the last layer's hidden states, or the first or last one (see --pooling)."""
    if serving.facts.pooling == "none":
        raise ApiError(400, "input: this server was started with --pooling none; ask /embedding", param="input")
    prompts = await _prompts(body, serving)
    vectors = await _vectors(request, body, prompts, serving)
    if vectors is None:
        return Response(status_code=499)
    n = sum(map(len, prompts))
    return JSONResponse(
        {
            "object": "list",
            "model": body.model or serving.model,
            "data": [
                {"object": "embedding", "index": i, "embedding": _encoded(v[0], body.encoding_format)}
                for i, v in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": n, "total_tokens": n},
        }
    )


@router.post("/embedding")
@router.post("/embeddings", include_in_schema=False)
async def own_embeddings(request: Request, body: EmbeddingRequest, serving: Served) -> Response:
    """llama-server's own form: a list with the vectors of each text, with --pooling none one for each token."""
    prompts = await _prompts(body, serving)
    vectors = await _vectors(request, body, prompts, serving)
    if vectors is None:
        return Response(status_code=499)
    return JSONResponse(
        [{"index": i, "embedding": [_encoded(x, body.encoding_format) for x in v]} for i, v in enumerate(vectors)]
    )


async def _prompts(body: EmbeddingRequest, serving: Serving) -> list[list[int]]:
    prompts = [tokens for tokens, _ in await run_in_threadpool(mixed_tokens, body.input, "input", serving)]
    for prompt in prompts:
        check_length(len(prompt), 0, serving.facts, "input")
    return prompts


async def _vectors(
    request: Request, body: EmbeddingRequest, prompts: Sequence[list[int]], serving: Serving
) -> list[Vectors] | None:
    """Of each prompt; None if the client has gone."""
    scaled = serving.is_scaled(body.model)
    norm = 2 if body.embd_normalize is None else body.embd_normalize
    events = Events()
    wanted = [Embed(p, serving.facts.pooling, norm, scaled=scaled) for p in prompts]
    submission = serving.engine.submit(wanted, events.put)
    vectors: dict[int, Vectors] = {}
    async with cancelled_on_disconnect(request.receive, submission):
        while not isinstance(event := await events.get(), Completed):
            if isinstance(event, Embedding):
                vectors[event.index] = event.vectors
            elif isinstance(event, Failed):
                raise api_error(event)
            elif isinstance(event, Cancelled):
                return None
    return [vectors[i] for i in range(len(prompts))]


def _encoded(vector: tuple[float, ...], encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return vector
