"""Kinds of genome: how a vector of genes stands for one number per layer.

bezier   a cubic Bézier curve over depth (arXiv 2503.04355): six genes
line     a straight line in depth: two genes
uniform  one value for every layer: one gene
knots    straight lines between values at up to eight depths
free     every layer on its own: n_layer genes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from ropebend.scaling.bezier import layer_scales

Genes = npt.NDArray[np.float64]
Points = tuple[tuple[float, float], ...]

MAX_KNOTS = 8


@dataclass(frozen=True)
class Number:
    """One of the numbers that each layer has, and where a search may take it.

    name       "scale" or "attn" (what multiplies llama.cpp's attn_factor)
    low, high  values are clipped to these
    bottom     of a curve's control values: profiles that are flat at `low` and then rise need some below it (much wider
               ranges get lost on plateaus)
    step       standard deviation of a full mutation step
    drawn      control values of a random curve lie between these
    """

    name: str
    low: float
    high: float
    bottom: float
    step: float
    drawn: tuple[float, float]


def scale_number(top: float, floor: float = 1.0) -> Number:
    """The layer scale from `floor` (the paper's is 1) to `top`."""
    return Number("scale", floor, top, min(floor, 1.0) - 1.0 - top / 2, 0.5, (-top / 4, top * 0.75))


#: Its square multiplies attention logits: from a quarter to four times.
ATTN = Number("attn", 0.5, 2.0, -0.5, 0.3, (0.4, 1.6))


class Curve:
    """Bounds, mutation step and meaning of the genes of one kind of genome, for one number.

    low, high  bounds, float [n_genes]
    spread     standard deviation of a full mutation step, float [n_genes]
    is_value   which genes are values of the number (the others are places in depth), bool [n_genes]
    """

    kind: str

    def __init__(self, n_layer: int, number: Number):
        self.n_layer, self.number = n_layer, number
        low, high, spread = self._bounds()
        self.low, self.high, self.spread = np.array(low), np.array(high), np.array(spread)
        self.is_value = np.ones(len(low), bool)

    @property
    def n_genes(self) -> int:
        return len(self.low)

    def values(self, genes: Genes) -> tuple[Genes, Points | None]:
        """The number of each layer, float [n_layer], not clipped from above, and the curve's control points."""
        raise NotImplementedError

    def through(self, values: Sequence[float]) -> list[float]:
        """Genes of a cubic in depth through four control values at evenly spaced depths."""
        raise NotImplementedError

    def uniform(self, value: float) -> list[float]:
        """Genes of one value for every layer."""
        return self.through([value] * 4)

    def ramp(self, first: float, last: float) -> list[float]:
        """Genes of values that go evenly from the first layer to the last."""
        return self.through([first + (last - first) * i / 3 for i in range(4)])

    def bump(self, base: float, height: float, layer: int) -> list[float] | None:
        """Genes that stand at base + height in one layer and near the base elsewhere, where this kind can."""
        raise NotImplementedError

    def near(self, values: Sequence[float]) -> list[float]:
        """Genes whose values are nearest to these, by least squares."""
        guess = self._guess(values)
        # of a single layer every x is 0, and scipy wants room
        high, spread = np.maximum(self.high, self.low + 1e-3), np.maximum(self.spread, 1e-3)
        found = least_squares(
            lambda genes: self.values(genes)[0] - np.asarray(values),
            np.clip(guess, self.low + 1e-6, high - 1e-6), bounds=(self.low, high), x_scale=spread,
            diff_step=0.01,  # smaller ones drown in the rounding of the genes
        )  # fmt: skip
        genes: list[float] = found.x.tolist()
        return genes

    def _guess(self, values: Sequence[float]) -> list[float]:
        return self.through(np.interp(np.linspace(0, self.n_layer - 1, 4), range(self.n_layer), values).tolist())

    def newcomer(self, rng: np.random.Generator) -> Genes:
        """Genes drawn from the whole space."""
        return rng.uniform(self.low, self.high)

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        raise NotImplementedError


class Bezier(Curve):
    """Genes y0, x1, y1, x2, y2, y3."""

    kind = "bezier"

    def __init__(self, n_layer: int, number: Number):
        super().__init__(n_layer, number)
        self.is_value[[1, 3]] = False

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        n = self.number
        last, bottom, top = float(self.n_layer - 1), n.bottom, n.high
        across = 0.2 * last
        return (
            [bottom, 0, bottom, 0, bottom, bottom],
            [top, last, top, last, top, top],
            [n.step, across, 2 * n.step, across, 2 * n.step, n.step],
        )

    def values(self, genes: Genes) -> tuple[Genes, Points]:
        y0, x1, y1, x2, y2, y3 = (round(float(g), 4) for g in genes)
        points = ((0.0, y0), (x1, y1), (x2, y2), (float(self.n_layer - 1), y3))
        return layer_scales(points, self.n_layer, self.number.low), points

    def through(self, values: Sequence[float]) -> list[float]:
        third = (self.n_layer - 1) / 3
        return [values[0], third, values[1], 2 * third, values[2], values[3]]

    def bump(self, base: float, height: float, layer: int) -> list[float]:
        """A parabola with its vertex at the layer."""
        last = max(self.n_layer - 1, 1)
        t0, c = layer / last, abs(height) * last * last
        sign = np.sign(height)
        c = min(c, 2 / 3 * self.number.high + abs(height)) * sign  # steeper ones would leave the range of y
        top = base + height

        def q(t: float) -> float:
            return float(top - c * (t - t0) ** 2)

        return self.through([q(0), q(0) + 2 * c * t0 / 3, q(1) + 2 * c * (1 - t0) / 3, q(1)])

    def newcomer(self, rng: np.random.Generator) -> Genes:
        """Values from the middle of the range, so that not every curve is flat at the bottom or at the top."""
        y = rng.uniform(*self.number.drawn, 4)
        x = np.sort(rng.uniform(0, self.n_layer - 1, 2))
        return np.array([y[0], x[0], y[1], x[1], y[2], y[3]])


class Line(Curve):
    """Genes: value at the first and at the last layer; a line may cross the floor and stay there."""

    kind = "line"

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        n = self.number
        return [n.bottom] * 2, [n.high] * 2, [n.step] * 2

    def values(self, genes: Genes) -> tuple[Genes, Points]:
        y0, y3 = (round(float(g), 4) for g in genes)
        last = float(self.n_layer - 1)
        points = tuple((last * i / 3, round(y0 + (y3 - y0) * i / 3, 6)) for i in range(4))
        return layer_scales(points, self.n_layer, self.number.low), points

    def through(self, values: Sequence[float]) -> list[float]:
        return [values[0], values[3]]

    def bump(self, base: float, height: float, layer: int) -> list[float] | None:
        """Only at the ends: from base + height to the base at the next layer, and on."""
        if layer == 0:
            return [base + height, base + height - height * (self.n_layer - 1)]
        if layer == self.n_layer - 1:
            return [base + height - height * (self.n_layer - 1), base + height]
        return None


class Uniform(Curve):
    """One gene."""

    kind = "uniform"

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        n = self.number
        return [n.low], [n.high], [n.step / 2]

    def values(self, genes: Genes) -> tuple[Genes, Points]:
        value, last = round(float(genes[0]), 2), float(self.n_layer - 1)
        return np.full(self.n_layer, value), tuple((last * i / 3, value) for i in range(4))

    def through(self, values: Sequence[float]) -> list[float]:
        return [values[0]]

    def ramp(self, first: float, last: float) -> list[float]:
        """The mean of the two."""
        return [(first + last) / 2]

    def bump(self, base: float, height: float, layer: int) -> list[float] | None:
        """None: there are no bumps."""
        return None


class Knots(Curve):
    """Values at evenly spaced depths, with straight lines between them."""

    kind = "knots"

    @property
    def n_knots(self) -> int:
        """Number of these depths."""
        return min(self.n_layer, MAX_KNOTS)

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        n = self.number
        # some way below the floor, too: a search cannot settle on a bound of its genes, but well on a floor of values
        return [n.low - 2 * n.step] * self.n_knots, [n.high] * self.n_knots, [n.step] * self.n_knots

    def values(self, genes: Genes) -> tuple[Genes, None]:
        if len(genes) < self.n_layer:
            genes = np.interp(np.linspace(0, len(genes) - 1, self.n_layer), range(len(genes)), genes)
        return np.maximum(genes, self.number.low), None

    def _guess(self, values: Sequence[float]) -> list[float]:
        return np.interp(np.linspace(0, self.n_layer - 1, self.n_knots), range(self.n_layer), values).tolist()

    def through(self, values: Sequence[float]) -> list[float]:
        return np.interp(np.linspace(0, 3, self.n_knots), range(4), values).tolist()

    def bump(self, base: float, height: float, layer: int) -> list[float]:
        """At the nearest knot."""
        genes = [base] * self.n_knots
        genes[round(layer / max(self.n_layer - 1, 1) * (self.n_knots - 1))] += height
        return genes


class Free(Knots):
    """One gene per layer."""

    kind = "free"

    @property
    def n_knots(self) -> int:
        """All of them."""
        return self.n_layer


CURVES: dict[str, type[Curve]] = {c.kind: c for c in (Bezier, Line, Uniform, Knots, Free)}
