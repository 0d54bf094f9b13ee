"""Where a search beyond the trained length begins: linear, NTK and YaRN, each at the uniform factor that suits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ropebend.choices import MethodName
from ropebend.model_info import ModelInfo
from ropebend.search.measure import Measurer
from ropebend.search.space import Candidate

STRETCHES = (1.0, 1.25, 0.7, 1.6)  # times what the length needs; for all methods the first one first
SHARE = 0.12  # of a budget that goes into this, at most
MOST_ITEMS = 4
UNSTRETCHED = "unscaled"


@dataclass(frozen=True)
class Base:
    """What every layer alike does: an extension method, and the scale and attention factor that go with it.

    The method's factor goes into the scales, so that a search can take layers below it.
    """

    method: MethodName = "none"
    scale: float = 1.0
    attn: float = 1.0

    @classmethod
    def of(cls, method: MethodName, factor: float) -> Base:
        """A method at a factor; none: position interpolation."""
        # YaRN also multiplies rotated queries and keys (arXiv 2309.00071, section 3.4)
        return cls(method, factor, round(1 + 0.1 * math.log(factor), 4) if method == "yarn" else 1.0)

    @property
    def kind(self) -> str:
        """Its method as people call it."""
        if self.scale == 1:
            return UNSTRETCHED
        return "linear" if self.method == "none" else self.method

    def __str__(self) -> str:
        return self.kind if self.scale == 1 else f"{self.kind} ×{self.scale:g}"

    def candidate(self, n_layer: int) -> Candidate:
        """These numbers in each of n_layer layers."""
        return Candidate((self.scale,) * n_layer, 1.0, (self.attn,) * n_layer if self.attn != 1 else None)


class Tried(NamedTuple):
    base: Base
    score: float


def methods_for(info: ModelInfo) -> list[MethodName]:
    """What can stretch this model; none: position interpolation."""
    # YaRN does not fit on other methods
    return ["none", "ntk", "yarn"] if info.rope_scaling[0] == "none" else ["none", "ntk"]


def factors_for(stretch: float, n_units: float) -> list[float]:
    """The factors of a method that are worth so many measurements, two for each; at least one."""
    n_factors = min(max(int(n_units / 2), 1), len(STRETCHES))
    return [*dict.fromkeys(round(max(1.02, k * stretch), 2) for k in STRETCHES[:n_factors])]


@dataclass(frozen=True)
class Comparison:
    """Which bases are measured, on how many items, of a model trained at so many tokens."""

    bases: tuple[Base, ...] = ()
    n_items: int = 0
    n_ctx_train: int = 0

    @classmethod
    def sized(cls, info: ModelInfo, stretch: float, n_units: float) -> Comparison:
        """What can be measured with so many sets of scales on an item; at least each method once on one item.

        stretch  of the trained length that is wanted; within it nothing is compared
        """
        if stretch <= 1:
            return cls()
        methods = methods_for(info)
        bases = (Base(), *(Base.of(m, f) for m in methods for f in factors_for(stretch, n_units / len(methods))))
        return cls(bases, min(max(int(n_units / len(bases)), 1), MOST_ITEMS), info.n_ctx_train)

    @property
    def n_units(self) -> int:
        """Sets of scales times items."""
        return len(self.bases) * self.n_items

    def measure(self, measurer: Measurer, on_item: Callable[[], None]) -> list[Tried]:
        """Each method at its best factor and the model as it is, best first; leaves the measurer at the best method."""
        best: dict[str, Tried] = {}
        for base in self.bases:
            measurer.use_method(base.method, self.n_ctx_train)
            (score,) = measurer.scores([base.candidate(measurer.base.n_layer)], range(self.n_items), on_item)
            if base.kind not in best or score > best[base.kind].score:
                best[base.kind] = Tried(base, score)
        ranked = sorted(best.values(), key=lambda tried: -tried.score)
        measurer.use_method(ranked[0].base.method, self.n_ctx_train)
        return ranked


def in_words(ranked: Sequence[Tried], n_items: int) -> str:
    """What the comparison says, in a line."""
    scores = ", ".join(f"{tried.base} {tried.score:.3f}" for tried in ranked)
    return f"scores on {n_items} items: {scores}; the search begins from {ranked[0].base}"
