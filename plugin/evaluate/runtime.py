"""How llama.cpp is to run evaluations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Runtime:
    """Threads (0: all this process may use), GPU layers (-1: all), tokens per decode and per graph, flash attention.

    n_ubatch is small because a causal prompt's later tokens are masked for the earlier ones of the same graph but
    computed all the same: 256 is a sixth faster than 512 at 2,000 tokens on a CPU.
    """

    n_threads: int = 0
    n_gpu_layers: int = 0
    n_batch: int = 512
    n_ubatch: int = 256
    flash_attn: bool = False
