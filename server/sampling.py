"""Sampling with llama.cpp's own sampler chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import llama_cpp.llama_cpp as lib

#: llama.cpp reads this seed as "draw one yourself".
_RANDOM_SEED = 0xFFFFFFFF

#: Colder than this is greedy: the limit is the same and dividing logits by it could overflow float32.
_COLDEST = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults sample from the plain distribution.

    temperature        0 is greedy
    top_k              0 keeps every token
    top_p, min_p       1 and 0 keep every token
    seed               any integer; the same seed gives the same tokens
    frequency_penalty  subtracted from a logit for each time the token was generated (the prompt does not count)
    presence_penalty   subtracted once if the token was generated
    logit_bias         token id → number added to its logit
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


class Sampler:
    """The chain of one generation, in llama.cpp's order: bias, penalties, top-k, top-p, min-p, temperature.

    n_vocab, n_ctx: of the context it samples from (tokens).  Must be closed.
    """

    def __init__(self, s: Sampling, n_vocab: int, n_ctx: int):
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain: Any = lib.llama_sampler_chain_init(params)
        if s.logit_bias:
            n = len(s.logit_bias)
            biases = (lib.llama_logit_bias * n)(*s.logit_bias.items())
            self._add(lib.llama_sampler_init_logit_bias(n_vocab, n, biases))
        if s.frequency_penalty or s.presence_penalty:
            # 1.0: the repeat penalty, which the OpenAI API does not have, is off
            self._add(lib.llama_sampler_init_penalties(n_vocab, n_ctx, 1.0, s.frequency_penalty, s.presence_penalty))
        if s.temperature < _COLDEST:
            self._add(lib.llama_sampler_init_greedy())
            return
        self._add(lib.llama_sampler_init_top_k(s.top_k))
        self._add(lib.llama_sampler_init_top_p(s.top_p, 1))
        self._add(lib.llama_sampler_init_min_p(s.min_p, 1))
        self._add(lib.llama_sampler_init_temp(s.temperature))
        self._add(lib.llama_sampler_init_dist(s.seed % _RANDOM_SEED))

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it from here on

    def sample(self, context: Any) -> int:
        """Choose a token from the last logits of a ``llama_context *`` and count it for the penalties."""
        return int(lib.llama_sampler_sample(self._chain, context, -1))

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None
