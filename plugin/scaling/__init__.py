"""`LayerScaling`: the one value that flows from factors.json through GGUF metadata to the native plan.

`scale` always stretches: with scale s positions are divided by s, so llama.cpp's freq_scale becomes 1/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropebend import _native
from ropebend.errors import RopebendError, ScalesError, named
from ropebend.files import write_json
from ropebend.scaling import factors_json, gguf_keys
from ropebend.scaling.rope_method import NO_METHOD, OWN_METHODS, RopeMethod
from ropebend.scaling.validation import UNBOUNDED, as_f32, check_attn_factors, check_scales, check_up_to

if TYPE_CHECKING:
    from ropebend.scaling.plan import Plan

#: Tokens that an answer without a bound is left with at least before it takes the plan of longer sequences.
ENOUGH = 2048


@dataclass(frozen=True)
class ShorterPlan:
    """What sequences take that may reach at most `up_to` tokens; scaling None: they run unscaled, bit for bit."""

    up_to: int
    scaling: LayerScaling | None


@dataclass(frozen=True)
class LayerScaling:
    """Two numbers per layer, with the method they go with and where they came from; other ones for shorter sequences.

    Making one raises ScalesError for numbers out of range and parts that do not go together.

    layer_scale          one RoPE scale per block (arXiv 2503.04355), MTP blocks included, 0.1 to 1000: positions are
                         divided by it, so that above 1 it stretches; always present and authoritative
    architecture         the GGUF's general.architecture, or None if unknown (a bare list)
    rope                 the extension method underneath, the same for every length
    control_points       the Bézier curve the scales came from, if any: four (layer, scale), see `bezier.layer_scales`
    provenance           free JSON: model digest, task, seed, budget, scores, versions
    extra                unknown keys of factors.json, kept as they were (those inside rope and curve under these names)
    layer_attn_factor    one attention factor per block, 0.1 to 10: it multiplies the rotated part of the layer's
                         queries and keys, so its attention logits by the square; () means 1 everywhere
    attn_control_points  the Bézier curve the attention factors came from, if any
    shorter              plans by length, ascending: a sequence that may reach n tokens takes the first with n <= up_to,
                         beyond them all this value
    up_to                tokens that this value itself is meant for, None: no bound
    """

    layer_scale: tuple[float, ...]
    architecture: str | None = None
    rope: RopeMethod = NO_METHOD
    control_points: tuple[tuple[float, float], ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    layer_attn_factor: tuple[float, ...] = ()
    attn_control_points: tuple[tuple[float, float], ...] | None = None
    shorter: tuple[ShorterPlan, ...] = ()
    up_to: int | None = None

    def __post_init__(self) -> None:
        n = len(self.layer_scale)
        check_scales(self.layer_scale, n, "layer_scale")
        object.__setattr__(self, "layer_scale", tuple(as_f32(s) for s in self.layer_scale))
        factors = self.layer_attn_factor or (1.0,) * n
        check_attn_factors(factors, n, "layer_attn_factor")
        object.__setattr__(self, "layer_attn_factor", tuple(as_f32(a) for a in factors))
        if set(self.layer_attn_factor) == {1.0}:  # then it does nothing, and no file mentions it
            object.__setattr__(self, "attn_control_points", None)
        self.rope.check()
        bounds = [p.up_to for p in self.shorter] + ([] if self.up_to is None else [self.up_to])
        check_up_to(bounds, "plans.up_to")
        if self.up_to == UNBOUNDED:
            object.__setattr__(self, "up_to", None)
        for plan in self.shorter:
            if plan.scaling is not None:
                self._check_shorter(plan.up_to, plan.scaling)

    def _check_shorter(self, up_to: int, scaling: LayerScaling) -> None:
        what = f"the plan up to {up_to} tokens"
        if scaling.shorter or scaling.up_to is not None:
            raise ScalesError(f"{what}: has plans by length of its own; expected scales")
        if scaling.n_layer != self.n_layer:
            raise ScalesError(f"{what}: expected {self.n_layer} scales, one per block, got {scaling.n_layer}")
        if scaling.rope != self.rope:
            raise ScalesError(f"{what}: expected the method of the longest plan, {self.rope}, got {scaling.rope}")
        if scaling.architecture not in (None, self.architecture):
            raise ScalesError(f"{what}: was made for {scaling.architecture!r}, the longest for {self.architecture!r}")

    @classmethod
    def uniform(cls, scale: float, n_layer: int, **more: Any) -> LayerScaling:
        """The same scale for every layer, above 1 to stretch; more: the other fields.  Raises ScalesError as there."""
        return cls((scale,) * n_layer, **more)

    # ---- what it is

    @property
    def n_layer(self) -> int:
        """Number of blocks (GGUF block_count)."""
        return len(self.layer_scale)

    @property
    def has_plans(self) -> bool:
        """True if the length of a sequence decides what it runs under (Dynamic-NTK aside)."""
        return bool(self.shorter) or self.up_to is not None

    @property
    def has_attn_factors(self) -> bool:
        """True if some layer, in some plan, has an attention factor other than 1."""
        parts = [self, *(p.scaling for p in self.shorter if p.scaling is not None)]
        return any(a != 1.0 for part in parts for a in part.layer_attn_factor)

    @property
    def version(self) -> int:
        """The format's version that can hold this: 2 for attention factors or plans by length, else 1."""
        return 2 if self.has_plans or self.has_attn_factors else 1

    @property
    def longest(self) -> LayerScaling:
        """The plan of the longest sequences, alone."""
        return replace(self, shorter=(), up_to=None) if self.has_plans else self

    def room(self, n_prompt: int, n_ctx: int) -> int:
        """Tokens for an answer that names no bound itself: as far as the shortest plan goes that leaves it enough.

        n_prompt, n_ctx: tokens of the prompt, and that the context holds for a sequence.
        """
        for plan in self.shorter:
            if n_prompt + min(ENOUGH, plan.up_to // 4) <= plan.up_to < n_ctx:
                return plan.up_to - n_prompt
        return n_ctx - n_prompt

    def at(self, length: int | None) -> LayerScaling | None:
        """What a sequence takes that may reach `length` tokens (None: any length); None: it runs unscaled."""
        for plan in self.shorter:
            if length is not None and length <= plan.up_to:
                return plan.scaling
        return self.longest

    @property
    def is_unscaled(self) -> bool:
        """True if nothing differs from the model without scales."""
        numbers = {*self.layer_scale, *self.layer_attn_factor}
        parts = [p.scaling for p in self.shorter if p.scaling is not None]
        return (
            numbers == {1.0}
            and (self.rope.factor == 1.0 and self.rope.method != "yarn")
            and all(part.is_unscaled for part in parts)
        )

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
        words = "scale " + _span(self.layer_scale)
        if set(self.layer_attn_factor) != {1.0}:
            words += ", attention factor " + _span(self.layer_attn_factor)
        plans = [f"up to {p.up_to} tokens {_numbers_of(p.scaling)}" for p in self.shorter]
        words = "; ".join([*plans, f"beyond {words}"]) if plans else words
        return words + (f", {self.rope}" if self.rope.method != "none" else "")

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
        check_scales(self.layer_scale, block_count, "layer_scale")  # those of every plan are as many
        if self.rope.method == "yarn" and own_method != "none":
            raise ScalesError(
                f"rope.method: the model carries {OWN_METHODS.get(own_method, own_method)} already, and YaRN does not "
                "fit on it. Use method none, the layer scales then multiply it"
            )

    # ---- files

    @classmethod
    def _made_of(cls, fields: Mapping[str, Any]) -> LayerScaling:
        """From what a file's parser found."""
        architecture = fields.get("architecture")
        shorter = tuple(
            ShorterPlan(up_to, None if part is None else cls(architecture=architecture, **part))
            for up_to, part in fields.get("shorter", ())
        )
        return cls(**{**fields, "shorter": shorter})

    @classmethod
    def from_json(cls, data: Any) -> LayerScaling:
        """Read the parsed JSON of a factors file: an object of format ropebend/1 or 2, or a bare list of scales.

        Raises ScalesError naming the key, the value and what was expected; RopebendError if the scales are left to a
        curve that is none (`bezier.layer_scales`).
        """
        return cls._made_of(factors_json.parse(data))

    def to_json(self) -> dict[str, Any]:
        """The factors.json object; `from_json` reads it back to an equal value."""
        return factors_json.dump(self)

    @classmethod
    def load(cls, path: str | Path) -> LayerScaling:
        """Read a factors file.  Raises RopebendError naming the file, the key, the value and what was expected.

        FileError: it cannot be read or is not JSON; ScalesError: what it says cannot be.
        """
        data = factors_json.read_file(path)
        try:
            return cls.from_json(data)
        except RopebendError as e:
            raise named(path, e) from None

    def save(self, path: str | Path) -> None:
        """Write a factors file, whole or not at all.

        Raises FileError naming the file, ScalesError for a provenance that JSON cannot hold.
        """
        try:
            write_json(path, self.to_json())
        except (TypeError, ValueError) as e:
            raise ScalesError(f"provenance, extra: JSON cannot hold them: {e}") from None

    @classmethod
    def from_metadata(cls, fields: Mapping[str, Any], architecture: str, block_count: int) -> LayerScaling | None:
        """Read our keys from GGUF metadata (key → Python value); None if the file carries no scales.

        Raises ScalesError if the keys are there but do not fit: a scaled file never runs unscaled by accident.
        """
        found = gguf_keys.parse(fields, block_count)
        if found is None:
            return None
        value = cls._made_of({**found, "architecture": architecture})
        value.check_model(block_count, architecture, str(fields.get(f"{architecture}.rope.scaling.type") or "none"))
        return value

    def to_metadata(self) -> dict[str, Any]:
        """Our GGUF keys and their values; `from_metadata` reads them back to an equal value.

        Raises ScalesError for a provenance that JSON cannot hold.
        """
        return gguf_keys.dump(self)

    # ---- native plan

    def with_original_context(self, n_ctx_train: int) -> LayerScaling:
        """Fill in the trained context of the model, in tokens, where the method needs one and none is given."""
        if self.rope.original_context is not None or not self.rope.needs_original_context:
            return self
        rope = replace(self.rope, original_context=n_ctx_train)
        shorter = tuple(replace(p, scaling=p.scaling and replace(p.scaling, rope=rope)) for p in self.shorter)
        return replace(self, rope=rope, shorter=shorter)

    def plan(self, length: int | None = None) -> Plan | None:
        """The native plan of a sequence that may reach `length` tokens; None: it runs unscaled.

        Only plans by length and dynamic-ntk read the length; without one it is the plan of the longest sequences, with
        dynamic-ntk's factor at the trained length.  Raises ScalesError if the method needs the trained context and
        does not have it: see `with_original_context`.
        """
        from ropebend.scaling.plan import stretched  # numpy: later, for the command line's sake

        part = self.at(length)
        return None if part is None else stretched(part.layer_scale, part.rope, length, part.layer_attn_factor)


def _span(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}–{high:.4g}"


def _numbers_of(part: LayerScaling | None) -> str:
    return "unscaled" if part is None else str(replace(part, rope=NO_METHOD))
