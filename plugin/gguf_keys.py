"""`ropebend.*`: the GGUF metadata form of a `LayerScaling`, as docs/format.md specifies it.

The keys stand in our own namespace, as the GGUF specification asks of community keys; llama.cpp ignores them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropebend import factors_json
from ropebend.errors import ScalesError
from ropebend.validation import check_scales, no_constant, numbers

if TYPE_CHECKING:
    from ropebend.scaling import LayerScaling

PREFIX = "ropebend."
VERSION = "ropebend.version"  # u32
LAYER_SCALE = "ropebend.layer_scale"  # f32[block_count]
METHOD = "ropebend.rope.method"  # string
FACTOR = "ropebend.rope.factor"  # f32
ORIGINAL_CONTEXT = "ropebend.rope.original_context"  # u32
PROVENANCE = "ropebend.provenance"  # string, JSON
ROOM = "ropebend.room."  # what starts so is space for later changes

_CURVE, _EXTRA = "ropebend.curve", "ropebend.extra"  # what else travels in the provenance


def parse(fields: Mapping[str, Any], block_count: int) -> dict[str, Any] | None:
    """The fields of a LayerScaling from GGUF metadata (key → Python value); None if the file carries no scales.

    Raises ScalesError if the keys are there but do not fit: a scaled file never runs unscaled by accident.
    """
    if LAYER_SCALE not in fields:
        stray = sorted(k for k in fields if k.startswith(PREFIX))
        if stray:
            raise ScalesError(f"{LAYER_SCALE}: missing, although {stray[0]} is present")
        return None
    if fields.get(VERSION) != 1:
        raise ScalesError(f"{VERSION}: expected 1, got {fields.get(VERSION)!r}; a newer ropebend may read it")
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
    extra = provenance.pop(_EXTRA, None) or {}
    if not factors_json.is_extra(extra):
        raise ScalesError(f"{PROVENANCE}: {_EXTRA}: expected unknown keys of factors.json, got {extra!r:.80}")
    curve = factors_json.parse_curve(provenance.pop(_CURVE, None), {})
    scales = numbers(fields[LAYER_SCALE], LAYER_SCALE)
    check_scales(scales, block_count, LAYER_SCALE)
    return {
        "layer_scale": scales,
        "rope": rope,
        "control_points": curve,
        "provenance": provenance,
        "extra": extra,
    }


def dump(scaling: LayerScaling) -> dict[str, Any]:
    """Our GGUF keys and their values; the curve and the extra keys travel in the provenance."""
    out: dict[str, Any] = {
        VERSION: 1,
        LAYER_SCALE: list(scaling.layer_scale),
        METHOD: scaling.rope.method,
        FACTOR: scaling.rope.factor,
    }
    if scaling.rope.original_context is not None:
        out[ORIGINAL_CONTEXT] = scaling.rope.original_context
    provenance = dict(scaling.provenance)
    if scaling.control_points is not None:
        provenance[_CURVE] = {"control_points": [list(p) for p in scaling.control_points]}
    if scaling.extra:
        provenance[_EXTRA] = dict(scaling.extra)
    if provenance:
        try:
            out[PROVENANCE] = json.dumps(provenance, ensure_ascii=False, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise ScalesError(f"{PROVENANCE}: expected what JSON can hold: {e}") from None
    return out
