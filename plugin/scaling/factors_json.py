"""factors.json: the text form of a `LayerScaling`, as docs/format.md specifies it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropebend.errors import FileError, ScalesError
from ropebend.scaling.rope_method import METHODS, NO_METHOD, RopeMethod
from ropebend.scaling.validation import (
    ATTN_FACTOR_RANGE,
    UNBOUNDED,
    as_f32,
    check_attn_factors,
    check_scales,
    check_up_to,
    no_constant,
    number,
    numbers,
)

if TYPE_CHECKING:
    from ropebend.scaling import LayerScaling

FORMATS = ("ropebend/1", "ropebend/2")
NONE = "none"  # layer_scale of a plan whose sequences run unscaled
PLAN_KEYS = {"layer_scale", "layer_attn_factor", "curve", "attn_curve", "provenance"}
RESERVED = "ropebend."  # what keys of the provenance must not begin with: the GGUF needs room for its own

Points = tuple[tuple[float, float], ...]


def read_file(path: str | Path) -> Any:
    """The parsed JSON of a factors file.  Raises FileError naming the file and the place."""
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"GGUF"):
            raise FileError(f"{path}: is a model, expected a factors file (JSON)")
        return json.loads(data.decode(), parse_constant=no_constant)
    except OSError as e:
        raise FileError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise FileError(f"{path}: not UTF-8 text (byte {e.start})") from None
    except json.JSONDecodeError as e:
        raise FileError(f"{path}: not JSON: line {e.lineno} column {e.colno}: {e.msg}") from None
    except ValueError as e:
        raise FileError(f"{path}: not a factors file: {e}") from None
    except RecursionError:
        raise FileError(f"{path}: not a factors file: nested too deeply") from None


def parse(data: Any) -> dict[str, Any]:
    """The fields of a LayerScaling from an object of format ropebend/1 or 2, or a bare list of scales.

    `shorter` holds pairs of up_to and fields, None for "none".  Raises ScalesError naming the key, RopebendError if the
    scales are left to a curve that is none.
    """
    if isinstance(data, list):
        return {"layer_scale": numbers(data, "the list")}
    if not isinstance(data, dict):
        raise ScalesError(f"expected an object or a list of scales, got {type(data).__name__}")
    data = dict(data)
    found = data.pop("format", None)
    if found not in FORMATS:
        raise ScalesError(f"format: expected {' or '.join(map(repr, FORMATS))}, got {found!r}")
    newer = [key for key in ("plans", "layer_attn_factor", "attn_curve") if key in data]
    if newer and found == FORMATS[0]:
        raise ScalesError(f"{newer[0]}: expected format {FORMATS[1]!r} where it is present, got {found!r}")
    architecture = data.pop("architecture", None)
    if architecture is not None and not isinstance(architecture, str):
        raise ScalesError(f"architecture: expected a string, got {architecture!r}")
    block_count = data.pop("block_count", None)
    if block_count is not None and (type(block_count) is not int or block_count < 1):
        raise ScalesError(f"block_count: expected a positive integer, got {block_count!r}")
    unknown: dict[str, Any] = {}
    rope = parse_rope(data.pop("rope", None), unknown)
    plans = data.pop("plans", None)
    fields = _parse_numbers(data, block_count, "") if plans is None else _parse_plans(plans, data, block_count, rope)
    return {**fields, "architecture": architecture, "rope": rope, "extra": {**data, **unknown, **fields["extra"]}}


def _parse_numbers(data: dict[str, Any], block_count: int | None, at: str) -> dict[str, Any]:
    """What one plan has, taken out of `data`; extra: the unknown keys of its curves.  at: where it stands."""
    extra: dict[str, Any] = {}
    points = parse_curve(data.pop("curve", None), extra, f"{at}curve")
    attn_points = parse_curve(data.pop("attn_curve", None), extra, f"{at}attn_curve")
    key = f"{at}layer_scale"
    raw, raw_attn = data.pop("layer_scale", None), data.pop("layer_attn_factor", None)
    scales: tuple[float, ...]
    if raw is not None:
        scales = numbers(raw, key)
    elif points is not None and block_count is not None:
        scales = _on_curve(points, block_count, 1.0)
    else:
        raise ScalesError(f"{key}: missing; expected a list of scales, or curve together with block_count")
    check_scales(scales, block_count if block_count is not None else len(scales), key)
    attn: tuple[float, ...] = ()
    if raw_attn is not None:
        attn = numbers(raw_attn, f"{at}layer_attn_factor")
        check_attn_factors(attn, len(scales), f"{at}layer_attn_factor")
    elif attn_points is not None:
        attn = _on_curve(attn_points, len(scales), ATTN_FACTOR_RANGE[0])
    provenance = data.pop("provenance", None) or {}
    if not isinstance(provenance, dict):
        raise ScalesError(f"{at}provenance: expected an object, got {provenance!r}")
    reserved = sorted(k for k in provenance if k.startswith(RESERVED))
    if reserved:
        raise ScalesError(f"{at}provenance: keys that start with {RESERVED!r} are reserved, got {reserved[0]!r}")
    return {
        "layer_scale": scales,
        "control_points": points,
        "provenance": provenance,
        "layer_attn_factor": attn,
        "attn_control_points": attn_points,
        "extra": extra,
    }


def _on_curve(points: Points, n_layer: int, floor: float) -> tuple[float, ...]:
    from ropebend.scaling.bezier import layer_scales  # numpy: later, for the command line's sake

    return tuple(layer_scales(points, n_layer, floor))


def _parse_plans(plans: Any, around: dict[str, Any], block_count: int | None, rope: RopeMethod) -> dict[str, Any]:
    """The fields of the last plan, with the others in `shorter`.  around: the object that `plans` stands in."""
    for key in PLAN_KEYS & around.keys():
        raise ScalesError(f"{key}: expected in each of plans, where there are any, not beside them")
    if not isinstance(plans, list) or not plans or not all(isinstance(p, dict) for p in plans):
        raise ScalesError(f"plans: expected a list of objects, got {plans!r:.80}")
    bounds: list[Any] = []
    parts: list[dict[str, Any] | None] = []
    for i, plan in enumerate(map(dict, plans)):
        at, last = f"plans[{i}].", i == len(plans) - 1
        up_to = plan.pop("up_to", None)
        bounds.append(UNBOUNDED if up_to is None and last else up_to)
        if plan.get("layer_scale") == NONE:
            if last:
                raise ScalesError(f"{at}layer_scale: expected scales in the last plan, got {NONE!r}")
            if len(plan) > 1:
                raise ScalesError(
                    f"{at}{next(k for k in plan if k != 'layer_scale')}: expected nothing beside {NONE!r}"
                )
            parts.append(None)
            continue
        if "rope" in plan:
            raise ScalesError(f"{at}rope: expected beside plans: all have one method")
        part = _parse_numbers(plan, block_count, at)
        parts.append({**part, "rope": rope, "extra": {**plan, **part["extra"]}})
    check_up_to(bounds, "plans.up_to")
    last_part = parts.pop()
    assert last_part is not None
    del last_part["rope"]
    return {**last_part, "shorter": list(zip(bounds, parts, strict=False)), "up_to": bounds[-1]}


def parse_rope(raw: Any, extra: dict[str, Any], prefix: str = "") -> RopeMethod:
    """The `rope` object; keys it should not have go into `extra`."""
    if raw is None:
        return NO_METHOD
    if not isinstance(raw, dict):
        raise ScalesError(f"{prefix}rope: expected an object, got {raw!r:.80}")
    unknown = {k: v for k, v in raw.items() if k not in ("method", "factor", "original_context")}
    if unknown:
        extra["rope"] = unknown
    method = raw.get("method", "none")
    if not isinstance(method, str):
        raise ScalesError(f"{prefix}rope.method: expected one of {', '.join(METHODS)}, got {method!r:.80}")
    original = raw.get("original_context")
    if original is not None and type(original) is not int:
        raise ScalesError(f"{prefix}rope.original_context: expected a positive number of tokens, got {original!r:.80}")
    rope = RopeMethod(method, as_f32(number(raw.get("factor", 1.0), f"{prefix}rope.factor")), original)
    rope.check(prefix)
    return rope


def parse_curve(raw: Any, extra: dict[str, Any], key: str = "curve") -> Points | None:
    """The control points of a curve's object; keys it should not have go into `extra`."""
    if raw is None:
        return None
    points = raw.get("control_points") if isinstance(raw, dict) else None
    if not isinstance(points, list) or len(points) != 4 or any(not isinstance(p, list) or len(p) != 2 for p in points):
        raise ScalesError(f"{key}.control_points: expected four [x, y] pairs, got {raw!r:.120}")
    unknown = {k: v for k, v in raw.items() if k != "control_points"}
    if unknown:
        extra[key.rpartition(".")[2]] = unknown
    flat = [numbers(p, f"{key}.control_points[{i}]") for i, p in enumerate(points)]
    if not all(math.isfinite(v) for p in flat for v in p):
        raise ScalesError(f"{key}.control_points: expected finite numbers, got {raw!r:.120}")
    return tuple((p[0], p[1]) for p in flat)


