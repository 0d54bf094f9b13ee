"""Reading numbers that somebody else wrote; every failure names the key, the value and what was expected."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from ropebend.errors import ScalesError

ATTN_FACTOR_RANGE = (0.1, 10.0)
UNBOUNDED = 2**32 - 1  # tokens; `up_to` of a plan that has no bound
SCALE_RANGE = (0.1, 1000.0)  # what a file may hold; what a search tries is far narrower


def as_f32(value: float) -> float:
    """Round to float32 and back to its shortest decimal, so that JSON, GGUF and the plan hold the same number."""
    try:
        raw = struct.pack("<f", value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except struct.error:
        return math.nan  # no number at all: in no range
    exact = struct.unpack("<f", raw)[0]
    fewest = 6 if abs(exact) > 1.2e-38 else 1  # any six digits survive but in subnormal numbers, nine always do
    short = (float(f"{exact:.{digits}g}") for digits in range(fewest, 9))
    return next((s for s in short if struct.pack("<f", s) == raw), float(f"{exact:.9g}"))


def check_scales(scales: Sequence[float], block_count: int, key: str, first: int = 0) -> None:
    """Raise ScalesError unless there is one finite scale in range per block.

    first: place of scales[0] in the list that `key` names
    """
    hint = " (scale stretches: 2 halves llama.cpp's freq_scale)"
    _check_row(scales, block_count, SCALE_RANGE, key, first, "scale", hint)


def check_attn_factors(factors: Sequence[float], block_count: int, key: str, first: int = 0) -> None:
    """Raise ScalesError unless there is one finite attention factor in range per block."""
    hint = " (it multiplies the layer's queries and keys: above 1 attends more sharply)"
    _check_row(factors, block_count, ATTN_FACTOR_RANGE, key, first, "attention factor", hint)


def _check_row(
    values: Sequence[float], n: int, within: tuple[float, float], key: str, first: int, what: str, hint: str
) -> None:
    low, high = within
    if len(values) != n or not values:
        raise ScalesError(f"{key}: expected {n} {what}s, one per block, got {len(values)}")
    for i, value in enumerate(values, first):
        if not low <= as_f32(value) <= high:  # false for NaN, too
            raise ScalesError(f"{key}[{i}]: expected a finite {what} in [{low:g}, {high:g}], got {value!r}{hint}")


def check_up_to(bounds: Sequence[int], key: str) -> None:
    """Raise ScalesError unless these are lengths in tokens that ascend."""
    for i, n in enumerate(bounds):
        if type(n) is not int or not (bounds[i - 1] if i else 0) < n <= UNBOUNDED:
            raise ScalesError(f"{key}[{i}]: expected numbers of tokens that ascend, got {n!r:.80}")


def number(value: Any, key: str) -> float:
    """A number as a float.  Raises ScalesError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ScalesError(f"{key}: expected a number, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise ScalesError(f"{key}: expected a number that fits a float, got an integer that does not") from None


def numbers(values: Any, key: str) -> tuple[float, ...]:
    """A list or array of numbers as floats.  Raises ScalesError."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ScalesError(f"{key}: expected a list of numbers, got {values!r:.80}")
    return tuple(number(v, f"{key}[{i}]") for i, v in enumerate(values))


def no_constant(name: str) -> None:
    """json's parse_constant: NaN and infinities are not JSON."""
    raise ValueError(f"{name} is not a number that JSON knows")
