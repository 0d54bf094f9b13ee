"""What rows of logits say: log-probabilities of tokens, and how close the best two are.

With 150,000 tokens in a vocabulary, scipy's logsumexp in float64 and a partition take longer for the answers of an item
than a GPU for its prompt; these go over each row a few times at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]  # [n, n_vocab]


def token_logprobs(logits: Logits, tokens: Iterable[int]) -> npt.NDArray[np.float64]:
    """Natural log-probability of one token a row, [n]; exponentials are summed in float32, good to about 1e-6."""
    out = np.empty(len(logits))
    scratch = np.empty(logits.shape[1], np.float32)
    for i, (row, token) in enumerate(zip(logits, tokens, strict=True)):
        best = row.max()
        np.exp(np.subtract(row, best, out=scratch), out=scratch)
        out[i] = float(row[token] - best) - np.log(float(scratch.sum()))
    return out


def margins(logits: Logits) -> npt.NDArray[np.float32]:
    """The best logit less the second best of each row, [n]."""
    out = np.empty(len(logits), np.float32)
    for i, (row, best) in enumerate(zip(logits, logits.argmax(axis=1), strict=True)):
        out[i] = row[best] - max(row[:best].max(initial=-np.inf), row[best + 1 :].max(initial=-np.inf))
    return out
