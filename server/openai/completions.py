"""/v1/completions: the texts that follow prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, field_validator

from ropebend.server.engine import TokenLogprob
from ropebend.server.openai.answering import AnswerKind, FinishReason, token_name
from ropebend.server.openai.bodies import Int
from ropebend.server.openai.constraining import of_body
from ropebend.server.openai.generation import STREAMED, GenerationBody, generations, respond
from ropebend.server.openai.neutral import COMPLETION
from ropebend.server.openai.prompts import Prompts, check_length, items_of, prompt_shape, token_lists
from ropebend.server.openai.serving import Served

router = APIRouter()


class CompletionRequest(GenerationBody):
    """Body of POST /v1/completions."""

    neutral = COMPLETION

    prompt: Prompts
    logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None

    _prompt_shape = field_validator("prompt", mode="before")(prompt_shape)


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A completion, or the next part of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionForm:
    """Answers of /v1/completions."""

    id_prefix = "cmpl"
    object: AnswerKind = "text_completion"
    chunk_object: AnswerKind = "text_completion"

    def choice(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> CompletionChoice:
        """See `Form`."""
        logprobs = None
        if tokens is not None:
            logprobs = CompletionLogprobs(
                tokens=[token_name(t.piece) for t in tokens],
                token_logprobs=[t.logprob for t in tokens],
                top_logprobs=[_top(t) for t in tokens],
                text_offset=[t.offset for t in tokens],
            )
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)

    def chunks(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> Sequence[CompletionChoice]:
        """See `Form`."""
        return [self.choice(index, text, tokens, reason)]

    def opening(self, index: int) -> None:
        """See `Form`."""


def _top(t: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens, and the token itself even if it is not among them."""
    return None if t.logprob is None else {token_name(p): x for p, x in (*t.top, (t.piece, t.logprob))}


@router.post("/v1/completions", responses=STREAMED)
async def completions(request: Request, body: CompletionRequest, serving: Served) -> Response:
    """Continue one prompt or several."""
    facts = serving.facts
    scaled = serving.is_scaled(body.model)
    prompts = await run_in_threadpool(token_lists, body.prompt, "prompt", serving)
    max_tokens = serving.max_tokens(body.max_tokens, max(map(len, prompts)), 16, scaled=scaled)
    for prompt in prompts:
        check_length(len(prompt), max_tokens, facts, "prompt")
    constraint = await run_in_threadpool(of_body, body.grammar, body.json_schema, serving.engine)
    texts = [x if isinstance(x, str) else None for x in items_of(body.prompt)]
    wanted = generations(
        body, prompts, max_tokens, body.logprobs, serving, scaled, constraint, echo=texts if body.echo else None
    )
    return await respond(request, serving, body, wanted, sum(map(len, prompts)), CompletionForm())
