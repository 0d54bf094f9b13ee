"""Answers of chats: messages with their tool calls, whole or in chunks."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import BaseModel

from ropebend.server.chat.tool_calls import ToolStream
from ropebend.server.engine import TokenLogprob
from ropebend.server.openai.answering import AnswerKind, FinishReason, token_name


class TopLogprob(BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A generated token of a chat answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat answer, one entry a token."""

    content: list[ChatLogprob]
    refusal: None


class FunctionCall(BaseModel):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool that the model asks for; with an index when streamed."""

    index: int | None = None
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(BaseModel):
    """A whole answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """A choice of a whole answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatDelta(BaseModel):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChunkChoice(BaseModel):
    """A choice of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


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


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=token_name(t.piece),
                logprob=t.logprob if t.logprob is not None else 0.0,
                bytes=list(t.piece),
                top_logprobs=[TopLogprob(token=token_name(p), logprob=x, bytes=list(p)) for p, x in t.top],
            )
            for t in tokens
        ],
        refusal=None,
    )
