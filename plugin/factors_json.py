"""factors.json: the text form of a `LayerScaling`, as docs/format.md specifies it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropebend.errors import FileError, ScalesError
from ropebend.rope_method import METHODS, NO_METHOD, RopeMethod
from ropebend.validation import as_f32, check_scales, no_constant, number, numbers

if TYPE_CHECKING:
    from ropebend.scaling import LayerScaling

FORMAT = "ropebend/1"
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
    """The fields of a LayerScaling from an object of format ropebend/1 or a bare list of scales."""
    if isinstance(data, list):
        return {"layer_scale": numbers(data, "the list")}
    if not isinstance(data, dict):
        raise ScalesError(f"expected an object or a list of scales, got {type(data).__name__}")
    data = dict(data)
    found = data.pop("format", None)
    if found != FORMAT:
        raise ScalesError(f"format: expected {FORMAT!r}, got {found!r}")
    architecture = data.pop("architecture", None)
    if architecture is not None and not isinstance(architecture, str):
        raise ScalesError(f"architecture: expected a string, got {architecture!r}")
    extra: dict[str, Any] = {}
    points = parse_curve(data.pop("curve", None), extra)
    block_count = data.pop("block_count", None)
    if block_count is not None and (type(block_count) is not int or block_count < 1):
        raise ScalesError(f"block_count: expected a positive integer, got {block_count!r}")
    raw = data.pop("layer_scale", None)
    if raw is not None:
        scales = numbers(raw, "layer_scale")
    elif points is not None and block_count is not None:
        from ropebend.bezier import layer_scales  # numpy: later, for the command line's sake

        scales = tuple(layer_scales(points, block_count))
    else:
        raise ScalesError("layer_scale: missing; expected a list of scales, or curve together with block_count")
    check_scales(scales, block_count if block_count is not None else len(scales), "layer_scale")
    provenance = data.pop("provenance", None) or {}
    if not isinstance(provenance, dict):
        raise ScalesError(f"provenance: expected an object, got {provenance!r}")
    reserved = sorted(k for k in provenance if k.startswith(RESERVED))
    if reserved:
        raise ScalesError(f"provenance: keys that start with {RESERVED!r} are reserved, got {reserved[0]!r}")
    return {
        "layer_scale": scales,
        "architecture": architecture,
        "rope": parse_rope(data.pop("rope", None), extra),
        "control_points": points,
        "provenance": provenance,
        "extra": {**data, **extra},
    }


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


def parse_curve(raw: Any, extra: dict[str, Any]) -> Points | None:
    """The control points of the `curve` object; keys it should not have go into `extra`."""
    if raw is None:
        return None
    points = raw.get("control_points") if isinstance(raw, dict) else None
    if not isinstance(points, list) or len(points) != 4 or any(not isinstance(p, list) or len(p) != 2 for p in points):
        raise ScalesError(f"curve.control_points: expected four [x, y] pairs, got {raw!r:.120}")
    unknown = {k: v for k, v in raw.items() if k != "control_points"}
    if unknown:
        extra["curve"] = unknown
    flat = [numbers(p, f"curve.control_points[{i}]") for i, p in enumerate(points)]
    if not all(math.isfinite(v) for p in flat for v in p):
        raise ScalesError(f"curve.control_points: expected finite numbers, got {raw!r:.120}")
    return tuple((p[0], p[1]) for p in flat)


def is_extra(value: Any) -> bool:
    """True if these can be unknown keys of a factors.json: none stands in the way of the known ones."""
    taken = {"format", "architecture", "block_count", "layer_scale", "provenance"}
    inner = {"rope": {"method", "factor", "original_context"}, "curve": {"control_points"}}
    try:
        return not (taken & value.keys() or any(own & value[key].keys() for key, own in inner.items() if key in value))
    except AttributeError:  # not an object
        return False


def dump(scaling: LayerScaling) -> dict[str, Any]:
    """The factors.json object; `parse` reads it back."""
    extra = dict(scaling.extra)
    out: dict[str, Any] = {"format": FORMAT}
    if scaling.architecture is not None:
        out["architecture"] = scaling.architecture
    out["block_count"] = scaling.n_layer
    out["layer_scale"] = list(scaling.layer_scale)
    if scaling.control_points is not None:
        out["curve"] = {"control_points": [list(p) for p in scaling.control_points], **extra.pop("curve", {})}
    rope: dict[str, Any] = {"method": scaling.rope.method, "factor": scaling.rope.factor}
    if scaling.rope.original_context is not None:
        rope["original_context"] = scaling.rope.original_context
    out["rope"] = {**rope, **extra.pop("rope", {})}
    if scaling.provenance:
        out["provenance"] = dict(scaling.provenance)
    return {**out, **extra}
