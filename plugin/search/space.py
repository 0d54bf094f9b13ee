"""What is searched: genomes (vectors of numbers) and the numbers per layer that they stand for, behind one interface.

A genome is a curve for each number that moves (`curves`): the layer scales, their attention factors, or both one after
the other.  With `factor_range` the method's interpolation factor is one more gene, at the end, on a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ropebend.errors import RopebendError
from ropebend.search.curves import ATTN, CURVES, Curve, Genes, Points, scale_number

USUAL_TOP = 6.0  # of the scales that a search tries; more where the context or the scales it starts from ask for it

NUMBERS = {"scale": ("scale",), "attn": ("attn",), "both": ("scale", "attn")}

Key = tuple[tuple[float, ...], float, tuple[float, ...] | None]
Values = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """One set of numbers to measure.

    scales          per layer, above 1 to stretch, rounded to 0.01 (LongRoPE's grid, arXiv 2402.13753), so that equal
                    ones are measured once
    factor          of the extension method
    attn            attention factor per layer, rounded alike; None: 1 everywhere
    control_points  of the curve the scales came from, if any: four (layer, scale)
    origin          how it was made, for reports
    """

    scales: Values
    factor: float = 1.0
    attn: Values | None = None
    control_points: Points | None = field(default=None, compare=False)
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        """What decides the measurement."""
        return self.scales, self.factor, self.attn

    def number(self, name: str) -> Values:
        """The values of a number, "scale" or "attn"."""
        return self.scales if name == "scale" else self.attn or (1.0,) * len(self.scales)

    @property
    def is_uniform(self) -> bool:
        """True if all layers have the same numbers."""
        return len(set(self.scales)) == 1 and (self.attn is None or len(set(self.attn)) == 1)


class Space:
    """Bounds, variation step and meaning of genomes.

    name       of the kind of curve
    curves     one for each number that moves, in the order of their genes
    low, high  bounds, float [n_genes]
    spread     standard deviation of a full mutation step, float [n_genes]
    held       what the numbers that do not move stand at, None: 1
    """

    def __init__(
        self, name: str, n_layer: int, curves: Sequence[Curve], factor: float = 1.0,
        factor_range: tuple[float, float] | None = None, held: Candidate | None = None,
    ):  # fmt: skip
        self.held = held or Candidate((1.0,) * n_layer)
        self.name, self.n_layer, self.curves = name, n_layer, tuple(curves)
        self.factor, self.factor_range = factor, factor_range
        low, high, spread = (np.concatenate([getattr(c, x) for c in curves]) for x in ("low", "high", "spread"))
        if factor_range is not None:
            ends = [math.log(f) for f in factor_range]
            low, high = np.append(low, ends[0]), np.append(high, ends[1])
            spread = np.append(spread, (ends[1] - ends[0]) / 6)
        self.low, self.high, self.spread = low, high, spread

    @property
    def n_genes(self) -> int:
        return len(self.low)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers that move."""
        return tuple(c.number.name for c in self.curves)

    def curve(self, number: str) -> Curve | None:
        """The curve of a number, if it moves."""
        return next((c for c in self.curves if c.number.name == number), None)

    def bounded(self, genes: Genes) -> Genes:
        """Clip to the bounds."""
        return np.clip(genes, self.low, self.high)

    def express(self, genes: Genes, origin: str = "") -> Candidate:
        """The candidate that a genome stands for."""
        factor, at = self.factor, 0
        found: dict[str, Values] = {}
        points: Points | None = None
        for c in self.curves:
            values, own = c.values(genes[at : at + c.n_genes])
            at += c.n_genes
            name = c.number.name
            found[name] = tuple(round(float(v), 2) for v in np.clip(values, c.number.low, c.number.high))
            if name == "scale":
                points = own
        if self.factor_range is not None:
            factor = round(math.exp(float(genes[-1])), 2)
        attn = found.get("attn", self.held.attn)
        return Candidate(
            found.get("scale", self.held.scales), factor, attn if attn and set(attn) != {1.0} else None, points, origin
        )

    def genome(self, parts: Mapping[str, Sequence[float]]) -> Genes:
        """Put genes of the numbers together; a number that is not given is 1 everywhere."""
        genes: list[float] = []
        for c in self.curves:
            genes += parts.get(c.number.name) or c.uniform(1.0)
        if self.factor_range is not None:
            genes.append(math.log(self.factor))
        return self.bounded(np.array(genes, dtype=np.float64))

    def uniform(self, **values: float) -> Genes:
        """The genome of one value for every layer, by number: ``uniform(scale=1.2)``."""
        return self.genome({c.number.name: c.uniform(values[c.number.name]) for c in self.curves
                            if c.number.name in values})  # fmt: skip

    def near(self, candidate: Candidate) -> Genes:
        """The genome that comes nearest to a candidate, by least squares."""
        return self.genome({c.number.name: c.near(candidate.number(c.number.name)) for c in self.curves})

    def newcomer(self, rng: np.random.Generator) -> Genes:
        """A genome drawn from the whole space."""
        genes = np.concatenate([c.newcomer(rng) for c in self.curves])
        if self.factor_range is not None:
            genes = np.append(genes, rng.uniform(self.low[-1], self.high[-1]))
        return self.bounded(genes)


def make_space(
    name: str,
    n_layer: int,
    *,
    numbers: str = "scale",
    max_scale: float = USUAL_TOP,
    min_scale: float = 1.0,
    factor: float = 1.0,
    factor_range: tuple[float, float] | None = None,
    held: Candidate | None = None,
) -> Space:
    """The kind of genome called `name` for the numbers "scale", "attn" or "both"; the others stay as in `held`.

    min_scale, max_scale: bounds of the scales; factor_range: (low, high) in which the method's factor moves.
    Raises RopebendError if there is no such kind or number, or if the factor leaves its range.
    """
    if name not in CURVES:
        raise RopebendError(f"genome: expected one of {', '.join(CURVES)}, got {name!r}")
    if numbers not in NUMBERS:
        raise RopebendError(f"numbers: expected one of {', '.join(NUMBERS)}, got {numbers!r}")
    if factor_range is not None and not 1.0 <= factor_range[0] <= factor <= factor_range[1]:
        raise RopebendError(f"factor: expected 1 <= low <= {factor:g} <= high, got {factor_range}")
    known = {"scale": scale_number(max_scale, min_scale), "attn": ATTN}
    curves = [CURVES[name](n_layer, known[number]) for number in NUMBERS[numbers]]
    return Space(name, n_layer, curves, factor, factor_range, held)


def uniform_grid(stretch: float) -> tuple[float, ...]:
    """Uniform scales worth trying for contexts `stretch` times the trained length.

    A few small ones, which is all that a model bears inside its window, then about every 12 %.
    """
    top = max(1.5, 1.35 * stretch)
    n = math.ceil(math.log(top / 1.1) / math.log(1.12))
    return (1.03, 1.06, *(round(1.1 * (top / 1.1) ** (i / max(n, 1)), 2) for i in range(n + 1)))


#: Uniform attention factors worth trying.
ATTN_GRID = (0.9, 0.95, 1.06, 1.12, 1.2, 1.35)
