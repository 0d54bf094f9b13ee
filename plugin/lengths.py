"""Lengths in tokens as users read and write them."""

from __future__ import annotations

import re

from ropebend.errors import UsageError

MIN_LENGTH = 8


def read_length(text: str | int) -> int:
    """Tokens from "8192", "8k" (1,024 each) or "1M".  Raises UsageError for fewer than 8 and for parts of one."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([km]?)i?\s*", str(text).replace(",", ""), re.IGNORECASE)
    tokens = float(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()] if found else 0
    if tokens < MIN_LENGTH or tokens != int(tokens):
        raise UsageError(f"length: expected tokens, at least {MIN_LENGTH}, as 8192 or 8k, got {text!r}")
    return int(tokens)


def short_length(n: int) -> str:
    """1024 as 1k."""
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)
