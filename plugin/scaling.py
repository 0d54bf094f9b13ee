"""`LayerScaling`: the one value that flows from factors.json through GGUF metadata to the native plan.

`scale` always stretches: with scale s positions are divided by s, so llama.cpp's freq_scale becomes 1/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropebend import _native, factors_json, gguf_keys
from ropebend.errors import RopebendError, ScalesError, named
from ropebend.files import write_json
from ropebend.rope_method import NO_METHOD, OWN_METHODS, RopeMethod
from ropebend.validation import as_f32, check_scales

if TYPE_CHECKING:
    from ropebend.plan import Plan


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
        check_scales(self.layer_scale, len(self.layer_scale), "layer_scale")
        object.__setattr__(self, "layer_scale", tuple(as_f32(s) for s in self.layer_scale))
        self.rope.check()

    @classmethod
    def uniform(cls, scale: float, n_layer: int, **more: Any) -> LayerScaling:
        """The same scale for every layer."""
        return cls((scale,) * n_layer, **more)

    @property
    def n_layer(self) -> int:
        """Number of blocks (GGUF block_count)."""
        return len(self.layer_scale)

    @property
    def is_unscaled(self) -> bool:
        """True if nothing differs from the model without scales."""
        return self.rope.factor == 1.0 and self.rope.method != "yarn" and set(self.layer_scale) == {1.0}

    @property
    def is_judged(self) -> bool:
        """True if the search that found the scales tested them on items it had not seen."""
        scores = self.provenance.get("scores")
        return isinstance(scores, Mapping) and bool(scores.get("test"))

    @property
    def n_ctx(self) -> int | None:
        """The context in tokens that the scales were searched at, if known."""
        n = self.provenance.get("n_ctx")
        return n if type(n) is int and n > 0 else None

    def __str__(self) -> str:
        """In a few words, for a line of a log or table: "scale 1–1.42, ntk ×2"."""
        low, high = min(self.layer_scale), max(self.layer_scale)
        scales = f"{low:.4g}" if low == high else f"{low:.4g}–{high:.4g}"
        return f"scale {scales}" + (f", {self.rope}" if self.rope.method != "none" else "")

    def check_model(self, block_count: int, architecture: str, own_method: str = "none") -> None:
        """Raise ScalesError unless these scales fit a model as its metadata describe it.

        own_method: the model's <architecture>.rope.scaling.type
        """
        refusal = _native.architecture_refusal(architecture)
        if refusal is not None:
            raise ScalesError(f"general.architecture: {architecture!r} {refusal}")
        if self.architecture is not None and self.architecture != architecture:
            raise ScalesError(
                f"architecture: the scales were made for {self.architecture!r}, the model is {architecture!r}"
            )
        check_scales(self.layer_scale, block_count, "layer_scale")
        if self.rope.method == "yarn" and own_method != "none":
            raise ScalesError(
                f"rope.method: the model carries {OWN_METHODS.get(own_method, own_method)} already, and YaRN does not "
                "fit on it. Use method none, the layer scales then multiply it"
            )

    # ---- files

    @classmethod
    def from_json(cls, data: Any) -> LayerScaling:
        """Read the parsed JSON of a factors file: an object of format ropebend/1 or a bare list of scales."""
        return cls(**factors_json.parse(data))

    def to_json(self) -> dict[str, Any]:
        """The factors.json object; `from_json` reads it back to an equal value."""
        return factors_json.dump(self)

    @classmethod
    def load(cls, path: str | Path) -> LayerScaling:
        """Read a factors file.  Raises RopebendError naming the file, the key, the value and what was expected."""
        data = factors_json.read_file(path)
        try:
            return cls.from_json(data)
        except RopebendError as e:
            raise named(path, e) from None

    def save(self, path: str | Path) -> None:
        """Write a factors file, whole or not at all.  Raises RopebendError naming the file."""
        write_json(path, self.to_json())

    @classmethod
    def from_metadata(cls, fields: Mapping[str, Any], architecture: str, block_count: int) -> LayerScaling | None:
        """Read our keys from GGUF metadata (key → Python value); None if the file carries no scales.

        Raises ScalesError if the keys are there but do not fit: a scaled file never runs unscaled by accident.
        """
        found = gguf_keys.parse(fields, block_count)
        if found is None:
            return None
        value = cls(architecture=architecture, **found)
        value.check_model(block_count, architecture, str(fields.get(f"{architecture}.rope.scaling.type") or "none"))
        return value

    def to_metadata(self) -> dict[str, Any]:
        """Our GGUF keys and their values; `from_metadata` reads them back to an equal value."""
        return gguf_keys.dump(self)

    # ---- native plan

    def with_original_context(self, n_ctx_train: int) -> LayerScaling:
        """Fill in the trained context of the model where the method needs one and none is given."""
        if self.rope.original_context is not None or not self.rope.needs_original_context:
            return self
        return replace(self, rope=replace(self.rope, original_context=n_ctx_train))

    def plan(self, length: int | None = None) -> Plan:
        """The native plan.  `length` is the number of tokens the sequence may reach; only dynamic-ntk reads it."""
        from ropebend.plan import stretched  # numpy: later, for the command line's sake

        return stretched(self.layer_scale, self.rope, length)
