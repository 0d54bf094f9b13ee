"""Prompts and other texts as they come in a body: their shapes, their tokens, and whether they fit the context."""

from __future__ import annotations

from typing import Any

from ropebend.server.engine import Facts
from ropebend.server.openai.bodies import Int, ListOf, Text
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.serving import Serving

#: Texts of one request, prompts times n.
MAX_CHOICES = 2048

#: What `prompt` and `input` may be; see `prompt_shape`.
Prompts = Text | ListOf[Text] | ListOf[Int] | ListOf[ListOf[Int]]


def prompt_shape(value: Any) -> Any:
    """Validator for `Prompts` that says in one sentence what is expected."""
    kinds = {type(x) for x in value} if isinstance(value, list) else set()
    if kinds and not kinds <= {int, float} and len(value) > MAX_CHOICES:
        raise ValueError(f"expected at most {MAX_CHOICES} texts, got {len(value)}")
    if isinstance(value, str) or (kinds and (kinds <= {int, float} or kinds in ({str}, {list}))):
        return value
    raise ValueError("expected a string, a list of strings, a list of token ids or a list of such lists")


def token_lists(raw: Any, param: str, serving: Serving) -> list[list[int]]:
    """The tokens of `Prompts`.  ApiError 400 if one is empty, cannot fit the context or holds what is no token."""
    items = items_of(raw)
    prompts: list[list[int]] = []
    for i, item in enumerate(items):
        where = param if items[0] is raw else f"{param}[{i}]"
        if isinstance(item, str):
            check_text(item, serving.facts, param)
        prompt = serving.engine.tokenize(item) if isinstance(item, str) else item
        if not prompt:
            raise ApiError(400, f"{where}: expected at least one token", param=param, code="invalid_value")
        check_tokens(prompt, where, param, serving.facts)
        prompts.append(prompt)
    return prompts


def mixed_shape(value: Any) -> Any:
    """Validator for what llama-server takes for a prompt or a text to embed, where its parts may be mixed."""
    items = value if _is_several(value) else [value]
    if len(items) > MAX_CHOICES:
        raise ValueError(f"expected at most {MAX_CHOICES} texts, got {len(items)}")
    for item in items or [[]]:
        parts = item if isinstance(item, list) else [item]
        if not parts or not all(_is_token(x) or _text_in(x) is not None for x in parts):
            raise ValueError(
                "expected a string, token ids, a list of both, an object with prompt_string or text parts in content, "
                "or a list of such"
            )
        for part in parts:
            if not _is_token(part):
                (_text_in(part) or "").encode()
    return value


def mixed_tokens(value: Any, param: str, serving: Serving) -> list[tuple[list[int], str]]:
    """Tokens and text of each prompt of `mixed_shape`.  ApiError 400 as `token_lists`.  Blocks."""
    items = value if _is_several(value) else [value]
    out: list[tuple[list[int], str]] = []
    for i, item in enumerate(items):
        where = f"{param}[{i}]" if _is_several(value) else param
        tokens: list[int] = []
        parts = item if isinstance(item, list) else [item]
        for place, part in enumerate(parts):
            if _is_token(part):
                tokens.append(int(part))
                continue
            text = _text_in(part) or ""
            check_text(text, serving.facts, param)
            tokens += serving.engine.tokenize(text, add_special=place == 0)
        if not tokens:
            raise ApiError(400, f"{where}: expected at least one token", param=param, code="invalid_value")
        check_tokens(tokens, where, param, serving.facts)
        out.append((tokens, serving.engine.detokenize(tokens)))
    return out


def _is_several(value: Any) -> bool:
    """A list with a token id in it is one prompt, another list is several."""
    return isinstance(value, list) and not any(_is_token(x) for x in value)


def _is_token(x: Any) -> bool:
    return type(x) is int or (type(x) is float and x.is_integer())


def _text_in(x: Any) -> str | None:
    """The text of a string or an object; None if it is neither."""
    if isinstance(x, str):
        return x
    if not isinstance(x, dict):
        return None
    if x.keys() == {"prompt_string"}:
        return _text_in(x["prompt_string"]) if isinstance(x["prompt_string"], str) else None
    parts = x.get("content")
    if x.keys() != {"content"} or not isinstance(parts, list):
        return None
    texts = [p["text"] if isinstance(p, dict) and p.get("type") == "text" and "text" in p else None for p in parts]
    known = [t for t in texts if isinstance(t, str)]
    return "".join(known) if known and len(known) == len(texts) else None


def items_of(raw: Any) -> list[Any]:
    """Each text or token list of `Prompts`."""
    return [raw] if isinstance(raw, str) or isinstance(raw[0], int) else raw


def check_tokens(tokens: list[int], where: str, param: str, facts: Facts) -> None:
    """ApiError 400 if one of them is no token of the vocabulary."""
    wrong = next((t for t in tokens if not 0 <= t < facts.n_vocab), None)
    if wrong is not None:
        message = f"{where}: expected token ids from 0 to {facts.n_vocab - 1}, got {wrong}"
        raise ApiError(400, message, param=param)


def check_text(text: str, facts: Facts, param: str) -> None:
    """ApiError 400 if a text is so long that its tokens cannot fit the context, whatever they are.

    Before tokenising: that takes time and memory that grow with the text.
    """
    least = facts.fewest_tokens(text)
    if least > facts.n_ctx:
        _too_long(f"at least {least} tokens in your prompt", facts, param, least)


def check_length(n_prompt: int, max_tokens: int, facts: Facts, param: str) -> None:
    """ApiError 400 with both numbers if a request does not fit the context."""
    if n_prompt + max_tokens > facts.n_ctx:
        what = f"{n_prompt + max_tokens} tokens ({n_prompt} in your prompt; {max_tokens} for the completion)"
        _too_long(what, facts, param, n_prompt)


def _too_long(requested: str, facts: Facts, param: str, n_prompt: int) -> None:
    start = "The input is too large. " if param == "input" else ""
    raise ApiError(
        400,
        f"{start}This model's maximum context length is {facts.n_ctx} tokens, however you requested {requested}. "
        "Please reduce your prompt or the completion length, or start the server with a larger --ctx-size.",
        param=param,
        code="context_length_exceeded",
        type="exceed_context_size_error",
        more={"n_prompt_tokens": n_prompt, "n_ctx": facts.n_ctx},
    )
