"""RoPE in numpy, written from the papers and llama.cpp's ``ggml_rope_ext``: what the patched op is checked against."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ropebend.scaling import LayerScaling, dynamic_ntk_factor

MODE_NORM, MODE_NEOX = 0, 2


@dataclass(frozen=True)
class RopeParams:
    """The parameters of one rope node (op_params of GGML_OP_ROPE)."""

    n_dims: int
    mode: int
    n_ctx_orig: int
    freq_base: float
    freq_scale: float
    ext_factor: float
    attn_factor: float
    beta_fast: float
    beta_slow: float

    @classmethod
    def of(cls, op_params: npt.NDArray[np.int32]) -> RopeParams:
        """From the int32 slots of a node, shape [>= 11]."""
        floats = [float(x) for x in op_params[5:11].view(np.float32)]
        return cls(int(op_params[1]), int(op_params[2]), int(op_params[4]), *floats)


def scaled(own: RopeParams, scaling: LayerScaling, layer: int, length: int | None = None) -> RopeParams:
    """What `scaling` makes of a layer's own parameters (design section 2), in double precision."""
    rope, f = scaling.rope, scaling.rope.factor
    if rope.method == "dynamic-ntk":
        f = dynamic_ntk_factor(f, rope.original_context or own.n_ctx_orig, length)
    s = f * scaling.layer_scale[layer]
    if rope.method in ("ntk", "dynamic-ntk"):
        d = own.n_dims
        return replace(own, freq_base=own.freq_base * s ** (d / (d - 2)))
    if rope.method == "yarn":
        gain = own.attn_factor * (1 + 0.1 * math.log(f))  # the magnitude stays the method's own
        out = replace(own, freq_scale=own.freq_scale / s, ext_factor=1.0, beta_fast=32.0, beta_slow=1.0)
        out = replace(out, n_ctx_orig=rope.original_context or own.n_ctx_orig)
        return replace(out, attn_factor=gain / (1 + 0.1 * math.log(1 / out.freq_scale)))
    out = replace(own, freq_scale=own.freq_scale / s)
    if own.ext_factor != 0:
        gain = own.attn_factor * (1 + 0.1 * math.log(1 / own.freq_scale))
        out = replace(out, attn_factor=gain / (1 + 0.1 * math.log(1 / out.freq_scale)))
    return out


def rope(
    x: npt.NDArray[np.floating], positions: npt.NDArray[np.integer], p: RopeParams,
    freq_factors: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Rotate x, shape [n_tokens, n_heads, head_dim], by its positions, shape [n_tokens].

    Raises ValueError for a mode other than NORM (neighbouring pairs) and NEOX (halves).
    """
    half = p.n_dims // 2
    i = np.arange(half)
    extrapolated = positions[:, None] * p.freq_base ** (-2.0 * i / p.n_dims)
    if freq_factors is not None:
        extrapolated = extrapolated / freq_factors[:half]
    theta = p.freq_scale * extrapolated
    magnitude = p.attn_factor
    if p.ext_factor != 0:

        def correction(n_rot: float) -> float:
            return p.n_dims * math.log(p.n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(p.freq_base))

        low = max(0.0, math.floor(correction(p.beta_fast)))
        high = min(p.n_dims - 1.0, math.ceil(correction(p.beta_slow)))
        ramp = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)
        mix = ramp * p.ext_factor
        theta = theta * (1 - mix) + extrapolated * mix
        magnitude *= 1 + 0.1 * math.log(1 / p.freq_scale)
    cos, sin = magnitude * np.cos(theta)[:, None, :], magnitude * np.sin(theta)[:, None, :]
    out = x.astype(np.float64).copy()
    if p.mode == MODE_NORM:
        a, b = slice(0, p.n_dims, 2), slice(1, p.n_dims, 2)
    elif p.mode == MODE_NEOX:
        a, b = slice(0, half), slice(half, p.n_dims)
    else:
        raise ValueError(f"rope mode {p.mode} is not one of {MODE_NORM} (norm), {MODE_NEOX} (neox)")
    xa, xb = out[..., a].copy(), out[..., b].copy()
    out[..., a], out[..., b] = xa * cos - xb * sin, xa * sin + xb * cos
    return out
