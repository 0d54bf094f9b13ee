"""What the routes share: the engine of a request, the model it names, its prompts and their limits."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import Request

from ropebend.errors import RopebendError
from ropebend.server.chat.templates import ChatTemplate
from ropebend.server.engine.engine import Engine
from ropebend.server.engine.loading import Facts
from ropebend.server.openai import errors
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.requests import Message, Tool

#: Added to the model id: the same weights without the layer scales.
BASE = ":base"


def ready(request: Request) -> tuple[Engine, Facts]:
    """The engine and what it loaded.  ApiError 503 while it is loading."""
    engine: Engine = request.app.state.engine
    if engine.facts is None:
        raise errors.loading()
    return engine, engine.facts


def model_ids(facts: Facts) -> list[str]:
    """The names this server answers to."""
    return [facts.id] if facts.scaling is None else [facts.id, facts.id + BASE]


def is_scaled(name: str | None, facts: Facts) -> bool:
    """Whether the model of this name runs with the layer scales.  ApiError 404 if there is none of that name."""
    if not name:
        return True
    if name not in model_ids(facts):
        names = " and ".join(map(repr, model_ids(facts)))
        message = f"The model {name!r} does not exist; this server runs {names}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return name == facts.id


def check_length(n_prompt: int, max_tokens: int, facts: Facts, param: str) -> None:
    """ApiError 400 with both numbers if a request does not fit the context."""
    if n_prompt + max_tokens > facts.n_ctx:
        raise ApiError(
            400,
            f"This model's maximum context length is {facts.n_ctx} tokens, however you requested "
            f"{n_prompt + max_tokens} tokens ({n_prompt} in your prompt; {max_tokens} for the completion). "
            "Please reduce your prompt or the completion length, or start the server with a larger --ctx-size.",
            param=param,
            code="context_length_exceeded",
        )


def prompts_of(raw: Any, param: str, engine: Engine, facts: Facts) -> list[list[int]]:
    """Token lists of a str, [str], [int] or [[int]].  ApiError 400 if one is empty or holds what is no token."""
    items = _items(raw)
    prompts: list[list[int]] = [engine.tokenize(x) if isinstance(x, str) else x for x in items]
    for i, prompt in enumerate(prompts):
        where = param if items[0] is raw else f"{param}[{i}]"
        if not prompt:
            raise ApiError(400, f"{where}: expected at least one token", param=param, code="invalid_value")
        check_tokens(prompt, where, param, facts)
    return prompts


def texts_of(raw: Any) -> list[str | None]:
    """The texts of the same prompts; None for those given as tokens."""
    return [x if isinstance(x, str) else None for x in _items(raw)]


def _items(raw: Any) -> list[Any]:
    return [raw] if isinstance(raw, str) or isinstance(raw[0], int) else raw


def check_tokens(tokens: list[int], where: str, param: str, facts: Facts) -> None:
    """ApiError 400 if one of them is no token of the vocabulary."""
    wrong = next((t for t in tokens if not 0 <= t < facts.n_vocab), None)
    if wrong is not None:
        message = f"{where}: expected token ids from 0 to {facts.n_vocab - 1}, got {wrong}"
        raise ApiError(400, message, param=param)


@functools.lru_cache(maxsize=4)
def _template(source: str, bos: str, eos: str) -> ChatTemplate:
    return ChatTemplate(source, bos, eos)


def chat_prompt(
    messages: list[Message],
    tools: list[Tool] | None,
    engine: Engine,
    facts: Facts,
    variables: dict[str, Any] | None = None,
) -> list[int]:
    """Tokens of the rendered chat template.  ApiError 400 if there is none or it refuses these messages.

    variables: for the template, beside those that it always gets
    """
    if not facts.chat_template:
        message = f"The model {facts.id!r} carries no chat template; use /v1/completions"
        raise ApiError(400, message, code="no_chat_template")
    try:
        template = _template(facts.chat_template, facts.bos, facts.eos)
        dumped = [t.model_dump(exclude_none=True) for t in tools or []]
        prompt = template.render([m.for_template() for m in messages], dumped or None, variables)
    except RopebendError as e:
        raise ApiError(400, str(e), param="messages") from None
    try:
        # Most templates write BOS themselves; a second one harms the answer.
        tokens = prompt.tokens(
            lambda text, add, parse: engine.tokenize(text, add_special=add, parse_special=parse),
            not prompt.starts_with(facts.bos),
        )
    except UnicodeEncodeError:
        raise ApiError(400, "the text holds half of a surrogate pair, which is not Unicode", param="messages") from None
    if not tokens:
        raise ApiError(400, "messages: the chat template made an empty prompt of them", param="messages")
    return tokens
