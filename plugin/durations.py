"""Times as users read and write them."""

from __future__ import annotations

import math
import re


def duration(seconds: float) -> str:
    """About how long, in one unit: "40 seconds", "12 minutes", "3.4 hours", "2.5 days"."""
    if seconds < 99.5:
        return _counted(round(seconds), "second")
    if seconds < 99.5 * 60:
        return _counted(round(seconds / 60), "minute")
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:.1f} days"


def brief(value: float) -> str:
    """Two digits of a figure, and all of a whole one: "0.36", "7.5", "130"."""
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"


def read_duration(text: str) -> float | None:
    """Seconds of "90s", "5m", "2h"; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)", text.strip())
    if match is None or float(match[1]) == 0:
        return None
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def short_duration(seconds: float) -> str:
    """A time as `read_duration` takes it, rounded up to something that people would type."""
    minutes = math.ceil(seconds / 60)
    if minutes <= 10:
        return f"{minutes}m"
    if minutes <= 180:
        return f"{5 * math.ceil(minutes / 5)}m"
    return f"{math.ceil(minutes / 30) / 2:g}h"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