def is_extra(value: Any) -> bool:
    """True if these can be unknown keys of a factors.json: none stands in the way of the known ones."""
    taken = {"format", "architecture", "block_count", "layer_scale", "provenance", "layer_attn_factor", "plans"}
    curve = {"control_points"}
    inner = {"rope": {"method", "factor", "original_context"}, "curve": curve, "attn_curve": curve}
    try:
        return not (taken & value.keys() or any(own & value[key].keys() for key, own in inner.items() if key in value))
    except AttributeError:  # not an object
        return False


def dump(scaling: LayerScaling) -> dict[str, Any]:
    """The factors.json object; `parse` reads it back."""
    extra = dict(scaling.extra)
    out: dict[str, Any] = {"format": FORMATS[scaling.version - 1]}
    if scaling.architecture is not None:
        out["architecture"] = scaling.architecture
    out["block_count"] = scaling.n_layer
    rope: dict[str, Any] = {"method": scaling.rope.method, "factor": scaling.rope.factor}
    if scaling.rope.original_context is not None:
        rope["original_context"] = scaling.rope.original_context
    rope |= extra.pop("rope", {})
    if not scaling.has_plans:
        numbers = _dump_numbers(scaling, extra)
        provenance = {"provenance": numbers.pop("provenance")} if scaling.provenance else {}
        return {**out, **numbers, "rope": rope, **provenance, **extra}
    plans: list[dict[str, Any]] = []
    for plan in scaling.shorter:
        if plan.scaling is None:
            plans.append({"up_to": plan.up_to, "layer_scale": NONE})
        else:
            rest = dict(plan.scaling.extra)
            plans.append({"up_to": plan.up_to, **_dump_numbers(plan.scaling, rest), **rest})
    last = {} if scaling.up_to is None else {"up_to": scaling.up_to}
    plans.append({**last, **_dump_numbers(scaling, extra)})
    return {**out, "rope": rope, "plans": plans, **extra}


def _dump_numbers(part: LayerScaling, extra: dict[str, Any]) -> dict[str, Any]:
    """What one plan has; unknown keys of its curves are taken out of `extra`."""
    out: dict[str, Any] = {"layer_scale": list(part.layer_scale)}
    if set(part.layer_attn_factor) != {1.0}:
        out["layer_attn_factor"] = list(part.layer_attn_factor)
    for key, points in (("curve", part.control_points), ("attn_curve", part.attn_control_points)):
        if points is not None:
            out[key] = {"control_points": [list(p) for p in points], **extra.pop(key, {})}
    if part.provenance:
        out["provenance"] = dict(part.provenance)
    return out
