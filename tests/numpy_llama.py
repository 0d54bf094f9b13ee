"""A llama forward pass in numpy, float64, written from the papers and from nothing in ropebend or llama.cpp.

Rope here is a rotation of complex numbers, positions divided by the layer's scale: the definition, not the op.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def rms_norm(x: Array, gain: Array, eps: float = 1e-5) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotate(x: Array, positions: Array, base: float, scale: float) -> Array:
    """x [tokens, heads, dims]: neighbouring pairs are complex numbers, turned by position / scale * theta."""
    dims = x.shape[-1]
    theta = base ** (-np.arange(0, dims, 2) / dims)
    turn = np.exp(1j * np.outer(positions / scale, theta))[:, None, :]
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def logits(
    w: dict[str, npt.NDArray[np.float32]], tokens: list[int], *, n_head: int, n_head_kv: int, head_dim: int,
    bases: list[float], scales: list[float],
) -> Array:  # fmt: skip
    """Logits of every token, [tokens, vocab]; bases and scales per layer."""
    f = {name: t.astype(np.float64) for name, t in w.items()}
    x = f["token_embd.weight"][tokens]
    n = len(tokens)
    positions = np.arange(n, dtype=np.float64)
    mask = np.where(np.tri(n, dtype=bool), 0.0, -np.inf)
    for i, (base, scale) in enumerate(zip(bases, scales, strict=True)):
        b = f"blk.{i}."
        h = rms_norm(x, f[b + "attn_norm.weight"])
        q = rotate((h @ f[b + "attn_q.weight"].T).reshape(n, n_head, head_dim), positions, base, scale)
        k = rotate((h @ f[b + "attn_k.weight"].T).reshape(n, n_head_kv, head_dim), positions, base, scale)
        v = (h @ f[b + "attn_v.weight"].T).reshape(n, n_head_kv, head_dim)
        k, v = (np.repeat(t, n_head // n_head_kv, axis=1) for t in (k, v))
        s = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim) + mask
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", p, v).reshape(n, -1) @ f[b + "attn_output.weight"].T
        h = rms_norm(x, f[b + "ffn_norm.weight"])
        gate = h @ f[b + "ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ f[b + "ffn_up.weight"].T)) @ f[b + "ffn_down.weight"].T
    return rms_norm(x, f["output_norm.weight"]) @ f["output.weight"].T
