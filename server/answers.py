"""From the engine's events to OpenAI answers, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ropebend.server import errors
from ropebend.server.api import (
    Answer,
    AnswerKind,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
    TopLogprob,
    Usage,
)
from ropebend.server.engine import Cancelled, Done, Event, Failed, Finish, Job, Piece, TokenLogprob, Unavailable


class Form(Protocol):
    """What is different between the answers of the two endpoints."""

    id_prefix: str
    object: AnswerKind
    chunk_object: AnswerKind

    def choice(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> Any:
        """A choice of a whole answer.  tokens: None if no log-probabilities were asked for."""

    def chunk(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> Any:
        """A choice of a chunk; the last of a choice has a reason and no text."""

    def opening(self, index: int) -> Any:
        """The chunk that comes before a choice's text, or None."""


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
                tokens=[_name(t.piece) for t in tokens],
                token_logprobs=[t.logprob for t in tokens],
                # the generated token is in it even if it is not among the likeliest
                top_logprobs=[{_name(p): x for p, x in (*t.top, (t.piece, t.logprob))} for t in tokens],
                text_offset=[t.offset for t in tokens],
            )
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)

    chunk = choice

    def opening(self, index: int) -> None:
        """See `Form`."""


class ChatForm:
    """Answers of /v1/chat/completions."""

    id_prefix = "chatcmpl"
    object: AnswerKind = "chat.completion"
    chunk_object: AnswerKind = "chat.completion.chunk"

    def choice(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> ChatChoice:
        """See `Form`."""
        message = ChatMessage(role="assistant", content=text, refusal=None)
        return ChatChoice(index=index, message=message, logprobs=_chat_logprobs(tokens), finish_reason=reason)

    def chunk(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> ChatChunkChoice:
        """See `Form`."""
        delta = ChatDelta() if reason is not None else ChatDelta(content=text)
        return ChatChunkChoice(index=index, delta=delta, logprobs=_chat_logprobs(tokens), finish_reason=reason)

    def opening(self, index: int) -> ChatChunkChoice:
        """See `Form`."""
        return ChatChunkChoice(
            index=index, delta=ChatDelta(role="assistant", content=""), logprobs=None, finish_reason=None
        )


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=_name(t.piece),
                logprob=t.logprob,
                bytes=list(t.piece),
                top_logprobs=[TopLogprob(token=_name(p), logprob=x, bytes=list(p)) for p, x in t.top],
            )
            for t in tokens
        ],
        refusal=None,
    )


def _name(piece: bytes) -> str:
    """The token as text; part of a character as OpenAI writes it, ``bytes:\\xe2``, so that names stay distinct."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in piece)


class Answering:
    """Collects the events of one job for one request.

    head       id, created, model and system_fingerprint of the answer
    n_prompt   prompt tokens, for `usage`
    logprobs   whether log-probabilities were asked for
    """

    def __init__(self, form: Form, head: dict[str, Any], n_choices: int, n_prompt: int, logprobs: bool):
        self._form = form
        self._head = head
        self._n_choices = n_choices
        self._n_prompt = n_prompt
        self._logprobs = logprobs
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def on_event(self, event: Event) -> None:
        """For the engine, which calls it in its own thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def whole(self) -> dict[str, Any] | None:
        """The answer once the job is done; None if it was cancelled.  Raises ApiError if it failed."""
        text = [""] * self._n_choices
        tokens: list[list[TokenLogprob]] = [[] for _ in text]
        reasons: list[FinishReason] = [None] * self._n_choices
        n_generated = 0
        while not isinstance(event := await self._events.get(), Done):
            if isinstance(event, Piece):
                text[event.index] += event.text
                tokens[event.index] += event.tokens
            elif isinstance(event, Finish):
                reasons[event.index] = event.reason
                n_generated += event.n_tokens
            elif isinstance(event, Cancelled):
                return None
            else:
                raise _api_error(event)
        choices = [
            self._form.choice(i, text[i], tokens[i] if self._logprobs else None, reasons[i])
            for i in range(self._n_choices)
        ]
        return self._json(self._form.object, choices, self._usage(n_generated))

    async def stream(self, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events, while it comes; a failure becomes an error event and ends the stream."""
        form, opened, n_generated = self._form, -1, 0

        def event_of(choices: Sequence[Any], *usage: Usage | None) -> str:
            return _sse(self._json(form.chunk_object, choices, *usage))

        # With include_usage every other chunk says that it has none.
        none = (None,) if include_usage else ()
        while not isinstance(event := await self._events.get(), Done):
            if isinstance(event, Cancelled):
                return
            if isinstance(event, Failed):
                yield _sse(_api_error(event).body)
                return
            if event.index != opened:
                opened = event.index
                if (opening := form.opening(opened)) is not None:
                    yield event_of([opening], *none)
            if isinstance(event, Piece):
                tokens = event.tokens if self._logprobs else None
                yield event_of([form.chunk(event.index, event.text, tokens, None)], *none)
            else:
                n_generated += event.n_tokens
                yield event_of([form.chunk(event.index, "", None, event.reason)], *none)
        if include_usage:
            yield event_of([], self._usage(n_generated))
        yield "data: [DONE]\n\n"

    def _usage(self, n_generated: int) -> Usage:
        return Usage(
            prompt_tokens=self._n_prompt,
            completion_tokens=n_generated,
            total_tokens=self._n_prompt + n_generated,
        )

    def _json(self, kind: AnswerKind, choices: Sequence[Any], *usage: Usage | None) -> dict[str, Any]:
        more: dict[str, Any] = {"usage": usage[0]} if usage else {}
        return Answer(object=kind, choices=choices, **self._head, **more).model_dump(exclude_unset=True)


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _api_error(event: Failed) -> errors.ApiError:
    if isinstance(event.error, Unavailable):
        return errors.unavailable(str(event.error))
    return errors.internal(str(event.error))


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive, job: Job) -> AsyncIterator[None]:
    """Cancel `job` when the client hangs up, and in any case on leaving: cancelling what has ended does nothing."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        job.cancel()


class EventStream(StreamingResponse):
    """Server-sent events of a job; a client that hangs up cancels it, also while nothing is being sent."""

    def __init__(self, content: AsyncIterator[str], job: Job):
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with cancelled_on_disconnect(receive, self._job):
            with suppress(OSError):  # how some servers say that the client has gone
                await self.stream_response(send)
