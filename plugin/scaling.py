"""`LayerScaling`: the one value that flows from factors.json through GGUF metadata to the native plan.

`scale` always stretches: with scale s positions are divided by s, so llama.cpp's freq_scale becomes 1/s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ropebend import _native
from ropebend.bezier import ControlPoints, layer_scales
from ropebend.errors import RopebendError
from ropebend.files import write_json
from ropebend.plan import Plan

FORMAT = "ropebend/1"
MIN_SCALE, MAX_SCALE = 0.1, 1000.0
METHODS = ("none", "linear", "ntk", "dynamic-ntk", "yarn")

#: Architectures that llama.cpp runs without RoPE (``llama_model_rope_type`` returns NONE).
ARCHITECTURES_WITHOUT_ROPE = frozenset(_native.ARCHITECTURES_WITHOUT_ROPE)

#: What a model's own rope.scaling.type is called.
OWN_METHODS = {"yarn": "YaRN", "linear": "linear scaling", "longrope": "LongRoPE"}


class Keys:
    """GGUF metadata keys, in our own namespace as the GGUF specification asks of community keys."""

    PREFIX = "ropebend."
    VERSION = "ropebend.version"  # u32
    LAYER_SCALE = "ropebend.layer_scale"  # f32[block_count]
    METHOD = "ropebend.rope.method"  # string
    FACTOR = "ropebend.rope.factor"  # f32
    ORIGINAL_CONTEXT = "ropebend.rope.original_context"  # u32
    PROVENANCE = "ropebend.provenance"  # string, JSON
    ROOM = "ropebend.room."  # what starts so is space for later changes, see docs/format.md


VERSION = 1
_CURVE, _EXTRA = "ropebend.curve", "ropebend.extra"  # what else travels in the provenance


def as_f32(value: float) -> float:
    """Round to float32 and back to its shortest decimal, so that JSON, GGUF and the plan hold the same number."""
    with np.errstate(over="ignore"):  # too large a number becomes infinity, which the checks refuse
        return float(str(np.float32(value)))


@dataclass(frozen=True)
class RopeMethod:
    """An extension method and its interpolation factor, which the layer scales multiply.

    method            "none", "linear" (PI), "ntk", "dynamic-ntk" or "yarn"
    factor            the method's factor f >= 1 (1 for "none")
    original_context  tokens the model was trained at; needed by "dynamic-ntk" and "yarn", default: from the model
    """

    method: str = "none"
    factor: float = 1.0
    original_context: int | None = None


NO_METHOD = RopeMethod()


@dataclass(frozen=True)
class LayerScaling:
    """One RoPE scale per layer, with the method it multiplies and where it came from.

    layer_scale     one scale per block, MTP blocks included; always present and authoritative
    architecture    the GGUF's general.architecture, or None if unknown (a bare list)
    rope            the extension method underneath
    control_points  the Bézier curve the scales came from, if any
    provenance      free JSON: model digest, task, seed, budget, scores, versions
    extra           unknown keys of factors.json, kept as they were (those inside rope and curve under these names)
    """

    layer_scale: tuple[float, ...]
    architecture: str | None = None
    rope: RopeMethod = NO_METHOD
    control_points: tuple[tuple[float, float], ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_scales(self.layer_scale, len(self.layer_scale), "layer_scale")
        object.__setattr__(self, "layer_scale", tuple(as_f32(s) for s in self.layer_scale))
        _check_rope(self.rope)

    @property
    def n_layer(self) -> int:
        """Number of blocks (GGUF block_count)."""
        return len(self.layer_scale)

    # ---- makers

    @classmethod
    def uniform(cls, scale: float, n_layer: int, **more: Any) -> LayerScaling:
        """The same scale for every layer."""
        return cls((scale,) * n_layer, **more)

    @classmethod
    def from_curve(cls, control_points: ControlPoints, n_layer: int, **more: Any) -> LayerScaling:
        """Scales from a cubic Bézier curve, clipped at 1 from below (see `ropebend.bezier`)."""
        points = tuple((float(x), float(y)) for x, y in control_points)
        return cls(tuple(layer_scales(points, n_layer)), control_points=points, **more)

    # ---- checks

    def check_model(self, block_count: int, architecture: str, own_method: str = "none") -> None:
        """Raise RopebendError unless these scales fit a model as its metadata describe it.

        own_method: the model's <architecture>.rope.scaling.type
        """
        if architecture in ARCHITECTURES_WITHOUT_ROPE:
            raise RopebendError(f"general.architecture: {architecture!r} has no RoPE, so there is nothing to scale")
        if architecture in _native.ARCHITECTURES_WITH_SHARED_KEYS:
            raise RopebendError(
                f"general.architecture: {architecture!r} is not supported: some of its layers read the keys of "
                "another layer"
            )
        if self.architecture is not None and self.architecture != architecture:
            raise RopebendError(
                f"architecture: the scales were made for {self.architecture!r}, the model is {architecture!r}"
            )
        _check_scales(self.layer_scale, block_count, "layer_scale")
        if self.rope.method == "yarn" and own_method != "none":
            raise RopebendError(
                f"rope.method: the model carries {OWN_METHODS.get(own_method, own_method)} already, and YaRN does not "
                "fit on it. Use method none, the layer scales then multiply it"
            )

    # ---- factors.json

    @classmethod
    def from_json(cls, data: Any) -> LayerScaling:
        """Read the parsed JSON of a factors file: an object of format ropebend/1 or a bare list of scales."""
        if isinstance(data, list):
            return cls(_numbers(data, "the list"))
        if not isinstance(data, dict):
            raise RopebendError(f"expected an object or a list of scales, got {type(data).__name__}")
        data = dict(data)
        found = data.pop("format", None)
        if found != FORMAT:
            raise RopebendError(f"format: expected {FORMAT!r}, got {found!r}")
        architecture = data.pop("architecture", None)
        if architecture is not None and not isinstance(architecture, str):
            raise RopebendError(f"architecture: expected a string, got {architecture!r}")
        extra: dict[str, Any] = {}
        points = _read_curve(data.pop("curve", None), extra)
        block_count = data.pop("block_count", None)
        if block_count is not None and (type(block_count) is not int or block_count < 1):
            raise RopebendError(f"block_count: expected a positive integer, got {block_count!r}")
        raw = data.pop("layer_scale", None)
        if raw is not None:
            scales = _numbers(raw, "layer_scale")
        elif points is not None and block_count is not None:
            scales = tuple(layer_scales(points, block_count))
        else:
            raise RopebendError("layer_scale: missing; expected a list of scales, or curve together with block_count")
        _check_scales(scales, block_count if block_count is not None else len(scales), "layer_scale")
        provenance = data.pop("provenance", None) or {}
        if not isinstance(provenance, dict):
            raise RopebendError(f"provenance: expected an object, got {provenance!r}")
        reserved = sorted(k for k in provenance if k.startswith(Keys.PREFIX))
        if reserved:
            raise RopebendError(f"provenance: keys that start with {Keys.PREFIX!r} are reserved, got {reserved[0]!r}")
        rope = _read_rope(data.pop("rope", None), extra)
        return cls(scales, architecture, rope, points, provenance, {**data, **extra})

    def to_json(self) -> dict[str, Any]:
        """The factors.json object; `from_json` reads it back to an equal value."""
        extra = dict(self.extra)
        out: dict[str, Any] = {"format": FORMAT}
        if self.architecture is not None:
            out["architecture"] = self.architecture
        out["block_count"] = self.n_layer
        out["layer_scale"] = list(self.layer_scale)
        if self.control_points is not None:
            out["curve"] = {"control_points": [list(p) for p in self.control_points], **extra.pop("curve", {})}
        rope: dict[str, Any] = {"method": self.rope.method, "factor": self.rope.factor}
        if self.rope.original_context is not None:
            rope["original_context"] = self.rope.original_context
        out["rope"] = {**rope, **extra.pop("rope", {})}
        if self.provenance:
            out["provenance"] = dict(self.provenance)
        return {**out, **extra}

    def save(self, path: str | Path) -> None:
        """Write a factors file, whole or not at all.  Raises RopebendError naming the file."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> LayerScaling:
        """Read a factors file.  Raises RopebendError naming the file, the key, the value and what was expected."""
        try:
            data = Path(path).read_bytes()
            if data.startswith(b"GGUF"):
                raise RopebendError("is a model, expected a factors file (JSON)")
            return cls.from_json(json.loads(data.decode(), parse_constant=_no_constant))
        except OSError as e:
            raise RopebendError(f"{path}: {e.strerror}") from None
        except UnicodeDecodeError as e:
            raise RopebendError(f"{path}: not UTF-8 text (byte {e.start})") from None
        except json.JSONDecodeError as e:
            raise RopebendError(f"{path}: not JSON: line {e.lineno} column {e.colno}: {e.msg}") from None
        except ValueError as e:
            raise RopebendError(f"{path}: not a factors file: {e}") from None
        except RecursionError:
            raise RopebendError(f"{path}: not a factors file: nested too deeply") from None
        except RopebendError as e:
            raise RopebendError(f"{path}: {e}") from None

    # ---- GGUF metadata

    @classmethod
    def from_metadata(cls, fields: Mapping[str, Any], architecture: str, block_count: int) -> LayerScaling | None:
        """Read our keys from GGUF metadata (key → Python value); None if the file carries no scales.

        Raises RopebendError if the keys are there but do not fit: a scaled file never runs unscaled by accident.
        """
        if Keys.LAYER_SCALE not in fields:
            stray = sorted(k for k in fields if k.startswith(Keys.PREFIX))
            if stray:
                raise RopebendError(f"{Keys.LAYER_SCALE}: missing, although {stray[0]} is present")
            return None
        version = fields.get(Keys.VERSION)
        if version != VERSION:
            raise RopebendError(f"{Keys.VERSION}: expected {VERSION}, got {version!r}; a newer ropebend may read it")
        rope = _read_rope(
            {
                "method": fields.get(Keys.METHOD, "none"),
                "factor": fields.get(Keys.FACTOR, 1.0),
                "original_context": fields.get(Keys.ORIGINAL_CONTEXT),
            },
            {},
            Keys.PREFIX,
        )
        try:
            provenance = json.loads(fields.get(Keys.PROVENANCE, "{}"), parse_constant=_no_constant)
        except (TypeError, ValueError, RecursionError):
            provenance = None
        if not isinstance(provenance, dict):
            raise RopebendError(f"{Keys.PROVENANCE}: expected a JSON object, got {fields[Keys.PROVENANCE]!r:.80}")
        extra = _checked_extra(provenance.pop(_EXTRA, None) or {})
        curve = _read_curve(provenance.pop(_CURVE, None), {})
        scales = _numbers(fields[Keys.LAYER_SCALE], Keys.LAYER_SCALE)
        _check_scales(scales, block_count, Keys.LAYER_SCALE)
        value = cls(scales, architecture, rope, curve, provenance, extra)
        value.check_model(block_count, architecture, own_rope_method(fields, architecture))
        return value

    def to_metadata(self) -> dict[str, Any]:
        """Our GGUF keys and their values.  Types: see `Keys`; the curve and extra keys travel in the provenance."""
        out: dict[str, Any] = {
            Keys.VERSION: VERSION,
            Keys.LAYER_SCALE: list(self.layer_scale),
            Keys.METHOD: self.rope.method,
            Keys.FACTOR: self.rope.factor,
        }
        if self.rope.original_context is not None:
            out[Keys.ORIGINAL_CONTEXT] = self.rope.original_context
        provenance = dict(self.provenance)
        if self.control_points is not None:
            provenance[_CURVE] = {"control_points": [list(p) for p in self.control_points]}
        if self.extra:
            provenance[_EXTRA] = dict(self.extra)
        if provenance:
            try:
                out[Keys.PROVENANCE] = json.dumps(provenance, ensure_ascii=False, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError) as e:
                raise RopebendError(f"{Keys.PROVENANCE}: expected what JSON can hold: {e}") from None
        return out

    # ---- native plan

    def with_original_context(self, n_ctx_train: int) -> LayerScaling:
        """Fill in the trained context of the model where the method needs one and none is given."""
        if self.rope.original_context is not None or self.rope.method not in ("dynamic-ntk", "yarn"):
            return self
        return replace(self, rope=replace(self.rope, original_context=n_ctx_train))

    def plan(self, length: int | None = None) -> Plan:
        """The native plan.  `length` is the number of tokens the sequence may reach; only dynamic-ntk reads it."""
        method, f = self.rope.method, self.rope.factor
        scales = np.array(self.layer_scale, dtype=np.float64)
        ones = np.ones(self.n_layer, dtype=np.float32)
        if method == "dynamic-ntk":
            f = dynamic_ntk_factor(f, self._original_context(), length)
        stretched = (f * scales).astype(np.float32)
        if method in ("ntk", "dynamic-ntk"):
            return Plan(ones, stretched)
        if method == "yarn":
            return Plan(stretched, ones, f, self._original_context())
        return Plan(stretched, ones)

    def _original_context(self) -> int:
        if self.rope.original_context is None:
            raise RopebendError(f"rope.original_context: {self.rope.method} needs the length the model was trained at")
        return self.rope.original_context


