"""What "the same text" means.

llama.cpp's arithmetic depends on what else is in the batch and where in the cache a sequence lies.  So greedy texts
must be equal up to the first token whose two best logits are closer than EPSILON; such cases are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ropebend.context import Context
from ropebend.model import Model
from ropebend.scaling import LayerScaling

EPSILON = {False: 0.01, True: 0.3}  # logits, by flash attention; the tiny model's are of size 10


def margin(logits: npt.NDArray[np.float32]) -> float:
    """How much larger the best of these is than the next."""
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)


class Reference:
    """Greedy texts from a context that does nothing else, with the margin of each token."""

    def __init__(self, path: Path, scaling: LayerScaling | None, flash_attn: bool, n_ctx: int = 1024):
        self.path, self.scaling, self.flash_attn, self.n_ctx = path, scaling, flash_attn, n_ctx

    def tokens(self, prompt: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        out: list[int] = []
        margins: list[float] = []
        with (
            Model(self.path) as model,
            Context(model, n_ctx=self.n_ctx, n_threads=1, flash_attn=self.flash_attn, scaling=self.scaling) as context,
        ):
            context.decode(prompt, 0)
            while len(out) < n:
                logits = context.logits()
                margins.append(margin(logits))
                out.append(int(logits.argmax()))
                context.decode(out[-1:], len(prompt) + len(out) - 1)
        return out, margins


def is_equal(text: str, model: Model, tokens: Sequence[int], margins: Sequence[float], epsilon: float) -> bool:
    """Whether `text` is that of these tokens; fails where it is another one and the choice was not close."""
    if text == model.detokenize(tokens):
        return True
    n = next(i for i in range(len(tokens)) if not text.startswith(model.detokenize(tokens[: i + 1])))
    assert margins[n] < epsilon, (n, margins[n])
    return False


def assert_same(texts: Sequence[str], reference: Reference, prompts: Sequence[Sequence[int]], n: int) -> None:
    """The texts of these prompts, n tokens each, are the reference's, but for a few where a choice was close."""
    known = {prompt: reference.tokens(prompt, n) for prompt in {tuple(p) for p in prompts}}
    with Model(reference.path) as model:
        equal = [
            is_equal(text, model, *known[tuple(prompt)], EPSILON[reference.flash_attn])
            for text, prompt in zip(texts, prompts, strict=True)
        ]
    assert equal.count(False) <= len(texts) // 4  # the rule is an exception


def assert_nearly_all_equal(texts: Sequence[str], others: Sequence[str]) -> None:
    """The same for sampled texts, where a draw may fall between two sums: no more than a quarter differs."""
    pairs = list(zip(texts, others, strict=True))
    assert sum(a != b for a, b in pairs) <= len(pairs) // 4, pairs
