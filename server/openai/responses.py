"""Responses of the OpenAI API; what is not set is left out of the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

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


class Answer(BaseModel):
    """What both endpoints answer, whole or in chunks; with include_usage the chunks before the last have usage null."""

    id: str
    object: AnswerKind
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[CompletionChoice | ChatChoice | ChatChunkChoice]
    usage: Usage | None = None
