"""Names of llama.cpp's samplers, as requests and flags give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from ropebend.server.engine.sampling import SamplerName

_OTHER_NAMES: dict[str, SamplerName] = {
    "typical_p": "typ_p", "typical": "typ_p", "nucleus": "top_p", "temp": "temperature", "top-k": "top_k",
    "top-p": "top_p", "min-p": "min_p", "typical-p": "typ_p", "typ-p": "typ_p", "top-n-sigma": "top_n_sigma",
}  # fmt: skip
_LETTERS: dict[str, SamplerName] = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typ_p", "p": "top_p", "m": "min_p",
    "x": "xtc", "t": "temperature", "a": "adaptive_p",
}  # fmt: skip


def read_samplers(value: Any) -> tuple[SamplerName, ...]:
    """A list of names, or llama.cpp's letters in one string.  ValueError says what is expected."""
    known: dict[str, SamplerName] = {name: name for name in get_args(SamplerName)} | _OTHER_NAMES
    letters = isinstance(value, str)
    names: Sequence[Any] = list(value) if letters else value
    table = _LETTERS if letters else known
    if not isinstance(names, list) or not all(isinstance(name, str) and name in table for name in names):
        raise ValueError(f"expected a list of {', '.join(get_args(SamplerName))}, or letters of {''.join(_LETTERS)}")
    found = tuple(table[name] for name in names)
    if len(set(found)) < len(found):
        raise ValueError("expected each sampler once")
    return found
