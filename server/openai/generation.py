"""What all endpoints that generate text share: the parameters of sampling, the texts they ask for, and the answer."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from starlette.responses import JSONResponse

from ropebend.server.engine import Generation
from ropebend.server.openai.answering import Answering, Form
from ropebend.server.openai.bodies import Body, Int, Text
from ropebend.server.openai.constraining import headers_of
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.neutral import GENERATION, STREAM
from ropebend.server.openai.prompts import MAX_CHOICES
from ropebend.server.openai.sampling_parameters import SamplingBody
from ropebend.server.openai.serving import Serving
from ropebend.server.openai.sse import EventStream, cancelled_on_disconnect
from ropebend.server.structured.constraints import MAX_GRAMMAR, Constraint

#: For the OpenAPI document: with stream: true the answer is server-sent events.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

#: -1 is "until the context is full", as llama.cpp's programs say it.
MaxTokens = Annotated[Int, Field(ge=-1, lt=2**31)]


class StreamOptions(Body):
    """include_usage: one more chunk at the end with the token counts."""

    neutral = STREAM

    include_usage: bool = False


class GenerationBody(SamplingBody):
    """What the bodies of all requests for text have in common."""

    neutral = GENERATION
    other_names: ClassVar = {"n_predict": "max_tokens", "n_cmpl": "n", "typ_p": "typical_p"}

    model: Text | None = None
    max_tokens: MaxTokens | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: Annotated[Text, Field(max_length=MAX_GRAMMAR)] | None = None
    json_schema: dict[str, Any] | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    verbose: bool | None = None

    def stop_strings(self) -> list[str]:
        """`stop` as a list; an empty text stops nothing."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


def generations(
    body: GenerationBody,
    prompts: Sequence[list[int]],
    max_tokens: int,
    n_logprobs: int | None,
    serving: Serving,
    scaled: bool,
    constraint: Constraint | None,
    echo: Sequence[str | None] | None = None,
    control: Collection[str] = (),
    after_filters: bool = False,
) -> list[Generation]:
    """n generations of each prompt, in the order of the answer's choices; the i-th of a prompt has seed + i.

    echo: the texts of the prompts (None of one given as tokens) if the answers begin with them; control: names of
    control tokens that appear in them; after_filters: log-probabilities are those after the filters.
    """
    facts = serving.facts
    if body.stream_options is not None and body.stream_options.include_usage and not body.stream:
        raise ApiError(400, "stream_options: expected only together with stream: true", param="stream_options")
    biases = body.biases(serving.engine, facts.n_vocab)
    n = body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        message = f"expected at most {MAX_CHOICES} texts of one request, got {len(prompts)} prompts times n = {n}"
        raise ApiError(400, message, param="n", code="invalid_value")
    seed = serving.defaults.seed if body.seed is None else body.seed
    if seed is None:
        seed = secrets.randbits(32)
    return [
        Generation(
            prompt,
            max_tokens,
            body.sampling(seed + i, constraint, serving.defaults.sampling, biases),
            body.stop_strings(),
            n_logprobs,
            echo=echo is not None,
            text=text,
            scaled=scaled,
            control=control,
            after_filters=after_filters,
            progress=bool(body.return_progress),
            timings=bool(body.timings_per_token),
        )
        for prompt, text in zip(prompts, echo or [None] * len(prompts), strict=True)
        for i in range(n)
    ]


def fingerprint(wanted: Sequence[Generation], serving: Serving) -> str:
    """OpenAI's field for "what else changes the output": here, the scales."""
    plans = (serving.facts.plan(wanted[0].scaled, length) for length in {g.n_max for g in wanted})
    return f"ropebend-{'-'.join(sorted({plan.hash for plan in plans if plan is not None})) or 'unscaled'}"


async def respond(
    request: Request,
    serving: Serving,
    body: GenerationBody,
    wanted: Sequence[Generation],
    n_prompt: int,
    form: Form,
) -> Response:
    """Run the generations and answer, streamed if the body says so.  n_prompt: prompt tokens, for `usage`."""
    head = {
        "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": body.model or serving.model,
        "system_fingerprint": fingerprint(wanted, serving),
    }
    logprobs = wanted[0].n_logprobs is not None
    answering = Answering(form, head, len(wanted), n_prompt, body.n or 1, logprobs)
    headers = headers_of(wanted[0].sampling.constraint)
    submission = serving.engine.submit(wanted, answering.on_event, stream=bool(body.stream))
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(answering.stream(include_usage), submission, headers)
    async with cancelled_on_disconnect(request.receive, submission):
        answer = await answering.whole()
    if answer is not None and (serving.defaults.verbose if body.verbose is None else body.verbose):
        answer["__verbose"] = {"prompt": await run_in_threadpool(serving.engine.detokenize, wanted[0].prompt)}
    # After a disconnect nobody reads the answer; the status is for the log.
    return Response(status_code=499) if answer is None else JSONResponse(answer, headers=headers)
