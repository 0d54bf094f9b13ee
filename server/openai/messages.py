"""The messages and tools of a chat, as they are sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ropebend.server.openai.bodies import Body, ListOf, Text


class _Open(Body):
    """What other fields it has are kept: clients and templates agree on more than the API names."""

    model_config = ConfigDict(extra="allow")


class TextPart(_Open):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: Any = Field(default=None, exclude=True)  # what begins alike is shared without it


class CalledFunction(_Open):
    """arguments: JSON as the model wrote it, or what it says."""

    name: Text
    arguments: Text | dict[str, Any]


class CalledTool(_Open):
    """A tool call of an earlier answer, sent back."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = Field(default=None, exclude=True)  # of a streamed answer


#: Fields of messages that come back with the answers of the openai client, or steer caches: templates do without.
_NOT_FOR_TEMPLATES = {"refusal", "function_call", "audio", "annotations", "cache_control"}


class Message(_Open):
    """One message of a chat.  The fields that must be null are features that are not supported."""

    role: Annotated[Text, Field(min_length=1)]
    content: Text | ListOf[TextPart] | None = None
    name: Text | None = None
    tool_calls: ListOf[CalledTool] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None

    function_call: None = None
    audio: None = None

    @model_validator(mode="after")
    def _something_said(self) -> Message:
        # an empty answer and a tool that returned nothing come back as null
        if self.content is None and not self.tool_calls and self.role not in ("assistant", "tool"):
            raise PydanticCustomError("no_content", "content: expected a text, or tool_calls")
        return self

    def for_template(self) -> dict[str, Any]:
        """As `ropebend.server.chat` takes it: without what is null or says nothing to a template."""
        return self.model_dump(exclude_none=True, exclude=_NOT_FOR_TEMPLATES)


Messages = Annotated[ListOf[Message], Field(min_length=1, max_length=10_000)]


FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]


class Function(_Open):
    """A function the model may call.  parameters: JSON schema of its arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Open):
    """A tool the model may call."""

    type: Literal["function"]
    function: Function
    cache_control: Any = Field(default=None, exclude=True)
