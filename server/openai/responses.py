"""/v1/responses: OpenAI's newer way to ask for the next part of a conversation.

Nothing is stored here: each request brings the whole conversation, as with `store: false`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator
from starlette.responses import JSONResponse

from ropebend.server.chat.events import Reasoning
from ropebend.server.chat.parser import ChatParser
from ropebend.server.engine import Cancelled, Completed, Embedding, Failed, Finished, Piece
from ropebend.server.openai.answering import Events, api_error
from ropebend.server.openai.bodies import Body, Int, ListOf, Text
from ropebend.server.openai.chat import ChatRequest, Prepared, prepared
from ropebend.server.openai.constraining import headers_of
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.generation import STREAMED, fingerprint
from ropebend.server.openai.neutral import RESPONSES
from ropebend.server.openai.response_items import Data, Items, new_id
from ropebend.server.openai.serving import Served, Serving
from ropebend.server.openai.sse import EventStream, cancelled_on_disconnect, data_event

router = APIRouter()


class _Item(Body):
    """A part of the input; fields that only its own answers have come back with them."""

    model_config = ConfigDict(extra="ignore")


class Part(_Item):
    """A text in a message, a result or the thinking."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal"]
    text: Text = ""


class Said(_Item):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | ListOf[Part]


class Called(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text


class Returned(_Item):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | ListOf[Part]


class Thought(_Item):
    """What the model thought; `encrypted_content` of other servers cannot be read here."""

    type: Literal["reasoning"]
    summary: list[Part] = Field(default_factory=list)
    content: list[Part] | None = None


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[Said, Tag("message")]
    | Annotated[Called, Tag("function_call")]
    | Annotated[Returned, Tag("function_call_output")]
    | Annotated[Thought, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Body):
    """A function the model may call."""

    type: Literal["function"]
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: Text


class TextFormat(Body):
    """What the text of the answer looks like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = None
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Body):
    """How the answer is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    """How much the model thinks.  A summary is the whole thinking, which is shown anyway."""

    effort: Text | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Body):
    """Body of POST /v1/responses."""

    neutral: ClassVar = RESPONSES

    model: Text | None = None
    input: Text | Annotated[ListOf[Item], Field(min_length=1, max_length=10_000)]
    instructions: Text | None = None
    max_output_tokens: Annotated[Int, Field(ge=1, lt=2**31)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    # of this server, as in chats
    seed: Int | None = None
    top_k: Int | None = None
    min_p: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("previous_response_id", "conversation")
    @classmethod
    def _whole_conversation(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("responses are not stored here; send the whole conversation as input")
        return value

    def as_chat(self) -> ChatRequest:
        """The same as a chat.  ApiError 400 if a chat may not be so."""
        given: dict[str, Any] = {
            "model": self.model,
            "messages": list(_messages(self)),
            "max_tokens": self.max_output_tokens,
            "tools": [{"type": "function", "function": _function(t)} for t in self.tools or []] or None,
            "tool_choice": self.tool_choice,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": _response_format(self.text.format if self.text else None),
        }
        for key in ("temperature", "top_p", "parallel_tool_calls", "seed", "top_k", "min_p", "chat_template_kwargs"):
            given[key] = getattr(self, key)
        if isinstance(self.tool_choice, NamedTool):
            given["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        try:
            return ChatRequest.model_validate({k: v for k, v in given.items() if v is not None})
        except ValidationError as e:
            error = e.errors()[0]
            place = ".".join(str(x) for x in error["loc"])
            raise ApiError(400, f"{place}: {error['msg']}", param=_PARAMS.get(place.split(".")[0], place)) from None


#: Parameters of chats that are called otherwise here.
_PARAMS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}


def _messages(body: ResponsesRequest) -> Iterator[Data]:
    """The input as messages of a chat: what the assistant thought, said and called in a row is one message."""
    if body.instructions:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
        return
    turn: Data | None = None
    for item in body.input:
        if isinstance(item, (Called, Thought)) or (isinstance(item, Said) and item.role == "assistant"):
            turn = turn or {"role": "assistant"}
            if isinstance(item, Called):
                function = {"name": item.name, "arguments": item.arguments}
                turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
            elif isinstance(item, Thought):
                text = _joined(item.content or item.summary)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + text
            else:
                turn["content"] = turn.get("content", "") + _joined(item.content)
            continue
        if turn is not None:
            yield turn
            turn = None
        if isinstance(item, Returned):
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)}
        else:
            yield {"role": item.role, "content": _joined(item.content)}
    if turn is not None:
        yield turn


