"""Chats as prompts: the template in use, what a request may say of it, and /apply-template."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from ropebend.errors import RopebendError
from ropebend.server.chat.chats import Chats
from ropebend.server.chat.control import Prompt
from ropebend.server.chat.parser import opened_by
from ropebend.server.chat.templates import ChatTemplate
from ropebend.server.openai.bodies import Body, Text
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.messages import Messages, Tool
from ropebend.server.openai.neutral import APPLIED, Rule
from ropebend.server.openai.prompts import check_text
from ropebend.server.openai.serving import Served, Serving

router = APIRouter()


class ChatBody(Body):
    """What a prompt is made of.

    add_generation_prompt   false: without the beginning of an answer at the end
    continue_final_message  the answer continues the last message: true, or which text of it.  Null: as the server's
                            --prefill-assistant says, if that message is the assistant's
    reasoning_effort        for templates that know it; none: without thinking
    """

    messages: Messages
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | Literal["content", "reasoning_content"] | None = None
    reasoning_effort: Annotated[Text, Field(min_length=1, max_length=64)] | None = None


class ApplyRequest(ChatBody):
    """Body of POST /apply-template."""

    neutral: ClassVar[Mapping[str, Rule]] = APPLIED

    model: Text | None = None


@router.post("/apply-template")
async def apply_template(body: ApplyRequest, serving: Served) -> dict[str, str]:
    """The prompt of a chat, as text."""
    serving.is_scaled(body.model)
    prompt = await run_in_threadpool(prompt_of, body, body.tools or [], serving)
    return {"prompt": prompt.text}


def template_of(serving: Serving) -> ChatTemplate:
    """The template in use.  ApiError 400 if it is not valid."""
    try:
        return serving.chats.template(serving.facts)
    except RopebendError as e:
        raise ApiError(400, f"{e}; see --chat-template", code="no_chat_template") from None


def prompt_of(body: ChatBody, tools: list[Tool], serving: Serving) -> Prompt:
    """The prompt of a chat.  ApiError 400 if the template refuses it.

    tools: those of the body that may be called
    """
    template = template_of(serving)
    messages = [m.for_template() for m in body.messages]
    continued = _continued(body, messages[-1], serving.chats)
    try:
        return template.render(
            messages,
            [t.model_dump(exclude_none=True) for t in tools],
            variables_of(body, serving.chats),
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final=continued,
            read_control=serving.chats.read_control,
        )
    except RopebendError as e:
        raise ApiError(400, str(e), param="messages") from None


def variables_of(body: ChatBody, chats: Chats) -> dict[str, Any]:
    """What the template gets beside the messages; what the request says goes before the command line."""
    variables = {**chats.variables, **(body.chat_template_kwargs or {})}
    if not isinstance(variables.get("enable_thinking", True), bool):
        message = f"chat_template_kwargs.enable_thinking: expected true or false, got {variables['enable_thinking']!r}"
        raise ApiError(400, message, param="chat_template_kwargs", code="invalid_value")
    if body.reasoning_effort == "none":
        variables.pop("reasoning_effort", None)
        variables["enable_thinking"] = False
    elif body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
    return variables


def opened_thinking(body: ChatBody, prompt: Prompt, chats: Chats) -> str:
    """The end of the prompt from where it opens the thinking that the answer goes on with; "" if it does not."""
    inside = _continued(body, body.messages[-1].for_template(), chats) == "reasoning_content"
    return opened_by(prompt.text, inside)


def _continued(body: ChatBody, last: dict[str, Any], chats: Chats) -> Literal["content", "reasoning_content"] | None:
    """Which text of the last message the answer continues.  ApiError 400 if it cannot, but should."""
    asked = body.continue_final_message
    if asked and body.add_generation_prompt:
        message = "add_generation_prompt and continue_final_message: expected only one of them to be true"
        raise ApiError(400, message, param="continue_final_message", code="invalid_value")
    texts: list[Literal["content", "reasoning_content"]] = ["content", "reasoning_content"]
    can = [key for key in texts if last.get(key)] if last["role"] == "assistant" and not last.get("tool_calls") else []
    if asked is None:
        prefill = chats.prefill and body.add_generation_prompt is None
        return can[0] if can and prefill else None
    if asked is False:
        return None
    wanted = can[:1] if asked is True else [key for key in can if key == asked]
    if not wanted:
        message = "continue_final_message: expected the last message to be a text of the assistant, without tool calls"
        raise ApiError(400, message, param="continue_final_message", code="invalid_value")
    return wanted[0]


def tokens_of(prompt: Prompt, serving: Serving) -> list[int]:
    """The tokens of a prompt.  ApiError 400 if it has none, or is longer than the context."""
    facts = serving.facts
    try:
        check_text(prompt.text, facts, "messages")
        tokens = prompt.tokens(
            functools.partial(_tokenize, serving),
            template_of(serving).guarded,
            # most templates write BOS themselves; a second one harms the answer
            add_special=not prompt.starts_with(facts.bos),
        )
    except UnicodeEncodeError:
        raise ApiError(400, "the text holds half of a surrogate pair, which is not Unicode", param="messages") from None
    if not tokens:
        raise ApiError(400, "messages: the chat template made an empty prompt of them", param="messages")
    return tokens


def _tokenize(serving: Serving, text: str, add_special: bool, parse_special: bool) -> list[int]:
    return serving.engine.tokenize(text, add_special=add_special, parse_special=parse_special)