def own_rope_method(fields: Mapping[str, Any], architecture: str) -> str:
    """The extension method that a model itself carries: "none", or its rope.scaling.type."""
    return str(fields.get(f"{architecture}.rope.scaling.type", "none"))


def length_bucket(length: int, n_ctx_train: int) -> int:
    """Round a length up to n_ctx_train * sqrt(2)^k, k >= 0, so that requests of one bucket share plan and cache."""
    k = 0
    while (bucket := math.ceil(n_ctx_train * 2 ** (k / 2))) < length:
        k += 1
    return bucket


def dynamic_ntk_factor(factor: float, n_ctx_train: int, length: int | None) -> float:
    """Dynamic-NTK's f = max(1, f0*len/n_train - (f0-1)) at the bucket of `length` (default: the trained length)."""
    bucket = length_bucket(length or n_ctx_train, n_ctx_train)
    return max(1.0, factor * bucket / n_ctx_train - (factor - 1.0))


# ---- validation: every failure names the key, the value and what was expected


def _check_scales(scales: Sequence[float], block_count: int, key: str) -> None:
    if len(scales) != block_count or not scales:
        raise RopebendError(f"{key}: expected {block_count} scales, one per block, got {len(scales)}")
    for i, s in enumerate(scales):
        if not MIN_SCALE <= as_f32(s) <= MAX_SCALE:  # false for NaN, too
            raise RopebendError(
                f"{key}[{i}]: expected a finite scale in [{MIN_SCALE:g}, {MAX_SCALE:g}], got {s!r} "
                "(scale stretches: 2 halves llama.cpp's freq_scale)"
            )


