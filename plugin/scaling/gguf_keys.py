"""`ropebend.*`: the GGUF metadata form of a `LayerScaling`, as docs/format.md specifies it.

The keys stand in our own namespace, as the GGUF specification asks of community keys; llama.cpp ignores them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropebend.errors import ScalesError
from ropebend.scaling import factors_json
from ropebend.scaling.validation import UNBOUNDED, check_attn_factors, check_scales, check_up_to, no_constant, numbers

if TYPE_CHECKING:
    from ropebend.scaling import LayerScaling

PREFIX = "ropebend."
VERSION = "ropebend.version"  # u32
LAYER_SCALE = "ropebend.layer_scale"  # f32[block_count], of P plans by length f32[P * block_count]; none: zeros
LAYER_ATTN_FACTOR = "ropebend.layer_attn_factor"  # f32, as many; version 2
PLAN_UP_TO = "ropebend.plan.up_to"  # u32[P], tokens; version 2
METHOD = "ropebend.rope.method"  # string
FACTOR = "ropebend.rope.factor"  # f32
ORIGINAL_CONTEXT = "ropebend.rope.original_context"  # u32
PROVENANCE = "ropebend.provenance"  # string, JSON
ROOM = "ropebend.room."  # what starts so is space for later changes

# What else travels in the provenance.
_CURVE, _ATTN_CURVE, _EXTRA, _PLANS = "ropebend.curve", "ropebend.attn_curve", "ropebend.extra", "ropebend.plans"


def parse(fields: Mapping[str, Any], block_count: int) -> dict[str, Any] | None:
    """The fields of a LayerScaling from GGUF metadata (key → Python value); None if the file carries no scales.

    `shorter` holds pairs of up_to and fields, None for "none".  Raises ScalesError if the keys are there but do not
    fit: a scaled file never runs unscaled by accident.
    """
    if LAYER_SCALE not in fields:
        stray = sorted(k for k in fields if k.startswith(PREFIX))
        if stray:
            raise ScalesError(f"{LAYER_SCALE}: missing, although {stray[0]} is present")
        return None
    version = fields.get(VERSION)
    if version not in (1, 2):
        raise ScalesError(f"{VERSION}: expected 1 or 2, got {version!r}; a newer ropebend may read it")
    for key in (PLAN_UP_TO, LAYER_ATTN_FACTOR):
        if key in fields and version == 1:
            raise ScalesError(f"{VERSION}: expected 2, as {key} is present, got 1")
    raw = {
        "method": fields.get(METHOD, "none"),
        "factor": fields.get(FACTOR, 1.0),
        "original_context": fields.get(ORIGINAL_CONTEXT),
    }
    rope = factors_json.parse_rope(raw, {}, PREFIX)
    try:
        provenance = json.loads(fields.get(PROVENANCE, "{}"), parse_constant=no_constant)
    except (TypeError, ValueError, RecursionError):
        provenance = None
    if not isinstance(provenance, dict):
        raise ScalesError(f"{PROVENANCE}: expected a JSON object, got {fields[PROVENANCE]!r:.80}")
    bounds = _bounds(fields)
    n = block_count * max(1, len(bounds))
    scales = numbers(fields[LAYER_SCALE], LAYER_SCALE)
    # as many as there are scales, not blocks: a hostile file may claim billions of those
    factors = numbers(fields.get(LAYER_ATTN_FACTOR, (1.0,) * len(scales)), LAYER_ATTN_FACTOR)
    for key, values, what in ((LAYER_SCALE, scales, "scales"), (LAYER_ATTN_FACTOR, factors, "attention factors")):
        if bounds and len(values) != n:
            raise ScalesError(f"{key}: expected {n} {what}, for {len(bounds)} plans one per block, got {len(values)}")
    told = provenance.pop(_PLANS, [])
    parts: list[dict[str, Any] | None] = []
    for i in range(max(1, len(bounds))):
        row = slice(i * block_count, (i + 1) * block_count if bounds else None)
        last = i >= len(bounds) - 1
        if not last and not any(scales[row]):
            parts.append(None)
            continue
        check_scales(scales[row], block_count, LAYER_SCALE, row.start)
        check_attn_factors(factors[row], block_count, LAYER_ATTN_FACTOR, row.start)
        about = provenance if last else told[i] if isinstance(told, list) and i < len(told) else {}
        parts.append({"layer_scale": scales[row], "layer_attn_factor": factors[row], "rope": rope, **_about(about)})
    fields_of_last = parts.pop()
    assert fields_of_last is not None
    shorter = list(zip(bounds, parts, strict=False))
    return {**fields_of_last, "shorter": shorter, "up_to": bounds[-1] if bounds else None}


def _bounds(fields: Mapping[str, Any]) -> list[int]:
    """`up_to` of each plan; none if the scales do not depend on the length."""
    if PLAN_UP_TO not in fields:
        return []
    bounds = [int(min(n, 2.0**33)) if n > 0 else 0 for n in numbers(fields[PLAN_UP_TO], PLAN_UP_TO)]
    if not bounds:
        raise ScalesError(f"{PLAN_UP_TO}: expected one length or more, got none")
    check_up_to(bounds, PLAN_UP_TO)
    return bounds


def _about(provenance: Any) -> dict[str, Any]:
    """Curves, extra keys and the provenance proper of one plan."""
    if not isinstance(provenance, dict):
        raise ScalesError(f"{PROVENANCE}: {_PLANS}: expected objects, got {provenance!r:.80}")
    provenance = dict(provenance)
    extra = provenance.pop(_EXTRA, None) or {}
    if not factors_json.is_extra(extra):
        raise ScalesError(f"{PROVENANCE}: {_EXTRA}: expected unknown keys of factors.json, got {extra!r:.80}")
    return {
        "control_points": factors_json.parse_curve(provenance.pop(_CURVE, None), {}),
        "attn_control_points": factors_json.parse_curve(provenance.pop(_ATTN_CURVE, None), {}, "attn_curve"),
        "provenance": provenance,
        "extra": extra,
    }


def dump(scaling: LayerScaling) -> dict[str, Any]:
    """Our GGUF keys and their values; the curves and the extra keys travel in the provenance.

    Raises ScalesError for a provenance that JSON cannot hold.
    """
    parts = [*((p.up_to, p.scaling) for p in scaling.shorter), (scaling.up_to or UNBOUNDED, scaling)]
    n = scaling.n_layer
    out: dict[str, Any] = {VERSION: scaling.version}
    if scaling.has_plans:
        out[PLAN_UP_TO] = [up_to for up_to, _ in parts]
    out[LAYER_SCALE] = [s for _, part in parts for s in (part.layer_scale if part else (0.0,) * n)]
    if scaling.has_attn_factors:
        out[LAYER_ATTN_FACTOR] = [a for _, part in parts for a in (part.layer_attn_factor if part else (1.0,) * n)]
    out |= {METHOD: scaling.rope.method, FACTOR: scaling.rope.factor}
    if scaling.rope.original_context is not None:
        out[ORIGINAL_CONTEXT] = scaling.rope.original_context
    provenance = _dump_about(scaling)
    told = [_dump_about(p.scaling) if p.scaling is not None else {} for p in scaling.shorter]
    if any(told):
        provenance[_PLANS] = told
    if provenance:
        try:
            out[PROVENANCE] = json.dumps(provenance, ensure_ascii=False, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise ScalesError(f"{PROVENANCE}: expected what JSON can hold: {e}") from None
    return out


def _dump_about(part: LayerScaling) -> dict[str, Any]:
    out = dict(part.provenance)
    for key, points in ((_CURVE, part.control_points), (_ATTN_CURVE, part.attn_control_points)):
        if points is not None:
            out[key] = {"control_points": [list(p) for p in points]}
    if part.extra:
        out[_EXTRA] = dict(part.extra)
    return out
