"""The curve: known values, vertical tangents, and that it is the Bézier curve of its points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropebend.errors import RopebendError
from ropebend.scaling.bezier import layer_scales


def test_straight_control_points_give_a_straight_line() -> None:
    assert layer_scales([[0, 1], [2, 2], [4, 3], [6, 4]], 7) == pytest.approx([1, 1.5, 2, 2.5, 3, 3.5, 4])


def test_end_points_are_met_exactly() -> None:
    scales = layer_scales([[0, 1.3], [0, 5], [31, 5], [31, 2.7]], 32)
    assert (scales[0], scales[-1]) == (1.3, 2.7)


def test_vertical_tangent_is_a_step_in_the_middle() -> None:
    # x1 = L-1, x2 = 0: x(t) = (L-1) * (3t - 6t^2 + 4t^3), whose tangent is vertical at t = 1/2, where y = 2.5
    scales = layer_scales([[0, 1], [4, 1], [0, 4], [4, 4]], 5)
    assert scales == pytest.approx([1, 1.13, 2.5, 3.87, 4], abs=0.05)


def test_values_under_the_floor_are_clipped() -> None:
    assert layer_scales([[0, 2], [1, -3], [2, -3], [3, 2]], 4).tolist() == [2, 1, 1, 2]


@given(
    n=st.integers(2, 80),
    x=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    y=st.tuples(*[st.floats(-3, 6)] * 4),
)
def test_each_scale_lies_on_the_curve(n: int, x: tuple[float, float], y: tuple[float, ...]) -> None:
    last = n - 1
    points = [[0, y[0]], [x[0] * last, y[1]], [x[1] * last, y[2]], [last, y[3]]]
    scales = layer_scales(points, n)
    t = np.linspace(0, 1, 20001)
    weights = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3])
    curve_x, curve_y = np.array([p[0] for p in points]) @ weights, np.maximum(np.array(y) @ weights, 1)
    for layer, scale in enumerate(scales):
        near = np.abs(curve_x - layer) <= np.abs(np.diff(curve_x)).max() + 1e-9
        step = np.abs(np.diff(curve_y)).max() + 1e-9
        assert curve_y[near].min() - step <= scale <= curve_y[near].max() + step


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0, 1], [1, 1], [2, 1]], "four finite"),
        ([[0, 1], [1, 1], [2, float("nan")], [3, 1]], "four finite"),
        ([[0, 1], [-1, 1], [2, 1], [3, 1]], "x in \\[0, 3\\]"),
        ([[0, 1], [1, 1], [2, 1], [4, 1]], "x3 = 3"),
    ],
)
def test_bad_points_are_named(points: list[list[float]], message: str) -> None:
    with pytest.raises(RopebendError, match=message):
        layer_scales(points, 4)
