"""Log-probabilities from logits, without ever holding more than one row in float64."""

from __future__ import annotations

import math

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
    top = tuple((model.piece(t, special=True), float(x[t])) for t in _likeliest(x, n_top))
    return TokenLogprob(model.piece(token, special=True), float(x[token]), offset, top)


def _likeliest(x: npt.NDArray[np.float64], n: int) -> list[int]:
    """The n largest, best first; of equals the lower token id comes first, as in greedy sampling."""
    if n == 0:
        return []
    if n >= len(x):
        candidates = np.arange(len(x))
    else:
        candidates = np.flatnonzero(x >= np.partition(x, len(x) - n)[len(x) - n])
    return [int(t) for t in candidates[np.argsort(-x[candidates], kind="stable")][:n]]
