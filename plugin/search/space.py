"""What is searched: genomes (vectors of numbers) and the scales per layer that they stand for, behind one interface.

    bezier   a cubic Bézier curve over depth (arXiv 2503.04355): six genes
    line     a straight line in depth: two genes
    uniform  one scale for every layer: one gene
    free     every layer on its own: n_layer genes

With `factor_range` the method's interpolation factor is one more gene, at the end, on a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from ropebend.bezier import layer_scales
from ropebend.errors import RopebendError

USUAL_TOP = 6.0  # scale; searched unless the stretch asks for more

Genes = npt.NDArray[np.float64]
Key = tuple[tuple[float, ...], float]


@dataclass(frozen=True)
class Candidate:
    """One set of scales to measure.

    scales          per layer, rounded to 0.01 (LongRoPE's grid), so that equal ones are measured once
    factor          of the extension method
    control_points  of the curve they came from, if any
    origin          how it was made, for reports
    """

    scales: tuple[float, ...]
    factor: float = 1.0
    control_points: tuple[tuple[float, float], ...] | None = field(default=None, compare=False)
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        """What decides the measurement."""
        return self.scales, self.factor


class Space:
    """Bounds, variation step and meaning of the genes of one kind of genome.

    low, high  bounds, float [n_genes]
    spread     standard deviation of a full mutation step, float [n_genes]
    """

    name: str

    def __init__(
        self,
        n_layer: int,
        *,
        max_scale: float = USUAL_TOP,
        factor: float = 1.0,
        factor_range: tuple[float, float] | None = None,
    ):
        self.n_layer, self.max_scale, self.factor, self.factor_range = n_layer, max_scale, factor, factor_range
        low, high, spread = self._bounds()
        if factor_range is not None:
            ends = [math.log(f) for f in factor_range]
            low, high, spread = [*low, ends[0]], [*high, ends[1]], [*spread, (ends[1] - ends[0]) / 6]
        self.low, self.high, self.spread = np.array(low), np.array(high), np.array(spread)

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return len(self.low)

    def bounded(self, genes: Genes) -> Genes:
        """Clip to the bounds."""
        return np.clip(genes, self.low, self.high)

    def express(self, genes: Genes, origin: str = "") -> Candidate:
        """The candidate that a genome stands for."""
        factor = self.factor
        if self.factor_range is not None:
            genes, factor = genes[:-1], round(math.exp(float(genes[-1])), 2)
        values, points = self._scales(genes)
        scales = tuple(round(float(s), 2) for s in np.clip(values, 1.0, self.max_scale))
        return Candidate(scales, factor, points, origin)

    def uniform(self, scale: float) -> Genes:
        """The genome of one scale for every layer."""
        return self._genome([scale] * 4)

    def ramp(self, first: float, last: float) -> Genes:
        """The genome of scales that go evenly from the first layer to the last."""
        return self._genome([first + (last - first) * i / 3 for i in range(4)])

    def bump(self, base: float, height: float, layer: int) -> Genes | None:
        """A genome that stands at base + height in one layer and near the base elsewhere, where this kind can."""
        raise NotImplementedError

    def near(self, scales: Sequence[float]) -> Genes:
        """The genome whose scales are nearest to these, by least squares."""
        last = self.n_layer - 1
        guess = self._values(np.interp(np.linspace(0, last, 4), range(self.n_layer), scales).tolist())
        n = len(guess)
        # of a single layer every x is 0, and scipy wants room
        low, high, spread = self.low[:n], np.maximum(self.high, self.low + 1e-3)[:n], np.maximum(self.spread, 1e-3)[:n]
        found = least_squares(
            lambda genes: self._scales(genes)[0] - np.asarray(scales),
            np.clip(guess, low + 1e-6, high - 1e-6), bounds=(low, high), x_scale=spread,
            diff_step=0.01,  # smaller ones drown in the rounding of the genes
        )  # fmt: skip
        return self._with_factor(found.x.tolist())

    def newcomer(self, rng: np.random.Generator) -> Genes:
        """A genome drawn from the whole space."""
        genes = rng.uniform(self.low, self.high)
        return self.bounded(genes)

    # ---- what each kind defines, without the gene of the factor

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        raise NotImplementedError

    def _scales(self, genes: Genes) -> tuple[Genes, tuple[tuple[float, float], ...] | None]:
        raise NotImplementedError

    def _values(self, values: Sequence[float]) -> list[float]:
        """Genes of a cubic in depth through four control values at evenly spaced depths."""
        raise NotImplementedError

    def _genome(self, values: Sequence[float]) -> Genes:
        return self._with_factor(self._values(values))

    def _with_factor(self, genes: Sequence[float]) -> Genes:
        if self.factor_range is not None:
            genes = [*genes, math.log(self.factor)]
        return self.bounded(np.array(genes, dtype=np.float64))


class Bezier(Space):
    """Genes y0, x1, y1, x2, y2, y3.

    y reaches down to -max_scale / 2: profiles that are flat at 1 and then rise need y under the floor of 1 (much wider
    ranges get lost on plateaus).
    """

    name = "bezier"

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        last, bottom, top = float(self.n_layer - 1), -self.max_scale / 2, self.max_scale
        step = 0.2 * last
        return (
            [bottom, 0, bottom, 0, bottom, bottom],
            [top, last, top, last, top, top],
            [0.5, step, 1.0, step, 1.0, 0.5],
        )

    def _scales(self, genes: Genes) -> tuple[Genes, tuple[tuple[float, float], ...]]:
        y0, x1, y1, x2, y2, y3 = (round(float(g), 4) for g in genes)
        points = ((0.0, y0), (x1, y1), (x2, y2), (float(self.n_layer - 1), y3))
        return layer_scales(points, self.n_layer), points

    def _values(self, values: Sequence[float]) -> list[float]:
        third = (self.n_layer - 1) / 3
        return [values[0], third, values[1], 2 * third, values[2], values[3]]

    def bump(self, base: float, height: float, layer: int) -> Genes:
        """A parabola with its vertex at the layer."""
        last = max(self.n_layer - 1, 1)
        t0, c = layer / last, abs(height) * last * last
        sign = np.sign(height)
        c = min(c, 2 / 3 * self.max_scale + abs(height)) * sign  # steeper ones would leave the range of y
        top = base + height

        def q(t: float) -> float:
            return float(top - c * (t - t0) ** 2)

        return self._genome([q(0), q(0) + 2 * c * t0 / 3, q(1) + 2 * c * (1 - t0) / 3, q(1)])

    def newcomer(self, rng: np.random.Generator) -> Genes:
        """Values from the middle of the range, so that not every curve is flat at 1 or at the top."""
        y = rng.uniform(-self.max_scale / 4, self.max_scale * 0.75, 4)
        x = np.sort(rng.uniform(0, self.n_layer - 1, 2))
        genes = self._with_factor([y[0], x[0], y[1], x[1], y[2], y[3]])
        if self.factor_range is not None:
            genes[-1] = rng.uniform(self.low[-1], self.high[-1])
        return genes


class Line(Space):
    """Genes: scale at the first and at the last layer; a line may cross the floor of 1 and stay there."""

    name = "line"

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        return [-self.max_scale / 2] * 2, [self.max_scale] * 2, [0.5] * 2

    def _scales(self, genes: Genes) -> tuple[Genes, tuple[tuple[float, float], ...]]:
        y0, y3 = (round(float(g), 4) for g in genes)
        last = float(self.n_layer - 1)
        points = tuple((last * i / 3, round(y0 + (y3 - y0) * i / 3, 6)) for i in range(4))
        return layer_scales(points, self.n_layer), points

    def _values(self, values: Sequence[float]) -> list[float]:
        return [values[0], values[3]]

    def bump(self, base: float, height: float, layer: int) -> Genes | None:
        """Only at the ends: from base + height to the base at the next layer, and on."""
        if layer == 0:
            return self._with_factor([base + height, base + height - height * (self.n_layer - 1)])
        if layer == self.n_layer - 1:
            return self._with_factor([base + height - height * (self.n_layer - 1), base + height])
        return None


class Uniform(Space):
    """One gene."""

    name = "uniform"

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        return [1.0], [self.max_scale], [0.25]

    def _scales(self, genes: Genes) -> tuple[Genes, tuple[tuple[float, float], ...]]:
        value, last = round(float(genes[0]), 2), float(self.n_layer - 1)
        return np.full(self.n_layer, value), tuple((last * i / 3, value) for i in range(4))

    def _values(self, values: Sequence[float]) -> list[float]:
        return [values[0]]

    def ramp(self, first: float, last: float) -> Genes:
        """The mean of the two."""
        return self.uniform((first + last) / 2)

    def bump(self, base: float, height: float, layer: int) -> Genes | None:
        """None: there are no bumps."""
        return None


class Free(Space):
    """One gene per layer."""

    name = "free"

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        return [1.0] * self.n_layer, [self.max_scale] * self.n_layer, [0.5] * self.n_layer

    def _scales(self, genes: Genes) -> tuple[Genes, None]:
        return genes, None

    def _values(self, values: Sequence[float]) -> list[float]:
        return np.interp(np.linspace(0, 3, self.n_layer), range(4), values).tolist()

    def bump(self, base: float, height: float, layer: int) -> Genes:
        """Exactly that."""
        genes = [base] * self.n_layer
        genes[layer] += height
        return self._with_factor(genes)


SPACES: dict[str, type[Space]] = {s.name: s for s in (Bezier, Line, Uniform, Free)}


def make_space(
    name: str,
    n_layer: int,
    *,
    max_scale: float = USUAL_TOP,
    factor: float = 1.0,
    factor_range: tuple[float, float] | None = None,
) -> Space:
    """The kind of genome called `name`.  Raises RopebendError if there is none, or if the factor leaves its range."""
    if name not in SPACES:
        raise RopebendError(f"genome: expected one of {', '.join(SPACES)}, got {name!r}")
    if factor_range is not None and not 1.0 <= factor_range[0] <= factor <= factor_range[1]:
        raise RopebendError(f"factor: expected 1 <= low <= {factor:g} <= high, got {factor_range}")
    return SPACES[name](n_layer, max_scale=max_scale, factor=factor, factor_range=factor_range)


def uniform_grid(stretch: float) -> tuple[float, ...]:
    """Uniform scales worth trying for contexts `stretch` times the trained length: about every 10 %."""
    top = max(1.5, 1.35 * stretch)
    n = math.ceil(math.log(top / 1.1) / math.log(1.12))
    return tuple(round(1.1 * (top / 1.1) ** (i / max(n, 1)), 2) for i in range(n + 1))
