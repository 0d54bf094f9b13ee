"""Scales from a cubic Bézier curve over depth (arXiv 2503.04355, section 3.2).

x is the layer (0 … L-1), y the scale.  The end points stand at the first and the last layer; the inner control
points are free in both.  With every x in [0, L-1] the curve is a function of depth, although its tangent may be
vertical (x1 = L-1, x2 = 0), which is why x(t) is inverted by bisection and not by Newton's method.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ropebend.errors import ScalesError

ControlPoints = Sequence[Sequence[float]]


def _bernstein(p: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    u = 1.0 - t
    return u * u * u * p[0] + 3.0 * u * u * t * p[1] + 3.0 * u * t * t * p[2] + t * t * t * p[3]


def layer_scales(control_points: ControlPoints, n_layer: int, floor: float = 1.0) -> npt.NDArray[np.float64]:
    """Return the curve's value at every layer, clipped from below at `floor`: float64 [n_layer].

    `control_points` is [[x, y] x 4] with x0 = 0, x3 = n_layer - 1 and x1, x2 in [0, n_layer - 1].  The y values may
    lie under the floor: a profile that is flat at 1 and rises late needs them to.

    Raises ScalesError if the points are not four finite pairs or leave that range.

    >>> layer_scales([[0, 1], [1, 1], [2, 4], [3, 4]], 4).round(3).tolist()
    [1.0, 1.778, 3.222, 4.0]
    """
    points = np.asarray(control_points, dtype=np.float64)
    if points.shape != (4, 2) or not np.isfinite(points).all():
        raise ScalesError(f"curve.control_points: expected four finite [x, y] pairs, got {control_points!r}")
    last = n_layer - 1
    x = points[:, 0]
    if x[0] != 0 or x[3] != last or (x < 0).any() or (x > last).any():
        raise ScalesError(
            f"curve.control_points: expected x0 = 0, x3 = {last} and every x in [0, {last}] for {n_layer} layers, "
            f"got x = {x.tolist()}"
        )
    depth = np.arange(n_layer, dtype=np.float64)
    low, high = np.zeros(n_layer), np.ones(n_layer)
    for _ in range(60):  # x(t) never falls, so bisection cannot miss; 2^-60 is far under float32
        middle = 0.5 * (low + high)
        below = _bernstein(x, middle) < depth
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    t = 0.5 * (low + high)
    t[0], t[-1] = 0.0, 1.0 if n_layer > 1 else 0.0
    return np.maximum(_bernstein(points[:, 1], t), floor)
