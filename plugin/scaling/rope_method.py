"""The extension methods (PI, NTK, Dynamic-NTK, YaRN) whose factor the layer scales multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from ropebend.choices import MethodName
from ropebend.errors import ScalesError

METHODS: tuple[MethodName, ...] = get_args(MethodName)
MAX_FACTOR = 1000.0

#: What a model's own rope.scaling.type is called.
OWN_METHODS = {"yarn": "YaRN", "linear": "linear scaling", "longrope": "LongRoPE"}


@dataclass(frozen=True)
class RopeMethod:
    """An extension method and its interpolation factor, which the layer scales multiply.

    Making one checks nothing; `check` does, and `LayerScaling` calls it.

    method            "none", "linear" (position interpolation, arXiv 2306.15595), "ntk" (NTK-aware: another base),
                      "dynamic-ntk" (the same, by the length of the sequence) or "yarn"; arXiv 2309.00071 describes
                      these three
    factor            the method's factor f, 1 to 1000: above 1 it stretches (1 for "none")
    original_context  tokens the model was trained at; needed by "dynamic-ntk" and "yarn", default: from the model
    """

    method: str = "none"
    factor: float = 1.0
    original_context: int | None = None

    def check(self, prefix: str = "") -> None:
        """Raise ScalesError naming the key (after `prefix`), the value and what was expected."""
        if self.method not in METHODS:
            raise ScalesError(f"{prefix}rope.method: expected one of {', '.join(METHODS)}, got {self.method!r:.80}")
        if not (math.isfinite(self.factor) and 1.0 <= self.factor <= MAX_FACTOR):
            raise ScalesError(f"{prefix}rope.factor: expected a number in [1, {MAX_FACTOR:g}], got {self.factor!r}")
        if self.method == "none" and self.factor != 1.0:
            raise ScalesError(
                f"{prefix}rope.factor: method none has factor 1, got {self.factor!r}; did you mean linear?"
            )
        n = self.original_context
        if n is not None and not 1 <= n < 2**31:
            raise ScalesError(f"{prefix}rope.original_context: expected a positive number of tokens, got {n!r}")

    @property
    def needs_original_context(self) -> bool:
        """True if the method computes with the length the model was trained at."""
        return self.method in ("dynamic-ntk", "yarn")

    def trained_context(self) -> int:
        """original_context, in tokens.  Raises ScalesError if it is not known."""
        if self.original_context is None:
            raise ScalesError(f"rope.original_context: {self.method} needs the length the model was trained at")
        return self.original_context

    def factor_at(self, length: int | None) -> float:
        """The factor of a sequence that may reach `length` tokens; only Dynamic-NTK's depends on it.

        Raises ScalesError if Dynamic-NTK lacks the original context.
        """
        if self.method != "dynamic-ntk":
            return self.factor
        return dynamic_ntk_factor(self.factor, self.trained_context(), length)

    def __str__(self) -> str:
        return self.method if self.method == "none" else f"{self.method} ×{self.factor:g}"


NO_METHOD = RopeMethod()


def length_bucket(length: int, n_ctx_train: int) -> int:
    """Round a length in tokens up to n_ctx_train * sqrt(2)^k, k >= 0: requests of one bucket share plan and cache."""
    k = 0
    while (bucket := math.ceil(n_ctx_train * 2 ** (k / 2))) < length:
        k += 1
    return bucket


def dynamic_ntk_factor(factor: float, n_ctx_train: int, length: int | None) -> float:
    """Dynamic-NTK's f = max(1, f0*len/n_train - (f0-1)) at the bucket of `length` (default: the trained length)."""
    bucket = length_bucket(length or n_ctx_train, n_ctx_train)
    return max(1.0, factor * bucket / n_ctx_train - (factor - 1.0))
