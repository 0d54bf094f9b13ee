"""Sampling with llama.cpp's own sampler chain."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.server.structured.constraints import Constraint, Walk

#: llama.cpp reads this seed as "draw one yourself".
_RANDOM_SEED = 0xFFFFFFFF

#: Colder than this is greedy: the limit is the same and dividing logits by it could overflow float32.
_COLDEST = 1e-4

#: Tokens that `repeat_penalty` looks back, as in llama-server.
REPEAT_LAST_N = 64

_TOKEN_DATA = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama_token_data


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults sample from the plain distribution.

    temperature        0 is greedy
    top_k              0 keeps every token
    top_p, min_p       1 and 0 keep every token
    seed               any integer; the same seed gives the same tokens
    frequency_penalty  subtracted from a logit for each time the token was generated (the prompt does not count)
    presence_penalty   subtracted once if the token was generated
    repeat_penalty     divides the logits of the last 64 tokens, the prompt's included; 1 is off
    logit_bias         token id → number added to its logit
    constraint         what the text must follow, or None
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None

    @property
    def is_argmax(self) -> bool:
        """True if the next token is simply the one with the largest logit, of those that may come next."""
        plain = not (self.frequency_penalty or self.presence_penalty or self.logit_bias)
        return self.temperature < _COLDEST and plain and self.repeat_penalty == 1.0


class Sampler:
    """The chain of one generation, in llama.cpp's order: bias, penalties, top-k, top-p, min-p, temperature.

    vocab: ``llama_vocab *``; max_tokens: that will be sampled; prompt: tokens before them.
    Must be closed.
    """

    def __init__(self, s: Sampling, vocab: Any, max_tokens: int = 1, prompt: Sequence[int] = ()):
        self._n_vocab = n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._is_argmax = s.is_argmax
        self._walk: Walk | None = None if s.constraint is None else s.constraint.begin()
        self._chain: Any = lib.llama_sampler_chain_init(params)
        if s.logit_bias:
            n = len(s.logit_bias)
            biases = (lib.llama_logit_bias * n)(*s.logit_bias.items())
            self._add(lib.llama_sampler_init_logit_bias(n_vocab, n, biases))
        if s.repeat_penalty != 1.0:
            repeat = lib.llama_sampler_init_penalties(n_vocab, REPEAT_LAST_N, s.repeat_penalty, 0.0, 0.0)
            for token in prompt[-REPEAT_LAST_N:]:
                lib.llama_sampler_accept(repeat, token)
            self._add(repeat)
        if s.frequency_penalty or s.presence_penalty:
            penalties = (1.0, s.frequency_penalty, s.presence_penalty)
            self._add(lib.llama_sampler_init_penalties(n_vocab, max_tokens, *penalties))
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

    def sample(self, context: Any, i: int, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token from the logits of the i-th token of the last batch, and count it for the penalties.

        context: ``llama_context *``; logits: the same logits, float32 [n_vocab].
        """
        if self._walk is None:
            return int(lib.llama_sampler_sample(self._chain, context, i))
        # As in llama.cpp's own programs: to ask about one token is cheap, about all of them is not.
        token = self._choose(logits)
        if not self._walk.allows(token):
            allowed = self._walk.allowed(self._n_vocab)
            if not len(allowed):
                raise RopebendError("the grammar allows no token of this model's vocabulary here")
            token = self._choose(logits, allowed)
        self._walk.accept(token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    @property
    def ended(self) -> bool:
        """True if what the text follows is complete, so that nothing may come next."""
        return self._walk is not None and self._walk.ended

    def _choose(self, logits: npt.NDArray[np.float32], among: npt.NDArray[np.int64] | None = None) -> int:
        """A token, of those whose ids are given or of all; does not count it."""
        if self._is_argmax:
            return int(logits.argmax() if among is None else among[logits[among].argmax()])
        candidates = np.zeros(len(logits) if among is None else len(among), _TOKEN_DATA)
        candidates["id"] = np.arange(len(logits)) if among is None else among
        candidates["logit"] = logits if among is None else logits[among]
        data = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data, len(candidates), -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
        self._chain = None
