"""/tokenize, /detokenize and /tokenizer_info: texts as tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from ropebend.server.openai.bodies import Body, Int, ListOf, Text
from ropebend.server.openai.errors import ApiError
from ropebend.server.openai.messages import Messages
from ropebend.server.openai.prompts import check_tokens
from ropebend.server.openai.serving import Served
from ropebend.server.openai.templating import ChatBody, prompt_of, tokens_of

router = APIRouter()


class TokenizeRequest(Body):
    """Body of POST /tokenize: llama-server's `content` or vLLM's `prompt` or `messages`.

    add_special (vLLM: add_special_tokens)  BOS and EOS as the model wants them; default: true only with `prompt`
    parse_special                           control tokens written in the text are read as such
    with_pieces                             llama-server: each token with its text; vLLM: return_token_strs
    """

    model: Text | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """Body of POST /detokenize; the answer has llama-server's `content` and vLLM's `prompt`."""

    model: Text | None = None
    tokens: Annotated[ListOf[Int], Field(max_length=2**20)]


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, serving: Served) -> dict[str, Any]:
    """Tokens of a text (llama-server's content, vLLM's prompt) or of a chat (vLLM's messages)."""
    engine, facts = serving.engine, serving.facts
    serving.is_scaled(body.model)
    given = [x for x in (body.content, body.prompt, body.messages) if x is not None]
    if len(given) != 1:
        raise ApiError(400, "content, prompt, messages: expected exactly one of them", param="content")
    if body.messages is not None:
        chat = ChatBody(messages=body.messages)
        tokens = await run_in_threadpool(lambda: tokens_of(prompt_of(chat, [], serving), serving))
    else:
        special = body.add_special_tokens if body.add_special is None else body.add_special
        if special is None:
            special = body.prompt is not None
        text = body.prompt if body.content is None else body.content
        assert text is not None
        tokens = await run_in_threadpool(engine.tokenize, text, add_special=special, parse_special=body.parse_special)
    out: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": facts.n_ctx}
    if body.return_token_strs:
        out["token_strs"] = [p.decode(errors="replace") for p in engine.pieces(tokens)]
    if body.with_pieces:
        out["tokens"] = [{"id": t, "piece": _piece(p)} for t, p in zip(tokens, engine.pieces(tokens), strict=True)]
    return out


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, serving: Served) -> dict[str, str]:
    """The text of tokens."""
    engine, facts = serving.engine, serving.facts
    serving.is_scaled(body.model)
    check_tokens(body.tokens, "tokens", "tokens", facts)
    text = await run_in_threadpool(engine.detokenize, body.tokens)
    return {"content": text, "prompt": text}


@router.get("/tokenizer_info")
async def tokenizer_info(serving: Served) -> dict[str, Any]:
    """The tokeniser in vLLM's words (and lm-evaluation-harness's)."""
    facts = serving.facts
    return {
        "tokenizer_class": "llama.cpp",
        "vocab_size": facts.n_vocab,
        "bos_token": facts.bos or None,
        "eos_token": facts.eos or None,
        "pad_token": facts.eos or None,
        "add_bos_token": facts.add_bos,
        "model_max_length": facts.n_ctx,
        "chat_template": serving.chats.source(facts),
    }
