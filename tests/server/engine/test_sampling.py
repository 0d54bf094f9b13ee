"""The sampler chain on logits that the test writes."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from ropebend.context import Context
from ropebend.model import Model
from ropebend.server.engine.sampling import Sampler, Sampling


@pytest.fixture(scope="module")
def context(models: dict[str, Path]) -> Iterator[Context]:
    """A context after a decode, so that there are logits to overwrite."""
    with Model(models["plain"]) as model, Context(model, n_ctx=64, n_threads=1) as context:
        context.decode([5], 0)
        yield context


def draw(context: Context, logits: dict[int, float], n: int, sampling: Sampling) -> list[int]:
    context.logits()[:] = -50.0
    for token, value in logits.items():
        context.logits()[token] = value
    sampler = Sampler(sampling, context.model.vocab, n)
    try:
        return [sampler.sample(context.handle, -1, context.logits()) for _ in range(n)]
    finally:
        sampler.close()


def test_greedy_takes_the_first_of_equals(context: Context) -> None:
    assert draw(context, {9: 1.0, 7: 1.0, 8: 0.5}, 2, Sampling(temperature=0)) == [7, 7]


def test_penalties_add_up_with_each_use(context: Context) -> None:
    sampling = Sampling(temperature=0, presence_penalty=0.3, frequency_penalty=0.4)
    # 7: 1.0, after one use 0.3, after two -0.1; 8: 0.5, then -0.2; 9: 0
    assert draw(context, {7: 1.0, 8: 0.5, 9: 0.0}, 4, sampling) == [7, 8, 7, 9]


def test_bias_is_added_to_the_logit(context: Context) -> None:
    assert draw(context, {7: 1.0, 8: 0.5}, 1, Sampling(temperature=0, logit_bias={8: 0.6, 3: 51.0})) == [8]
    assert draw(context, {7: 1.0, 8: 0.5}, 1, Sampling(temperature=0, logit_bias={7: -0.6})) == [8]


def test_temperature_and_seed(context: Context) -> None:
    logits = {7: 1.0, 8: 0.0}
    ones = draw(context, logits, 2000, Sampling(seed=1)).count(7)
    assert abs(ones / 2000 - 0.731) < 0.04  # 1 / (1 + e^-1)
    hot = draw(context, logits, 2000, Sampling(seed=1, temperature=2.0)).count(7)
    assert abs(hot / 2000 - 0.622) < 0.04  # 1 / (1 + e^-0.5)
    assert draw(context, logits, 50, Sampling(seed=3)) == draw(context, logits, 50, Sampling(seed=3))


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(top_k=2), {7, 8}),
        (Sampling(top_p=0.6), {7, 8}),  # probabilities about 0.42, 0.31, 0.27
        (Sampling(min_p=0.7), {7, 8}),
        (Sampling(top_k=1), {7}),
        (Sampling(top_p=0.0), {7}),
        (Sampling(min_p=1.0), {7}),
        (Sampling(temperature=1e-30), {7}),
        (Sampling(), {7, 8, 9}),
    ],
)
def test_filters(context: Context, sampling: Sampling, left: set[int]) -> None:
    assert set(draw(context, {7: 1.0, 8: 0.7, 9: 0.55}, 300, sampling)) == left


def by_hand(context: Context, s: Sampling, prompt: list[int], n_vocab: int, *samplers: Any) -> list[int]:
    """Tokens that a chain of llama.cpp's own gives, on logits that change with each token."""
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in samplers:
        lib.llama_sampler_chain_add(chain, sampler)
    for token in prompt:
        lib.llama_sampler_accept(chain, token)
    tokens = []
    for i in range(60):
        context.logits()[:] = np.random.default_rng(i % 7).normal(0, 3, n_vocab)
        tokens.append(lib.llama_sampler_sample(chain, context.handle, -1))
    lib.llama_sampler_free(chain)
    return tokens


L: Any = lib
BREAKERS = [b"\n", b":", b'"', b"*"]


def dry(context: Context, multiplier: float, window: int) -> Any:
    strings = (ctypes.c_char_p * len(BREAKERS))(*BREAKERS)
    return lib.llama_sampler_init_dry(context.model.vocab, multiplier, 1.75, 1, window, strings, len(BREAKERS))


