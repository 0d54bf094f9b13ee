"""RoPE in numpy, written from the papers and llama.cpp's ``ggml_rope_ext``: what the patched op is checked against."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import dynamic_ntk_factor

MODE_NORM, MODE_NEOX, MODE_MROPE, MODE_IMROPE = 0, 2, 8, 40


@dataclass(frozen=True)
class RopeParams:
    """The parameters of one rope node (op_params of GGML_OP_ROPE).

    sections   pairs per position of M-RoPE: time, height, width, extra
    n_offs     first channel that turns
    back       GGML_OP_ROPE_BACK: turn the other way
    """

    n_dims: int
    mode: int
    n_ctx_orig: int
    freq_base: float
    freq_scale: float
    ext_factor: float
    attn_factor: float
    beta_fast: float
    beta_slow: float
    sections: tuple[int, ...] = (0, 0, 0, 0)
    n_offs: int = 0
    back: bool = False

    @classmethod
    def of(cls, op_params: npt.NDArray[np.int32], back: bool = False) -> RopeParams:
        """From the int32 slots of a node, shape [16]."""
        base, scale, ext, attn, fast, slow = (float(x) for x in op_params[5:11].view(np.float32))
        n_dims, mode, n_ctx_orig, n_offs = (int(op_params[i]) for i in (1, 2, 4, 15))
        sections = tuple(int(n) for n in op_params[11:15])
        return cls(n_dims, mode, n_ctx_orig, base, scale, ext, attn, fast, slow, sections, n_offs, back)


def scaled(
    own: RopeParams,
    scaling: LayerScaling,
    layer: int,
    length: int | None = None,
    *,
    attn_factor: float = 1.0,
    shift: bool = False,
) -> RopeParams:
    """What `scaling` makes of a layer's own parameters, in double precision.

    attn_factor: the layer's.  shift: for the K-shift, which turns keys that have their magnitude already.
    """
    out = _stretched(own, scaling, layer, length)
    if shift:
        return replace(out, attn_factor=1 / (1 + 0.1 * math.log(1 / out.freq_scale)) if out.ext_factor != 0 else 1.0)
    return replace(out, attn_factor=out.attn_factor * attn_factor)


def _stretched(own: RopeParams, scaling: LayerScaling, layer: int, length: int | None) -> RopeParams:
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
    """Rotate x, shape [n_tokens, n_heads, head_dim], by its positions, shape [n_tokens], for M-RoPE [4 * n_tokens].

    Raises ValueError for a mode other than NORM (neighbouring pairs), NEOX (halves), MROPE and IMROPE.
    """
    theta, magnitude = _turn(_angles(positions, p, freq_factors), p)
    if p.back:
        theta = -theta
    cos, sin = magnitude * np.cos(theta)[:, None, :], magnitude * np.sin(theta)[:, None, :]
    out = x.astype(np.float64).copy()
    turned, a, b = _pairs(out, p)
    xa, xb = turned[..., a].copy(), turned[..., b].copy()
    turned[..., a], turned[..., b] = xa * cos - xb * sin, xa * sin + xb * cos
    return out


#: Of a pair's length; float32 sines and cosines, also those of fast mathematics on a GPU ...
TURN_ERROR = 5e-4
#: ... whose argument is off by some of its last bits, more the further a recurrence has come: per radian.
ANGLE_ERROR = 2e-6
#: Half a unit in the last place of what is stored, and of the smallest number.
STORE_ERROR = {"float32": (2.0**-24, 2.0**-149), "float16": (2.0**-11, 2.0**-25)}


def rounding(
    x: npt.NDArray[np.floating], positions: npt.NDArray[np.integer], p: RopeParams,
    freq_factors: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """How far each element may be from `rope`'s where cos and sin are float32 and the result is stored as x is."""
    relative, least = STORE_ERROR[x.dtype.name]
    angle = _angles(positions, p, freq_factors)
    _, magnitude = _turn(angle, p)
    out = np.zeros(x.shape)
    turned, a, b = _pairs(out, p)
    xa, xb = (_pairs(x.astype(np.float64), p)[0][..., part] for part in (a, b))
    off = np.hypot(xa, xb) * (abs(magnitude) * (TURN_ERROR + ANGLE_ERROR * np.abs(angle)))[:, None, :]
    turned[..., a] = turned[..., b] = off
    return out + relative * (np.abs(rope(x, positions, p, freq_factors)) + out) + least


def _pairs(x: npt.NDArray[np.float64], p: RopeParams) -> tuple[npt.NDArray[np.float64], slice, slice]:
    """A view of the channels that turn, and the first and second of each pair in it."""
    half = p.n_dims // 2
    turned = x[..., p.n_offs : p.n_offs + p.n_dims]
    if p.mode == MODE_NORM:
        return turned, slice(0, None, 2), slice(1, None, 2)
    return turned, slice(0, half), slice(half, None)


def _angles(
    positions: npt.NDArray[np.integer], p: RopeParams, freq_factors: npt.NDArray[np.floating] | None
) -> npt.NDArray[np.float64]:
    """Before any interpolation, [n_tokens, n_dims / 2].  Raises ValueError for an unknown mode."""
    half, i = p.n_dims // 2, np.arange(p.n_dims // 2)
    if p.mode in (MODE_NORM, MODE_NEOX):
        at = positions[:, None]
    elif p.mode in (MODE_MROPE, MODE_IMROPE):
        at = positions.reshape(4, -1).T[:, _sections(p, i)]
    else:
        raise ValueError(f"rope mode {p.mode} is none of 0 (norm), 2 (neox), 8 (mrope), 40 (imrope)")
    angles = at * p.freq_base ** (-2.0 * i / p.n_dims)
    return angles if freq_factors is None else angles / freq_factors[:half]


def _turn(extrapolated: npt.NDArray[np.float64], p: RopeParams) -> tuple[npt.NDArray[np.float64], float]:
    """The angles after interpolation, and the magnitude of cos and sin."""
    i = np.arange(p.n_dims // 2)
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
    return theta, magnitude


def _sections(p: RopeParams, i: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Which of the four M-RoPE positions each pair turns by."""
    sector = i % sum(p.sections)
    if p.mode == MODE_MROPE:
        return np.searchsorted(np.cumsum(p.sections), sector, side="right")
    kind = sector % 3
    return np.where(sector < 3 * np.array(p.sections)[kind], kind, 3)
