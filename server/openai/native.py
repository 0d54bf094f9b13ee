"""/completion: texts in llama-server's own form, with its defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, field_validator
from starlette.responses import JSONResponse

from ropebend.server.engine import (
    Cancelled,
    Completed,
    Event,
    Failed,
    Finished,
    Generation,
    Piece,
    Progress,
    Sampling,
    TokenLogprob,
)
from ropebend.server.openai.answering import Events, api_error, progress, timings
from ropebend.server.openai.bodies import Int, Text
from ropebend.server.openai.constraining import headers_of, of_body
from ropebend.server.openai.generation import STREAMED, GenerationBody, generations
from ropebend.server.openai.neutral import COMPLETION
from ropebend.server.openai.prompts import check_length, mixed_shape, mixed_tokens
from ropebend.server.openai.serving import Served, Serving
from ropebend.server.openai.sse import EventStream, cancelled_on_disconnect, data_event

router = APIRouter()

#: What llama-server samples with; the command line goes before it.
LLAMA_SERVER = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "penalize_prompt": True}


class OwnRequest(GenerationBody):
    """Body of POST /completion.

    prompt           a text, token ids, both mixed in a list, `{"prompt_string": text}`, or a list of such
    n_probs          likeliest tokens to tell for each token
    post_sampling_probs  with their probabilities after the filters
    return_tokens    tell the tokens
    response_fields  of a whole answer, `a/b` is b in a
    """

    neutral = COMPLETION

    prompt: Any
    n_probs: Annotated[Int, Field(ge=0, le=1024)] | None = None
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    response_fields: list[Text] | None = None

    _prompt_shape = field_validator("prompt", mode="before")(mixed_shape)


@router.post("/completion", responses=STREAMED)
@router.post("/completions", include_in_schema=False)
async def completion(request: Request, body: OwnRequest, serving: Served) -> Response:
    """Continue one prompt or several, in llama-server's own form."""
    facts = serving.facts
    scaled = serving.is_scaled(body.model)
    prompts = await run_in_threadpool(mixed_tokens, body.prompt, "prompt", serving)
    for tokens, _ in prompts:
        check_length(len(tokens), 1, facts, "prompt")
    constraint = await run_in_threadpool(of_body, body.grammar, body.json_schema, serving.engine)
    defaults = replace(serving.defaults, sampling={**LLAMA_SERVER, **serving.defaults.sampling})
    wanted = [
        replace(
            g,
            max_tokens=min(
                serving.max_tokens(body.max_tokens, len(g.prompt), -1, scaled=scaled), facts.n_ctx - len(g.prompt)
            ),
        )
        for g in await run_in_threadpool(
            generations,
            body,
            [tokens for tokens, _ in prompts],
            1,
            body.n_probs or None,
            replace(serving, defaults=defaults),
            scaled,
            constraint,
            after_filters=bool(body.post_sampling_probs),
        )
    ]
    n = body.n or 1
    answers = [OwnAnswer(i, g, prompts[i // n][1], body, serving) for i, g in enumerate(wanted)]
    events = Events()
    submission = serving.engine.submit(wanted, events.put, stream=bool(body.stream))
    headers = headers_of(constraint)
    if body.stream:
        return EventStream(_stream(events, answers), submission, headers)
    async with cancelled_on_disconnect(request.receive, submission):
        while not isinstance(event := await events.get(), Completed):
            if isinstance(event, Failed):
                raise api_error(event)
            if isinstance(event, Cancelled):
                return Response(status_code=499)
            _of(event, answers).take(event)
    whole = [a.selected() for a in answers]
    return JSONResponse(whole if len(whole) > 1 else whole[0], headers=headers)


async def _stream(events: Events, answers: Sequence[OwnAnswer]) -> AsyncIterator[str]:
    while not isinstance(event := await events.get(), Completed):
        if isinstance(event, Cancelled):
            return
        if isinstance(event, Failed):
            yield data_event(api_error(event).body)
            return
        answer = _of(event, answers)
        answer.take(event)
        yield data_event(answer.chunk(event))


def _of(event: Event, answers: Sequence[OwnAnswer]) -> OwnAnswer:
    assert isinstance(event, Piece | Progress | Finished)
    return answers[event.index]


class OwnAnswer:
    """One text as it comes."""

    def __init__(self, index: int, wanted: Generation, prompt: str, body: OwnRequest, serving: Serving):
        self._index = index
        self._wanted = wanted
        self._prompt = prompt
        self._body = body
        self._serving = serving
        self._text = ""
        self._ids: list[int] = []
        self._tokens: list[TokenLogprob] = []
        self._end: Finished | None = None

    def take(self, event: Event) -> None:
        """Add what has come."""
        if isinstance(event, Piece):
            self._text += event.text
            self._ids += event.ids
            self._tokens += event.tokens
        elif isinstance(event, Finished):
            self._end = event

    def chunk(self, event: Event) -> dict[str, Any]:
        """What this event says."""
        if isinstance(event, Finished):
            return self.selected()
        out: dict[str, Any] = {
            "index": self._index,
            "content": event.text if isinstance(event, Piece) else "",
            "tokens": list(event.ids) if isinstance(event, Piece) else [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(self._ids),
            "tokens_evaluated": len(self._wanted.prompt),
        }
        if isinstance(event, Progress):
            out["prompt_progress"] = progress(event)
            if self._wanted.timings:
                out["timings"] = timings(event.timing)
        elif isinstance(event, Piece):
            if event.timing is not None:
                out["timings"] = timings(event.timing)
            if event.tokens:
                out["completion_probabilities"] = self._probabilities(event.tokens)
        return out

    def selected(self) -> dict[str, Any]:
        """The whole answer, or the fields of it that were asked for; in a stream without the text."""
        answer = self._whole()
        if not self._body.response_fields:
            return answer
        out: dict[str, Any] = {}
        for path in self._body.response_fields:
            value: Any = answer
            for key in path.split("/"):
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                out[path] = value
        return out

    def _whole(self) -> dict[str, Any]:
        end, n_prompt = self._end, len(self._wanted.prompt)
        assert end is not None
        streamed = bool(self._body.stream)
        kind = "limit" if end.reason == "length" else "word" if end.stopped_by else "eos"
        out: dict[str, Any] = {
            "index": self._index,
            "content": "" if streamed else self._text,
            "tokens": self._ids if self._body.return_tokens and not streamed else [],
            "id_slot": -1,
            "stop": True,
            "model": self._body.model or self._serving.model,
            "tokens_predicted": end.n_tokens,
            "tokens_evaluated": n_prompt,
            "generation_settings": self._settings(),
            "prompt": self._prompt,
            "has_new_line": "\n" in self._text,
            "truncated": False,
            "stop_type": kind,
            "stopping_word": end.stopped_by,
            "tokens_cached": n_prompt + end.n_tokens,
            "timings": timings(end.timing),
        }
        if self._tokens and not streamed:
            out["completion_probabilities"] = self._probabilities(self._tokens)
        return out

    def _settings(self) -> dict[str, Any]:
        settings = settings_of(self._wanted.sampling, self._wanted.max_tokens)
        ends = self._serving.facts.end_tokens if self._wanted.sampling.ignore_eos else ()
        # JSON has no -inf
        settings["logit_bias"] = [
            *({"token": t, "bias": b if b > -1e30 else None} for t, b in self._wanted.sampling.logit_bias.items()),
            *({"token": t, "bias": None} for t in ends),
        ]
        return settings | {"stop": list(self._wanted.stop), "stream": bool(self._body.stream)}

    def _probabilities(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        after = self._wanted.after_filters
        return [
            {
                **_probability(t.id, t.piece, t.logprob or 0.0, after),
                "top_probs" if after else "top_logprobs": [
                    _probability(i, piece, x, after) for i, (piece, x) in zip(t.top_ids, t.top, strict=True)
                ],
            }
            for t in tokens
        ]


def _probability(token: int, piece: bytes, logprob: float, after: bool) -> dict[str, Any]:
    value = {"prob": float(np.exp(logprob))} if after else {"logprob": logprob}
    return {"id": token, "token": piece.decode(errors="ignore"), "bytes": list(piece), **value}


def defaults_of(serving: Serving) -> Sampling:
    """How texts of /completion are sampled that do not say it."""
    return Sampling(**{**LLAMA_SERVER, **serving.defaults.sampling})


def settings_of(sampling: Sampling, n_predict: int) -> dict[str, Any]:
    """llama-server's words for how a text is sampled."""
    own = {f.name: getattr(sampling, f.name) for f in fields(Sampling)}
    for name in ("constraint", "logit_bias", "penalize_prompt"):
        del own[name]
    own["samplers"] = list(own["samplers"])
    own["dry_sequence_breakers"] = list(own["dry_sequence_breakers"])
    return {**own, "n_predict": n_predict, "max_tokens": n_predict}
