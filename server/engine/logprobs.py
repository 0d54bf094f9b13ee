"""Log-probabilities from logits, without ever holding more than one row in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ropebend.model import Model
from ropebend.server.engine.events import TokenLogprob

#: OpenAI's number for what JSON cannot say: minus infinity.
LOWEST = -9999.0


def token_logprob(model: Model, token: int, logits: npt.NDArray[np.float32], n_top: int, offset: int) -> TokenLogprob:
    """The entry of `token`, predicted by `logits` [n_vocab].  offset: characters of the text before it."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= math.log(np.exp(x).sum())
    np.maximum(x, LOWEST, out=x)
    return entry(model, token, float(x[token]), offset, [(t, float(x[t])) for t in _likeliest(x, n_top)])


def entry(model: Model, token: int, logprob: float, offset: int, top: Sequence[tuple[int, float]]) -> TokenLogprob:
    """The entry of `token`.  top: ids and log-probabilities of the likeliest, best first."""
    pieces = tuple((model.piece(t, special=True), p) for t, p in top)
    return TokenLogprob(model.piece(token, special=True), logprob, offset, pieces, token, tuple(t for t, _ in top))


def _likeliest(x: npt.NDArray[np.float64], n: int) -> list[int]:
    """The n largest, best first; of equals the lower token id comes first, as in greedy sampling."""
    if n == 0:
        return []
    if n >= len(x):
        candidates = np.arange(len(x))
    else:
        candidates = np.flatnonzero(x >= np.partition(x, len(x) - n)[len(x) - n])
    return [int(t) for t in candidates[np.argsort(-x[candidates], kind="stable")][:n]]
