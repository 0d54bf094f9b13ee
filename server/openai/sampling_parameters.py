"""The parameters of sampling, by the names that OpenAI and llama-server give them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field, field_validator

from ropebend.server.engine import Engine, Sampling
from ropebend.server.engine.sampler_names import read_samplers
from ropebend.server.engine.sampling import SamplerName
from ropebend.server.openai.bodies import Body, Int, Text
from ropebend.server.openai.errors import ApiError
from ropebend.server.structured.constraints import Constraint

Count = Annotated[Int, Field(ge=-1, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]

#: Token id or text, and what is added to the logit.
Bias = tuple[int | str, Annotated[float, Field(allow_inf_nan=True)]]


class SamplingBody(Body):
    """How the next token is chosen; see `Sampling`."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: Annotated[float, Field(ge=-1, le=1e6)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dynatemp_range: NotNegative | None = None
    dynatemp_exponent: NotNegative | None = None
    min_keep: Annotated[Int, Field(ge=0, lt=2**31)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Count | None = None
    dry_multiplier: NotNegative | None = None
    dry_base: NotNegative | None = None
    dry_allowed_length: Annotated[Int, Field(ge=0, lt=2**31)] | None = None
    dry_penalty_last_n: Count | None = None
    dry_sequence_breakers: Annotated[list[Annotated[Text, Field(max_length=40)]], Field(max_length=64)] | None = None
    mirostat: Annotated[Int, Field(ge=0, le=2)] | None = None
    mirostat_tau: NotNegative | None = None
    mirostat_eta: NotNegative | None = None
    adaptive_target: Annotated[float, Field(ge=-1, le=1)] | None = None
    adaptive_decay: Annotated[float, Field(ge=0, le=0.99)] | None = None
    samplers: tuple[SamplerName, ...] | None = None
    ignore_eos: bool | None = None
    logit_bias: list[Bias] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = None

    @field_validator("seed")
    @classmethod
    def _any_seed(cls, value: int | None) -> int | None:
        return None if value == -1 else value  # as llama.cpp's programs say it

    @field_validator("samplers", mode="before")
    @classmethod
    def _samplers(cls, value: Any) -> Any:
        return None if value is None else read_samplers(value)

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, value: Any) -> Any:
        return None if value is None else _biases_of(value)

    def sampling(
        self, seed: int, constraint: Constraint | None, defaults: Mapping[str, Any], biases: Mapping[int, float]
    ) -> Sampling:
        """The sampling parameters.

        defaults: fields of `Sampling` for what the body does not say; biases: those of the body, by token.
        """
        names = {f.name for f in fields(Sampling)} - {"logit_bias", "seed"}
        given = {k: v for k in names if (v := getattr(self, k, None)) is not None}
        if "dry_sequence_breakers" in given:
            given["dry_sequence_breakers"] = tuple(given["dry_sequence_breakers"])
        if "repeat_last_n" in given:  # a parameter of llama.cpp's: then all three penalties are as there
            given["penalize_prompt"] = True
        if "top_k" in given:
            given["top_k"] = max(given["top_k"], 0)
        return Sampling(**{**defaults, **given, "seed": seed, "logit_bias": biases, "constraint": constraint})

    def biases(self, engine: Engine, n_vocab: int) -> dict[int, float]:
        """Token → bias.  ApiError 400 if a token is none.  Blocks: texts are tokenised."""
        out: dict[int, float] = {}
        for key, bias in self.logit_bias or ():
            tokens = [key] if isinstance(key, int) else engine.tokenize(key, add_special=False, parse_special=False)
            for token in tokens:
                if not 0 <= token < n_vocab:
                    message = f"logit_bias: expected token ids from 0 to {n_vocab - 1}, got {token}"
                    raise ApiError(400, message, param="logit_bias")
                out[token] = bias
        return out


def _biases_of(value: Any) -> list[Bias]:
    """A mapping of ids or texts, or pairs of them; false as a bias bans a token."""
    pairs: Sequence[Any]
    if isinstance(value, dict):
        pairs = [(int(k) if k.isascii() and k.isdigit() and len(k) < 10 else k, v) for k, v in value.items()]
    elif isinstance(value, list) and all(isinstance(x, list) and len(x) == 2 for x in value):
        pairs = value
    else:
        raise ValueError("expected an object of token ids (or texts) and numbers, or a list of such pairs")
    out: list[Bias] = []
    for key, bias in pairs:
        if isinstance(key, float) and key.is_integer():
            key = int(key)
        if isinstance(key, bool) or not isinstance(key, int | str) or key == "":
            raise ValueError(f"expected a token id or a text, got {key!r}")
        if bias is False:
            bias = -math.inf
        elif isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"{key}: expected a number from -100 to 100, or false, got {bias!r}")
        if isinstance(key, str):
            try:
                key.encode()
            except UnicodeEncodeError:
                raise ValueError("a text holds half of a surrogate pair, which is not Unicode") from None
        out.append((key, float(bias)))
    return out
