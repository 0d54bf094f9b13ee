"""Joining scales for several lengths into one value: `none@8192 at-16k.json@16384 at-32k.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ropebend.errors import ScalesError, UsageError
from ropebend.lengths import read_length
from ropebend.scaling import LayerScaling, ShorterPlan
from ropebend.scaling.rope_method import RopeMethod

#: `up_to` in tokens and the scales; None and None: no bound, unscaled.
Part = tuple[int | None, LayerScaling | None]


def read_parts(words: Sequence[str]) -> LayerScaling:
    """The value of FILE, or of FILE@TOKENS and none@TOKENS in ascending order; the last may leave out its bound.

    Raises UsageError for words that contradict each other, RopebendError for files that are wrong.
    """
    parts = [_read_part(word) for word in words]
    if len(parts) == 1 and parts[0][0] is None and parts[0][1] is not None:
        return parts[0][1]
    for word, (_, scaling) in zip(words, parts, strict=True):
        if scaling is not None and scaling.has_plans:
            raise UsageError(f"{word}: holds plans by length already; give it alone, or files of one plan each")
    bounds = [up_to for up_to, _ in parts]
    for i, (word, up_to) in enumerate(zip(words, bounds, strict=True)):
        if up_to is None and i < len(words) - 1:
            raise UsageError(f"{word}: expected {word}@TOKENS, the longest sequences it is for: others follow it")
        if i and up_to is not None and up_to <= (bounds[i - 1] or 0):
            raise UsageError(f"{word}: expected more tokens than {bounds[i - 1]}, which stand before it")
    if parts[-1][1] is None:
        raise UsageError(f"{words[-1]}: expected scales after it: beyond the last length the last plan goes on")
    return join(parts)


def _read_part(word: str) -> Part:
    path, at, length = word.rpartition("@")
    if at and not Path(word).exists():
        try:
            up_to = read_length(length)
        except UsageError:
            raise UsageError(f"{word}: expected tokens after the @, as 8192 or 8k, got {length!r}") from None
        return up_to, None if path == "none" else LayerScaling.load(path)
    if word == "none":
        raise UsageError("none: expected none@TOKENS, the longest sequences that run unscaled")
    return None, LayerScaling.load(word)


def join(parts: Sequence[Part]) -> LayerScaling:
    """One value; the bounds ascend, and the last part has scales.  Raises ScalesError if they do not go together."""
    scaled = [part for _, part in parts if part is not None]
    architectures = {p.architecture for p in scaled} - {None}
    if len(architectures) > 1:
        raise ScalesError(
            f"architecture: expected one for all lengths, got {', '.join(sorted(map(repr, architectures)))}"
        )
    rope = _common(scaled)
    *shorter, (up_to, last) = parts
    assert last is not None
    return replace(
        _under(rope, last),
        architecture=next(iter(architectures), None),
        shorter=tuple(ShorterPlan(n or 0, p and _under(rope, p)) for n, p in shorter),
        up_to=up_to,
    )


def with_short_unscaled(scaling: LayerScaling, n_ctx_train: int) -> LayerScaling:
    """The same, but sequences within the trained length run unscaled.  UsageError if a plan says otherwise."""
    if scaling.shorter and scaling.shorter[0].up_to <= n_ctx_train:
        first = scaling.shorter[0]
        what = "unscaled" if first.scaling is None else "scaled"
        raise UsageError(f"sequences up to {first.up_to} tokens are {what} by a plan of their own")
    if scaling.up_to is not None and scaling.up_to <= n_ctx_train:
        raise UsageError(f"the scales are for up to {scaling.up_to} tokens, the model was trained at {n_ctx_train}")
    return replace(scaling, shorter=(ShorterPlan(n_ctx_train, None), *scaling.shorter))


def _common(parts: Sequence[LayerScaling]) -> RopeMethod:
    """The method that all plans of one file can have: that of all, or the same with factor 1."""
    trained = {p.rope.original_context for p in parts} - {None}
    if len(trained) > 1:
        raise ScalesError(f"rope.original_context: expected one for all lengths, got {sorted(map(str, trained))}")
    original = next(iter(trained), None)
    ropes = {(p.rope.method, p.rope.factor) for p in parts}
    if len(ropes) == 1:
        return RopeMethod(*ropes.pop(), original)
    kinds = {"none" if method == "linear" else method for method, _ in ropes}
    names = ", ".join(sorted(str(p.rope) for p in parts))
    if len(kinds) > 1:
        raise ScalesError(f"rope.method: expected one for all lengths (none and linear are one), got {names}")
    if kinds == {"dynamic-ntk"}:
        raise ScalesError(f"rope.factor: expected one for all lengths of dynamic-ntk, got {names}")
    return RopeMethod(kinds.pop(), 1.0, original)


def _under(rope: RopeMethod, part: LayerScaling) -> LayerScaling:
    """The same rotation under `rope`: another factor goes into the scales, YaRN's magnitude into the other number."""
    if (part.rope.method, part.rope.factor) == (rope.method, rope.factor):
        return replace(part, rope=rope)
    f = part.rope.factor
    magnitude = 1 + 0.1 * math.log(f) if rope.method == "yarn" else 1.0
    return replace(
        part,
        rope=rope,
        layer_scale=tuple(f * s for s in part.layer_scale),
        layer_attn_factor=tuple(magnitude * a for a in part.layer_attn_factor),
        control_points=part.control_points if f == 1 else None,
        attn_control_points=part.attn_control_points if magnitude == 1 else None,
        provenance={**part.provenance, "folded_rope": {"method": part.rope.method, "factor": f}},
    )
