"""Sampling with llama.cpp's own sampler chain."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.server.structured.constraints import Constraint, Walk

#: llama.cpp reads this seed as "draw one yourself".
_RANDOM_SEED = 0xFFFFFFFF

#: Colder than this is greedy: the limit is the same and dividing logits by it could overflow float32.
_COLDEST = 1e-4

#: Of the first mirostat, as llama.cpp's programs have it.
_MIROSTAT_M = 100

_TOKEN_DATA = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama_token_data

SamplerName = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature", "adaptive_p"
]

#: llama-server's order.
SAMPLERS: tuple[SamplerName, ...] = (
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults sample from the plain distribution.

    The names and meanings are llama-server's.  -1 as a number of tokens is the whole text.

    temperature        0 is greedy
    dynatemp_range     the temperature moves by this much with the entropy, to the power `dynatemp_exponent`
    top_k              0 keeps every token
    top_p, min_p, typical_p, top_n_sigma  1, 0, 1 and -1 keep every token
    xtc_probability    how often the likeliest of the tokens above `xtc_threshold` are dropped; 0 is off
    min_keep           tokens that top_p, min_p, typical_p and XTC leave at least
    seed               any integer; the same seed gives the same tokens
    frequency_penalty  subtracted from a logit for each time the token was generated (the prompt does not count)
    presence_penalty   subtracted once if the token was generated
    repeat_penalty     divides the logits of the last `repeat_last_n` tokens, the prompt's included; 1 is off
    penalize_prompt    frequency and presence penalty look at those tokens, too, as in llama-server
    dry_…              a penalty that grows with the length of what would be repeated; multiplier 0 is off
    mirostat           1 or 2: instead of all the filters, aim at a surprise of `mirostat_tau`
    adaptive_target    of the sampler adaptive_p, the probability it aims at
    samplers           the filters in their order; others are off
    ignore_eos         never end the text
    logit_bias         token id → number added to its logit
    constraint         what the text must follow, or None
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    min_keep: int = 0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    penalize_prompt: bool = False
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    samplers: tuple[SamplerName, ...] = SAMPLERS
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None

    @property
    def is_argmax(self) -> bool:
        """True if the next token is simply the one with the largest logit, of those that may come next."""
        plain = not (self.frequency_penalty or self.presence_penalty or self.logit_bias or self.ignore_eos)
        keeps_best = not (self.xtc_probability > 0 or self.typical_p < 1 or self.dry_multiplier or self.dynatemp_range)
        usual = self.mirostat == 0 and self.samplers == SAMPLERS
        return self.temperature < _COLDEST and plain and keeps_best and usual and self.repeat_penalty == 1.0


class Sampler:
    """The chain of one generation, as llama-server makes it: bias, the filters in their order, and the choice.

    vocab: ``llama_vocab *``; max_tokens: that will be sampled; prompt: tokens before them.
    Must be closed.
    """

    def __init__(self, s: Sampling, vocab: Any, max_tokens: int = 1, prompt: Sequence[int] = ()):
        self._s = s
        self._vocab = vocab
        self._prompt = prompt
        self._n_all = len(prompt) + max_tokens
        self._max_tokens = max_tokens
        self._n_vocab = n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        self._seed = s.seed % _RANDOM_SEED
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._is_argmax = s.is_argmax
        self._walk: Walk | None = None if s.constraint is None else s.constraint.begin()
        self._chain: Any = lib.llama_sampler_chain_init(params)
        biases = dict(s.logit_bias)
        if s.ignore_eos:
            biases |= dict.fromkeys(ends_of(vocab), -math.inf)
        if biases:
            n = len(biases)
            self._add(lib.llama_sampler_init_logit_bias(n_vocab, n, (lib.llama_logit_bias * n)(*biases.items())))
        temperature = 0.0 if s.temperature < _COLDEST else s.temperature
        if s.mirostat:
            self._add(lib.llama_sampler_init_temp(temperature))
            aim = (self._seed, s.mirostat_tau, s.mirostat_eta)
            if s.mirostat == 1:
                self._add(lib.llama_sampler_init_mirostat(n_vocab, *aim, _MIROSTAT_M))
            else:
                self._add(lib.llama_sampler_init_mirostat_v2(*aim))
            return
        for name in s.samplers:
            self._add_filter(name, temperature)
        if "adaptive_p" in s.samplers:
            self._add(lib.llama_sampler_init_adaptive_p(s.adaptive_target, s.adaptive_decay, self._seed))
        else:
            self._add(lib.llama_sampler_init_dist(self._seed))

    def _add_filter(self, name: SamplerName, temperature: float) -> None:
        s = self._s
        if name == "penalties":
            self._add_penalties()
        elif name == "dry" and s.dry_multiplier:
            window = self._n_all if s.dry_penalty_last_n < 0 else s.dry_penalty_last_n
            breakers = [text.encode() for text in s.dry_sequence_breakers]
            strings = (ctypes.c_char_p * len(breakers))(*breakers)
            dry = lib.llama_sampler_init_dry(
                self._vocab, s.dry_multiplier, s.dry_base, s.dry_allowed_length, window, strings, len(breakers)
            )
            self._add_after_prompt(dry, window)
        elif name == "top_n_sigma":
            self._add(lib.llama_sampler_init_top_n_sigma(s.top_n_sigma))
        elif name == "top_k":
            self._add(lib.llama_sampler_init_top_k(s.top_k))
        elif name == "typ_p":
            self._add(lib.llama_sampler_init_typical(s.typical_p, s.min_keep))
        elif name == "top_p":
            self._add(lib.llama_sampler_init_top_p(s.top_p, s.min_keep))
        elif name == "min_p":
            self._add(lib.llama_sampler_init_min_p(s.min_p, s.min_keep))
        elif name == "xtc":
            self._add(lib.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, self._seed))
        elif name == "temperature":
            self._add(lib.llama_sampler_init_temp_ext(temperature, s.dynatemp_range, s.dynatemp_exponent))

    def _add_penalties(self) -> None:
        s, n_vocab = self._s, self._n_vocab
        window = self._n_all if s.repeat_last_n < 0 else s.repeat_last_n
        counted = (s.frequency_penalty, s.presence_penalty)
        if s.penalize_prompt:
            if s.repeat_penalty != 1.0 or any(counted):
                penalties = lib.llama_sampler_init_penalties(n_vocab, window, s.repeat_penalty, *counted)
                self._add_after_prompt(penalties, window)
            return
        if s.repeat_penalty != 1.0:
            repeat = lib.llama_sampler_init_penalties(n_vocab, window, s.repeat_penalty, 0.0, 0.0)
            self._add_after_prompt(repeat, window)
        if any(counted):
            self._add(lib.llama_sampler_init_penalties(n_vocab, self._max_tokens, 1.0, *counted))

    def _add_after_prompt(self, sampler: Any, window: int) -> None:
        """Add a sampler that has seen the last `window` tokens of the prompt."""
        for token in self._prompt[-window:] if window else ():
            lib.llama_sampler_accept(sampler, token)
        self._add(sampler)

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it from here on

    def sample(self, context: Any, i: int, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token from the logits of the i-th token of the last batch, and count it for the penalties.

        context: ``llama_context *``; logits: the same logits, float32 [n_vocab].
        """
        if self._walk is None:
            return int(lib.llama_sampler_sample(self._chain, context, i))
        # As in llama.cpp's own programs: to ask about one token is cheap, about all of them is not.
        token = self._drawn(logits)
        if not self._walk.allows(token):
            allowed = self._walk.allowed(self._n_vocab)
            if not len(allowed):
                raise RopebendError("the grammar allows no token of this model's vocabulary here")
            token = self._drawn(logits, allowed)
        self._walk.accept(token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def sample_with_probabilities(self, logits: npt.NDArray[np.float32]) -> tuple[int, list[tuple[int, float]]]:
        """`sample`, and the tokens that were left to choose from with their probabilities, likeliest first."""
        if self._walk is None:
            among = None
        else:
            among = self._walk.allowed(self._n_vocab)
            if not len(among):
                raise RopebendError("the grammar allows no token of this model's vocabulary here")
        array = self._applied(logits, among)
        token = int(array.data[array.selected].id)
        left = [(int(d.id), float(d.p)) for d in array.data[: array.size] if d.p > 0]
        if self._walk is not None:
            self._walk.accept(token)
        lib.llama_sampler_accept(self._chain, token)
        return token, sorted(left, key=lambda x: (-x[1], x[0]))

    @property
    def ended(self) -> bool:
        """True if what the text follows is complete, so that nothing may come next."""
        return self._walk is not None and self._walk.ended

    def _drawn(self, logits: npt.NDArray[np.float32], among: npt.NDArray[np.int64] | None = None) -> int:
        """A token, of those whose ids are given or of all; does not count it."""
        if self._is_argmax:
            return int(logits.argmax() if among is None else among[logits[among].argmax()])
        array = self._applied(logits, among)
        return int(array.data[array.selected].id)

    def _applied(self, logits: npt.NDArray[np.float32], among: npt.NDArray[np.int64] | None) -> Any:
        """The ``llama_token_data_array`` after the chain."""
        candidates = np.zeros(len(logits) if among is None else len(among), _TOKEN_DATA)
        candidates["id"] = np.arange(len(logits)) if among is None else among
        candidates["logit"] = logits if among is None else logits[among]
        self._candidates = candidates  # whose memory the array shares
        data = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data, len(candidates), -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return array

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
        self._chain = None


def ends_of(vocab: Any) -> list[int]:
    """The tokens that end a text.  vocab: ``llama_vocab *``."""
    return [token for token in range(lib.llama_vocab_n_tokens(vocab)) if lib.llama_vocab_is_eog(vocab, token)]
