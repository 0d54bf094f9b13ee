"""Answers of chats: messages with their thinking and tool calls, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from ropebend.server.chat.events import CallArguments, CallBegin, Content, Event, Reasoning
from ropebend.server.chat.parser import ChatParser, Expected, parse
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
    """A call of a tool that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionDelta(BaseModel):
    """What a chunk adds to the function of a call; the first of a call has its name."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """What a chunk adds to call `index`; the first of a call has its id."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatMessage(BaseModel):
    """A whole answer.  reasoning_content: what the model thought before it answered."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
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
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """A choice of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatForm:
    """Answers of /v1/chat/completions.  expected: what they may hold."""

    id_prefix = "chatcmpl"
    object: AnswerKind = "chat.completion"
    chunk_object: AnswerKind = "chat.completion.chunk"

    def __init__(self, expected: Expected):
        self._expected = expected
        self._parsers: dict[int, ChatParser] = {}

    def choice(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason) -> ChatChoice:
        """See `Form`."""
        answer = parse(text, self._expected)
        content = answer.content or None if answer.calls else answer.content
        message = ChatMessage(role="assistant", content=content, refusal=None)
        if answer.reasoning:
            message.reasoning_content = answer.reasoning
        if answer.calls:
            message.tool_calls = [
                ToolCall(id=c.id, type="function", function=FunctionCall(name=c.name, arguments=c.arguments))
                for c in answer.calls
            ]
        reason = _reason(reason, len(answer.calls))
        return ChatChoice(index=index, message=message, logprobs=_chat_logprobs(tokens), finish_reason=reason)

    def chunks(
        self, index: int, text: str, tokens: Sequence[TokenLogprob] | None, reason: FinishReason
    ) -> Sequence[ChatChunkChoice]:
        """See `Form`."""
        parser = self._parsers.setdefault(index, ChatParser(self._expected))
        deltas = [_delta(event) for event in parser.feed(text)]
        if reason is not None:
            deltas += [_delta(event) for event in parser.finish()]
        if tokens and not deltas:
            deltas = [ChatDelta(content="")]
        out = [ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None) for delta in deltas]
        if out:
            out[0].logprobs = _chat_logprobs(tokens)
        if reason is not None:
            reason = _reason(reason, parser.n_calls)
            out.append(ChatChunkChoice(index=index, delta=ChatDelta(), logprobs=None, finish_reason=reason))
        return out

    def opening(self, index: int) -> ChatChunkChoice:
        """See `Form`."""
        return ChatChunkChoice(
            index=index, delta=ChatDelta(role="assistant", content=None), logprobs=None, finish_reason=None
        )


def _reason(reason: FinishReason, n_calls: int) -> FinishReason:
    """Why the answer ended; a call that the limit may have cut off is no complete call."""
    return "tool_calls" if n_calls and reason == "stop" else reason


def _delta(event: Event) -> ChatDelta:
    if isinstance(event, Content):
        return ChatDelta(content=event.text)
    if isinstance(event, Reasoning):
        return ChatDelta(reasoning_content=event.text)
    if isinstance(event, CallBegin):
        function = FunctionDelta(name=event.name, arguments="")
        return ChatDelta(tool_calls=[ToolCallDelta(index=event.index, id=event.id, type="function", function=function)])
    assert isinstance(event, CallArguments)
    return ChatDelta(tool_calls=[ToolCallDelta(index=event.index, function=FunctionDelta(arguments=event.text))])


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
