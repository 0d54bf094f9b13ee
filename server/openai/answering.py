"""From the engine's events to answers, whole or in chunks; what is not set is left out of the JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

from pydantic import BaseModel, SerializeAsAny

from ropebend.server.engine import (
    Cancelled,
    Completed,
    Embedding,
    Event,
    Failed,
    Finished,
    Piece,
    Progress,
    Timing,
    TokenLogprob,
    Unavailable,
)
from ropebend.server.openai import errors
from ropebend.server.openai.sse import data_event
from ropebend.server.structured.parts import GrammarError

FinishReason = Literal["stop", "length", "tool_calls"] | None
AnswerKind = Literal["text_completion", "chat.completion", "chat.completion.chunk"]


class PromptTokensDetails(BaseModel):
    """cached_tokens: prompt tokens that were taken from another sequence's cache instead of computed."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Envelope(BaseModel):
    """What all answers are in, whole or in chunks; with include_usage the chunks before the last have usage null."""

    id: str
    object: AnswerKind
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[SerializeAsAny[BaseModel]]
    usage: Usage | None = None
    timings: dict[str, float] | None = None
    prompt_progress: dict[str, float] | None = None


class Form(Protocol):
    """What is different between the answers of the endpoints."""

    id_prefix: str
    object: AnswerKind
    chunk_object: AnswerKind

    def choice(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> BaseModel:
        """A choice of a whole answer.  tokens: None if no log-probabilities were asked for."""

    def chunks(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> Sequence[BaseModel]:
        """The choices of the next chunks, one each; the last of a choice has a reason and no text."""

    def opening(self, index: int) -> BaseModel | None:
        """The chunk that comes before a choice's text, or None."""


def token_name(piece: bytes) -> str:
    """The token as text; part of a character as OpenAI writes it, ``bytes:\\xe2``, so that names stay distinct."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in piece)


class Events:
    """The events of one submission on their way from the engine's thread to the request's task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """For the engine, which calls it in its own thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self) -> Event:
        return await self._queue.get()


class Answering:
    """Makes an answer of the events of one submission.

    head       id, created, model and system_fingerprint of the answer
    n_prompt   prompt tokens, for `usage`
    n          choices of each prompt
    logprobs   whether log-probabilities were asked for
    """

    def __init__(self, form: Form, head: dict[str, Any], n_choices: int, n_prompt: int, n: int, logprobs: bool):
        self._form = form
        self._head = head
        self._n_choices = n_choices
        self._n_prompt = n_prompt
        self._n = n
        self._n_generated = self._n_cached = 0
        self._timing = Timing()
        self._logprobs = logprobs
        self._events = Events()
        self.on_event = self._events.put

    async def whole(self) -> dict[str, Any] | None:
        """The answer once all of it is there; None if it was cancelled.  Raises ApiError if it failed."""
        text = [""] * self._n_choices
        tokens: list[list[TokenLogprob]] = [[] for _ in text]
        reasons: list[FinishReason] = [None] * self._n_choices
        while not isinstance(event := await self._events.get(), Completed):
            if isinstance(event, Piece):
                text[event.index] += event.text
                tokens[event.index] += event.tokens
            elif isinstance(event, Finished):
                reasons[event.index] = event.reason
                self._count(event)
            elif isinstance(event, Cancelled):
                return None
            elif isinstance(event, Failed):
                raise api_error(event)
        choices = [
            self._form.choice(i, text[i], tokens[i] if self._logprobs else None, reasons[i])
            for i in range(self._n_choices)
        ]
        return self._json(self._form.object, choices, usage=self._usage(), timings=timings(self._timing))

    async def stream(self, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events, while it comes; a failure becomes an error event and ends the stream."""
        form, opened = self._form, set[int]()

        def event_of(choices: Sequence[BaseModel], **more: Any) -> str:
            return data_event(self._json(form.chunk_object, choices, **more))

        # With include_usage every other chunk says that it has none.
        none: dict[str, Any] = {"usage": None} if include_usage else {}
        while not isinstance(event := await self._events.get(), Completed):
            if isinstance(event, Cancelled):
                return
            if isinstance(event, Failed):
                yield data_event(api_error(event).body)
                return
            if isinstance(event, Embedding):
                continue
            if event.index not in opened:
                opened.add(event.index)
                if (opening := form.opening(event.index)) is not None:
                    yield event_of([opening], **none)
            more = dict(none)
            if isinstance(event, Progress):
                yield event_of([], **none, prompt_progress=progress(event), timings=timings(event.timing))
                continue
            if isinstance(event, Piece):
                tokens = event.tokens if self._logprobs else None
                choices = form.chunks(event.index, event.text, tokens, None)
                if event.timing is not None:
                    more["timings"] = timings(event.timing)
            else:
                self._count(event)
                choices = form.chunks(event.index, "", None, event.reason)
            for choice in choices[:-1]:
                yield event_of([choice], **more)
            if isinstance(event, Finished):
                more["timings"] = timings(event.timing)
            for choice in choices[-1:]:
                yield event_of([choice], **more)
        if include_usage:
            yield event_of([], usage=self._usage(), timings=timings(self._timing))
        yield "data: [DONE]\n\n"

    def _count(self, event: Finished) -> None:
        self._n_generated += event.n_tokens
        a, b = self._timing, event.timing
        self._timing = Timing(
            a.n_cached + b.n_cached,
            a.n_prompt + b.n_prompt,
            max(a.prompt_ms, b.prompt_ms),
            a.n_generated + b.n_generated,
            max(a.generated_ms, b.generated_ms),
        )
        if event.index % self._n == 0:  # the other choices of a prompt share it: its tokens are in `n_prompt` once
            self._n_cached += event.n_cached

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._n_prompt,
            completion_tokens=self._n_generated,
            total_tokens=self._n_prompt + self._n_generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._n_cached),
        )

    def _json(self, kind: AnswerKind, choices: Sequence[BaseModel], **more: Any) -> dict[str, Any]:
        return Envelope(object=kind, choices=choices, **self._head, **more).model_dump(exclude_unset=True)


def timings(t: Timing) -> dict[str, float]:
    """llama-server's `timings`.  Of several texts: tokens together, and the longest times."""
    n_decoded = max(t.n_generated - 1, 0)  # the first comes with the prompt's end
    return {
        "cache_n": t.n_cached,
        "prompt_n": t.n_prompt,
        "prompt_ms": t.prompt_ms,
        "prompt_per_token_ms": t.prompt_ms / t.n_prompt if t.n_prompt else 0.0,
        "prompt_per_second": 1000 * t.n_prompt / t.prompt_ms if t.prompt_ms else 0.0,
        "predicted_n": t.n_generated,
        "predicted_ms": t.generated_ms,
        "predicted_per_token_ms": t.generated_ms / n_decoded if n_decoded else 0.0,
        "predicted_per_second": 1000 * n_decoded / t.generated_ms if t.generated_ms else 0.0,
    }


def progress(p: Progress) -> dict[str, float]:
    """llama-server's `prompt_progress`."""
    return {"total": p.n_prompt, "cache": p.n_cached, "processed": p.n_done, "time_ms": p.ms}


def api_error(event: Failed) -> errors.ApiError:
    """A failed job as an answer."""
    if isinstance(event.error, Unavailable):
        return errors.unavailable(str(event.error))
    if isinstance(event.error, GrammarError):  # beyond the limits of a step, which no check beforehand finds
        return errors.ApiError(400, str(event.error), code="invalid_value")
    return errors.internal(str(event.error))
