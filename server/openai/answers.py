"""From the engine's events to OpenAI answers, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ropebend.server.chat.tool_calls import ToolStream
from ropebend.server.engine.jobs import (
    Cancelled,
    Done,
    Embedding,
    Event,
    Failed,
    Finish,
    Job,
    Piece,
    TokenLogprob,
    Unavailable,
)
from ropebend.server.openai import errors
from ropebend.server.openai.responses import (
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
    FunctionCall,
    PromptTokensDetails,
    ToolCall,
    TopLogprob,
    Usage,
)


class Form(Protocol):
    """What is different between the answers of the two endpoints."""

    id_prefix: str
    object: AnswerKind
    chunk_object: AnswerKind

    def choice(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> Any:
        """A choice of a whole answer.  tokens: None if no log-probabilities were asked for."""

    def chunks(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> Sequence[Any]:
        """The choices of the next chunks, one each; the last of a choice has a reason and no text."""

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


class ChatForm:
    """Answers of /v1/chat/completions.

    tool_names: functions whose calls are to be recognised; several: more than one call may be answered
    """

    id_prefix = "chatcmpl"
    object: AnswerKind = "chat.completion"
    chunk_object: AnswerKind = "chat.completion.chunk"

    def __init__(self, tool_names: Collection[str] = (), several: bool = True):
        self._tool_names = tool_names
        self._several = several
        self._streams: dict[int, ToolStream] = {}

    def choice(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> ChatChoice:
        """See `Form`."""
        content, calls = self._split(index, text, final=True)
        message = ChatMessage(role="assistant", content=content or None if calls else content, refusal=None)
        if calls:
            message.tool_calls = calls
            reason = "tool_calls"
        return ChatChoice(index=index, message=message, logprobs=_chat_logprobs(tokens), finish_reason=reason)

    def chunks(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> Sequence[ChatChunkChoice]:
        """See `Form`."""
        text, calls = self._split(index, text, final=reason is not None)
        out: list[tuple[ChatDelta, ChatLogprobs | None, FinishReason]] = []
        if text or tokens:
            out.append((ChatDelta(content=text), _chat_logprobs(tokens), None))
        if calls:
            for i, call in enumerate(calls):
                call.index = i
            out.append((ChatDelta(tool_calls=calls), None, None))
        if reason is not None:
            out.append((ChatDelta(), None, "tool_calls" if calls else reason))
        return [ChatChunkChoice(index=index, delta=d, logprobs=lp, finish_reason=r) for d, lp, r in out]

    def _split(self, index: int, text: str, final: bool) -> tuple[str, list[ToolCall]]:
        """What of a choice's text is certain by now, and with `final` the calls in it."""
        if not self._tool_names:
            return text, []
        stream = self._streams.setdefault(index, ToolStream(self._tool_names))
        out = stream.feed(text)
        if not final:
            return out, []
        rest, calls = stream.finish()
        return out + rest, [
            ToolCall(
                id=f"call_{uuid.uuid4().hex[:24]}",
                type="function",
                function=FunctionCall(name=call.name, arguments=call.arguments),
            )
            for call in calls[: None if self._several else 1]
        ]

    def opening(self, index: int) -> ChatChunkChoice:
        """See `Form`."""
        return ChatChunkChoice(
            index=index, delta=ChatDelta(role="assistant", content=""), logprobs=None, finish_reason=None
        )


def _top(t: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens, and the token itself even if it is not among them."""
    return None if t.logprob is None else {_name(p): x for p, x in (*t.top, (t.piece, t.logprob))}


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=_name(t.piece),
                logprob=t.logprob if t.logprob is not None else 0.0,
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


class Events:
    """The events of one job on their way from the engine's thread to the request's task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """For the engine, which calls it in its own thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self) -> Event:
        """The next event."""
        return await self._queue.get()


class Answering:
    """Collects the events of one job for one request.

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
        self._logprobs = logprobs
        self._events = Events()
        self.on_event = self._events.put

    async def whole(self) -> dict[str, Any] | None:
        """The answer once the job is done; None if it was cancelled.  Raises ApiError if it failed."""
        text = [""] * self._n_choices
        tokens: list[list[TokenLogprob]] = [[] for _ in text]
        reasons: list[FinishReason] = [None] * self._n_choices
        while not isinstance(event := await self._events.get(), Done):
            if isinstance(event, Piece):
                text[event.index] += event.text
                tokens[event.index] += event.tokens
            elif isinstance(event, Finish):
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
        return self._json(self._form.object, choices, self._usage())

    async def stream(self, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events, while it comes; a failure becomes an error event and ends the stream."""
        form, opened = self._form, set[int]()

        def event_of(choices: Sequence[Any], *usage: Usage | None) -> str:
            return _sse(self._json(form.chunk_object, choices, *usage))

        # With include_usage every other chunk says that it has none.
        none = (None,) if include_usage else ()
        while not isinstance(event := await self._events.get(), Done):
            if isinstance(event, Cancelled):
                return
            if isinstance(event, Failed):
                yield _sse(api_error(event).body)
                return
            if isinstance(event, Embedding):
                continue
            if event.index not in opened:
                opened.add(event.index)
                if (opening := form.opening(event.index)) is not None:
                    yield event_of([opening], *none)
            if isinstance(event, Piece):
                tokens = event.tokens if self._logprobs else None
                choices = form.chunks(event.index, event.text, tokens, None)
            else:
                self._count(event)
                choices = form.chunks(event.index, "", None, event.reason)
            for choice in choices:
                yield event_of([choice], *none)
        if include_usage:
            yield event_of([], self._usage())
        yield "data: [DONE]\n\n"

    def _count(self, event: Finish) -> None:
        self._n_generated += event.n_tokens
        if event.index % self._n == 0:  # the other choices of a prompt share it: its tokens are in `n_prompt` once
            self._n_cached += event.n_cached

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._n_prompt,
            completion_tokens=self._n_generated,
            total_tokens=self._n_prompt + self._n_generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._n_cached),
        )

    def _json(self, kind: AnswerKind, choices: Sequence[Any], *usage: Usage | None) -> dict[str, Any]:
        more: dict[str, Any] = {"usage": usage[0]} if usage else {}
        return Answer(object=kind, choices=choices, **self._head, **more).model_dump(exclude_unset=True)


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def api_error(event: Failed) -> errors.ApiError:
    """A failed job as an answer."""
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
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter: nginx, too, passes on at once
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with cancelled_on_disconnect(receive, self._job):
            with suppress(OSError):  # how some servers say that the client has gone
                await self.stream_response(send)