def _check_rope(rope: RopeMethod, prefix: str = "") -> None:
    if rope.method not in METHODS:
        raise RopebendError(f"{prefix}rope.method: expected one of {', '.join(METHODS)}, got {rope.method!r}")
    if not (math.isfinite(rope.factor) and 1.0 <= rope.factor <= MAX_SCALE):
        raise RopebendError(f"{prefix}rope.factor: expected a number in [1, {MAX_SCALE:g}], got {rope.factor!r}")
    if rope.method == "none" and rope.factor != 1.0:
        raise RopebendError(f"{prefix}rope.factor: method none has factor 1, got {rope.factor!r}; did you mean linear?")
    n = rope.original_context
    if n is not None and not 1 <= n < 2**31:
        raise RopebendError(f"{prefix}rope.original_context: expected a positive number of tokens, got {n!r}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise RopebendError(f"{key}: expected a number, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise RopebendError(f"{key}: expected a number that fits a float, got an integer that does not") from None


def _numbers(values: Any, key: str) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise RopebendError(f"{key}: expected a list of numbers, got {values!r:.80}")
    return tuple(_number(v, f"{key}[{i}]") for i, v in enumerate(values))


def _read_rope(raw: Any, extra: dict[str, Any], prefix: str = "") -> RopeMethod:
    if raw is None:
        return RopeMethod()
    if not isinstance(raw, dict):
        raise RopebendError(f"{prefix}rope: expected an object, got {raw!r:.80}")
    unknown = {k: v for k, v in raw.items() if k not in ("method", "factor", "original_context")}
    if unknown:
        extra["rope"] = unknown
    method = raw.get("method", "none")
    if not isinstance(method, str):
        raise RopebendError(f"{prefix}rope.method: expected one of {', '.join(METHODS)}, got {method!r:.80}")
    original = raw.get("original_context")
    if original is not None and type(original) is not int:
        raise RopebendError(
            f"{prefix}rope.original_context: expected a positive number of tokens, got {original!r:.80}"
        )
    rope = RopeMethod(method, as_f32(_number(raw.get("factor", 1.0), f"{prefix}rope.factor")), original)
    _check_rope(rope, prefix)
    return rope


def _checked_extra(extra: Any) -> dict[str, Any]:
    """Unknown keys of factors.json as they travel in a GGUF; they must not stand in the way of the known ones."""
    taken = {"format", "architecture", "block_count", "layer_scale", "provenance"}
    inner = {"rope": {"method", "factor", "original_context"}, "curve": {"control_points"}}
    try:
        wrong = taken & extra.keys() or any(own & extra[key].keys() for key, own in inner.items() if key in extra)
    except AttributeError:  # not an object
        wrong = True
    if wrong:
        raise RopebendError(f"{Keys.PROVENANCE}: {_EXTRA}: expected unknown keys of factors.json, got {extra!r:.80}")
    return dict(extra)


def _read_curve(raw: Any, extra: dict[str, Any]) -> tuple[tuple[float, float], ...] | None:
    if raw is None:
        return None
    points = raw.get("control_points") if isinstance(raw, dict) else None
    if not isinstance(points, list) or len(points) != 4 or any(not isinstance(p, list) or len(p) != 2 for p in points):
        raise RopebendError(f"curve.control_points: expected four [x, y] pairs, got {raw!r:.120}")
    unknown = {k: v for k, v in raw.items() if k != "control_points"}
    if unknown:
        extra["curve"] = unknown
    flat = [_numbers(p, f"curve.control_points[{i}]") for i, p in enumerate(points)]
    if not all(math.isfinite(v) for p in flat for v in p):
        raise RopebendError(f"curve.control_points: expected finite numbers, got {raw!r:.120}")
    return tuple((p[0], p[1]) for p in flat)
