"""The sampler chain on logits that the test writes."""

from collections.abc import Iterator
from pathlib import Path

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