@pytest.mark.parametrize(
    ("sampling", "chain"),
    [
        ({"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}, lambda c, n: [
            L.llama_sampler_init_top_k(40), L.llama_sampler_init_top_p(0.95, 0), L.llama_sampler_init_min_p(0.05, 0),
            L.llama_sampler_init_temp(0.8)]),
        ({"typical_p": 0.5}, lambda c, n: [L.llama_sampler_init_typical(0.5, 0)]),
        ({"typical_p": 0.01, "min_keep": 9}, lambda c, n: [L.llama_sampler_init_typical(0.01, 9)]),
        ({"top_n_sigma": 1.5}, lambda c, n: [L.llama_sampler_init_top_n_sigma(1.5)]),
        ({"xtc_probability": 0.6, "xtc_threshold": 0.05}, lambda c, n: [L.llama_sampler_init_xtc(0.6, 0.05, 0, 42)]),
        ({"temperature": 1.2, "dynatemp_range": 0.9, "dynatemp_exponent": 1.3},
            lambda c, n: [L.llama_sampler_init_temp_ext(1.2, 0.9, 1.3)]),
        ({"temperature": 0, "dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_penalty_last_n": -1},
            lambda c, n: [dry(c, 2.0, 100), L.llama_sampler_init_temp(0)]),
        ({"dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_penalty_last_n": 8}, lambda c, n: [dry(c, 2.0, 8)]),
        ({"repeat_penalty": 1.7, "repeat_last_n": 5, "penalize_prompt": True, "presence_penalty": 0.5,
            "frequency_penalty": 0.3}, lambda c, n: [L.llama_sampler_init_penalties(n, 5, 1.7, 0.3, 0.5)]),
        ({"samplers": ("temperature", "min_p"), "temperature": 3.0, "min_p": 0.3, "top_k": 1},
            lambda c, n: [L.llama_sampler_init_temp(3.0), L.llama_sampler_init_min_p(0.3, 0)]),
    ],
)  # fmt: skip
def test_the_same_tokens_as_a_chain_made_by_hand(
    context: Context, sampling: dict[str, Any], chain: Callable[[Context, int], list[Any]]
) -> None:
    n, prompt = context.model.n_vocab, [7, 8, 9, 7, 8]
    s = Sampling(seed=42, **sampling)
    expected = by_hand(context, s, prompt, n, *chain(context, n), lib.llama_sampler_init_dist(42))
    assert sampled(context, s, prompt, n) == expected
    assert sampled(context, Sampling(seed=42), prompt, n) != expected


@pytest.mark.parametrize(("kind", "temperature"), [(1, 1.0), (2, 0.7), (2, 1.0)])
def test_mirostat_and_adaptive_p_choose_themselves(context: Context, kind: int, temperature: float) -> None:
    n, prompt = context.model.n_vocab, [7, 8, 9]
    s = Sampling(seed=3, mirostat=kind, mirostat_tau=2.0, mirostat_eta=0.3, temperature=temperature, top_k=1)
    make = lib.llama_sampler_init_mirostat_v2(3, 2.0, 0.3)
    if kind == 1:
        make = lib.llama_sampler_init_mirostat(n, 3, 2.0, 0.3, 100)
    assert sampled(context, s, prompt, n) == by_hand(
        context, s, prompt, n, lib.llama_sampler_init_temp(temperature), make
    )
    s = Sampling(seed=3, adaptive_target=0.4, samplers=("top_k", "adaptive_p"), top_k=20)
    chain = [lib.llama_sampler_init_top_k(20), lib.llama_sampler_init_adaptive_p(0.4, 0.9, 3)]
    assert sampled(context, s, prompt, n) == by_hand(context, s, prompt, n, *chain)


def sampled(context: Context, s: Sampling, prompt: list[int], n_vocab: int) -> list[int]:
    sampler = Sampler(s, context.model.vocab, 95, prompt)
    tokens = []
    for i in range(60):
        context.logits()[:] = np.random.default_rng(i % 7).normal(0, 3, n_vocab)
        tokens.append(sampler.sample(context.handle, -1, context.logits()))
    sampler.close()
    return tokens


def test_no_end_where_none_is_wanted(context: Context) -> None:
    end = next(t for t in range(context.model.n_vocab) if context.model.is_eog(t))
    assert draw(context, {end: 5.0, 7: 1.0}, 3, Sampling(temperature=0)) == [end] * 3
    assert draw(context, {end: 5.0, 7: 1.0}, 3, Sampling(temperature=0, ignore_eos=True)) == [7] * 3


def test_probabilities_after_the_filters(context: Context) -> None:
    context.logits()[:] = -50.0
    context.logits()[[7, 8, 9]] = [1.0, 0.0, -1.0]
    sampler = Sampler(Sampling(top_k=2, seed=1), context.model.vocab)
    token, left = sampler.sample_with_probabilities(context.logits())
    sampler.close()
    assert token in (7, 8)
    assert [t for t, _ in left] == [7, 8]
    assert left[0][1] == pytest.approx(0.7311, abs=1e-4)  # 1 / (1 + e^-1)