def _joined(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _function(tool: FunctionTool) -> Data:
    return tool.model_dump(exclude_none=True, exclude={"type"})


def _response_format(format: TextFormat | None) -> Data | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return {"type": "json_object"}
    given = format.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
    return {"type": "json_schema", "json_schema": given}


@router.post("/v1/responses", responses=STREAMED)
async def responses(request: Request, body: ResponsesRequest, serving: Served) -> Response:
    """Answer a conversation."""
    ready = await prepared(body.as_chat(), serving)
    answer = _Answer(body, ready, serving)
    submission = serving.engine.submit(ready.wanted, answer.on_event, stream=True)
    headers = headers_of(ready.wanted[0].sampling.constraint)
    if body.stream:
        return EventStream(answer.stream(), submission, headers)
    async with cancelled_on_disconnect(request.receive, submission):
        async for _ in answer.events():
            pass
    if answer.error is not None:
        raise answer.error
    return JSONResponse(answer.shown(), headers=headers) if answer.ended else Response(status_code=499)


class _Answer:
    """One response while it comes."""

    def __init__(self, body: ResponsesRequest, ready: Prepared, serving: Serving):
        self._body = body
        self._ready = ready
        self._parser = ChatParser(ready.expected)
        self._items = Items()
        self._events = Events()
        self.on_event = self._events.put
        self._head: Data = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model or serving.model,
            "system_fingerprint": fingerprint(ready.wanted, serving),
        }
        self._status = "in_progress"
        self._usage: Data | None = None
        self._n_thought = 0
        self.error: ApiError | None = None
        self.ended = False

    async def events(self) -> AsyncIterator[Data]:
        """The events of the stream; after the last, `shown` is the whole response."""
        yield {"type": "response.created", "response": self.shown()}
        yield {"type": "response.in_progress", "response": self.shown()}
        while not isinstance(event := await self._events.get(), Completed):
            if isinstance(event, Cancelled):
                return
            if isinstance(event, Failed):
                self.error = api_error(event)
                self._status = "failed"
                yield {"type": "response.failed", "response": self.shown()}
                return
            if isinstance(event, Piece):
                new = self._parser.feed(event.text)
                self._n_thought += any(isinstance(e, Reasoning) for e in new)
                for e in new:
                    for out in self._items.add(e):
                        yield out
            elif isinstance(event, Finished):
                for e in self._parser.finish():
                    for out in self._items.add(e):
                        yield out
                complete = event.reason == "stop"
                for out in self._items.finish(complete):
                    yield out
                self._status = "completed" if complete else "incomplete"
                self._count(event)
            else:
                assert not isinstance(event, Embedding)
        self.ended = True
        yield {"type": f"response.{self._status}", "response": self.shown()}

    async def stream(self) -> AsyncIterator[str]:
        """The same as server-sent events."""
        n = 0
        async for event in self.events():
            yield data_event({**event, "sequence_number": n}, event["type"])
            n += 1

    def _count(self, event: Finished) -> None:
        n_prompt = self._ready.n_prompt
        self._usage = {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": event.n_cached, "cache_write_tokens": 0},
            "output_tokens": event.n_tokens,
            "output_tokens_details": {"reasoning_tokens": min(self._n_thought, event.n_tokens)},
            "total_tokens": n_prompt + event.n_tokens,
        }

    def shown(self) -> Data:
        """The response as it is now."""
        body, sampling = self._body, self._ready.wanted[0].sampling
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        effort = body.reasoning.effort if body.reasoning else None
        choice = body.tool_choice or "auto"
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._head,
            "status": self._status,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "error": {"code": "server_error", "message": str(self.error)} if self.error else None,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "output": list(self._items.output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": effort, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [t.model_dump(exclude_none=True) for t in body.tools or []],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": self._usage,
        }
