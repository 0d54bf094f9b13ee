"""`Plan`: the numbers that the native hook applies to each layer's rope."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ropebend.scaling.rope_method import RopeMethod


@dataclass(frozen=True)
class Plan:
    """What the native hook applies, per layer; float32 arrays of shape [n_layer].

    stretch          divides freq_scale
    base_stretch     r in freq_base * r^(d/(d-2)), d = rotary dimensions of the node
    attn_factor      multiplies the node's own attn_factor, so the layer's attention logits by its square
    yarn_factor      > 0 turns YaRN on with this factor's magnitude; 0 leaves the node's own
    yarn_n_ctx_orig  YaRN's original context in tokens
    """

    stretch: npt.NDArray[np.float32]
    base_stretch: npt.NDArray[np.float32]
    attn_factor: npt.NDArray[np.float32]
    yarn_factor: float = 0.0
    yarn_n_ctx_orig: int = 0

    @property
    def hash(self) -> str:
        """Hex digest of everything that changes the keys in a KV cache; part of every cache key."""
        h = hashlib.sha256()
        yarn = np.array([self.yarn_factor, self.yarn_n_ctx_orig], "<f8")
        for a in (self.stretch, self.base_stretch, self.attn_factor, yarn):
            h.update(np.ascontiguousarray(a).tobytes() + b"|")
        return h.hexdigest()[:16]


def stretched(
    layer_scale: Sequence[float],
    rope: RopeMethod,
    length: int | None,
    layer_attn_factor: Sequence[float] | None = None,
) -> Plan:
    """The plan of these scales on this method, for a sequence that may reach `length` tokens.

    layer_scale, layer_attn_factor: [n_layer]; the latter is 1 everywhere by default.
    Raises ScalesError if the method needs the original context and does not have it.
    """
    f = rope.factor_at(length)
    ones = np.ones(len(layer_scale), dtype=np.float32)
    attn = ones if layer_attn_factor is None else np.array(layer_attn_factor, dtype=np.float32)
    stretch = (f * np.array(layer_scale, dtype=np.float64)).astype(np.float32)
    if rope.method in ("ntk", "dynamic-ntk"):
        return Plan(ones, stretch, attn)
    if rope.method == "yarn":
        return Plan(stretch, ones, attn, f, rope.trained_context())
    return Plan(stretch, ones, attn)
