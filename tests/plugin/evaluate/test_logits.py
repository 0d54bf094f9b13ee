"""Log-probabilities and margins against scipy and a sort."""

import numpy as np
import pytest
from scipy.special import log_softmax

from ropebend.evaluate.logits import margins, token_logprobs


@pytest.mark.parametrize("n_vocab", [2, 7, 1003, 151_936])
@pytest.mark.parametrize("spread", [0.01, 3.0, 60.0])
def test_they_are_scipys(n_vocab: int, spread: float) -> None:
    draw = np.random.default_rng(n_vocab)
    logits = draw.normal(-20.0, spread, (6, n_vocab)).astype(np.float32)
    tokens = [0, n_vocab - 1, *draw.integers(0, n_vocab, 4)]
    expected = log_softmax(logits.astype(np.float64), axis=1)[np.arange(6), tokens]
    assert token_logprobs(logits, tokens) == pytest.approx(expected, rel=2e-6, abs=2e-6)
    ordered = np.sort(logits, axis=1)
    assert np.array_equal(margins(logits), ordered[:, -1] - ordered[:, -2])


def test_the_best_may_stand_at_either_end_or_twice() -> None:
    logits = np.float32([[5, 1, 2], [1, 2, 5], [4, 1, 4]])
    assert margins(logits).tolist() == [3.0, 3.0, 0.0]


def test_a_token_too_many_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        token_logprobs(np.zeros((2, 3), np.float32), [0, 1, 2])
