"""GBNF for the JSON numbers between two bounds.  llama-cpp-python's converter knows none, llama.cpp's only integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: As in the converter's own rules: a number has at most so many digits, before the point and after it.
MAX_DIGITS = 16

_FRACTION = '("." [0-9]{1,15})?'
_NO_FRACTION = '("." "0"{1,15})?'


@dataclass(frozen=True)
class Bounds:
    """low <= x <= high, None: open on that side; beyond_low, below_high: the bound itself is not meant."""

    low: int | None = None
    high: int | None = None
    beyond_low: bool = False
    below_high: bool = False


def integers(b: Bounds) -> str:
    """The integers within bounds, "" if there are none.  Of an open side those of at most MAX_DIGITS digits."""
    low = None if b.low is None else b.low + b.beyond_low
    high = None if b.high is None else b.high - b.below_high
    out = []
    if low is None or low < 0:
        nearest, farthest = max(1, 0 if high is None else -high), None if low is None else -low
        out += [f'"-" {part}' for part in _naturals(nearest, farthest)]
    if high is None or high >= 0:
        out += _naturals(max(0, low or 0), high)
    return " | ".join(out)


def numbers(b: Bounds) -> str:
    """The numbers within bounds, written without an exponent; "" if there are none."""
    out = []
    if b.low is None or b.low < 0:
        if b.high is not None and b.high < 0:
            mirrored = Bounds(-b.high, None if b.low is None else -b.low, b.below_high, b.beyond_low)
        else:
            mirrored = Bounds(0, None if b.low is None else -b.low, True, b.beyond_low)
        out += [f'"-" {part}' for part in _magnitudes(mirrored)]
    if b.high is None or b.high >= 0:
        low, beyond_low = (b.low, b.beyond_low) if b.low is not None and b.low >= 0 else (0, False)
        out += _magnitudes(Bounds(low, b.high, beyond_low, b.below_high))
    return " | ".join(out)


def _magnitudes(b: Bounds) -> Iterator[str]:
    """The parts of the numbers within bounds, the lower one at least 0."""
    assert b.low is not None
    if b.high is not None and b.low >= b.high:
        if b.low == b.high and not (b.beyond_low or b.below_high):
            yield f'"{b.low}" {_NO_FRACTION}'
        return
    yield f'"{b.low}" "." "0"{{0,14}} [1-9] [0-9]{{0,15}}' if b.beyond_low else f'"{b.low}" {_FRACTION}'
    for part in _naturals(b.low + 1, None if b.high is None else b.high - 1):
        yield f"{part} {_FRACTION}"
    if b.high is not None and not b.below_high:
        yield f'"{b.high}" {_NO_FRACTION}'


def _naturals(low: int, high: int | None) -> Iterator[str]:
    """The parts of the integers low to high, low at least 0."""
    if high is None:
        high = 10 ** max(len(str(low)), MAX_DIGITS) - 1
    if low > high:
        return
    n, last = len(str(low)), len(str(high))
    if n == last:
        yield from _of_length(str(low), str(high))
        return
    if low != 10 ** (n - 1):
        yield from _of_length(str(low), "9" * n)
        n += 1
    whole = high == 10**last - 1
    if (most := last if whole else last - 1) >= n:
        yield "[1-9]" + (f" [0-9]{{{n - 1},{most - 1}}}" if most > 1 else "")
    if not whole:
        yield from _of_length(str(10 ** (last - 1)), str(high))


def _of_length(low: str, high: str) -> Iterator[str]:
    """The parts of the numbers low to high, which have as many digits."""
    n = len(low) - 1
    if low[0] == high[0]:
        for rest in _of_length(low[1:], high[1:]) if n else [""]:
            yield f'"{low[0]}" {rest}'.rstrip()
        return
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * n:
        yield from _of_length(low, low[0] + "9" * n)
        first += 1
    if whole := high[1:] == "9" * n:
        last += 1
    if first < last:
        yield f"[{first}-{last - 1}]" + (f" [0-9]{{{n}}}" if n else "")
    if not whole:
        yield from _of_length(high[0] + "0" * n, high)
