"""How llama.cpp is to run: one object for evaluation, search and server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

#: Types of the KV cache that llama.cpp's programs offer.
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


MAX_THREADS = 512  # GGML_MAX_N_THREADS, the size of ggml's arrays


@dataclass(frozen=True)
class Runtime:
    """llama.cpp's switches, by the names that its own programs give them.

    n_threads     0: every core this process may use
    n_gpu_layers  -1: all
    n_batch       tokens per ``llama_decode``
    n_ubatch      tokens per graph.  Small, because a causal prompt's later tokens are masked for the earlier ones of
                  the same graph but computed all the same: on a CPU 256 is a sixth faster than 512 at 2,000 tokens
    flash_attn    off, because with it the sums depend on what else is in the batch
    type_k, type_v  of the KV cache
    """

    n_threads: int = 0
    n_gpu_layers: int = 0
    n_batch: int = 512
    n_ubatch: int = 256
    flash_attn: bool = False
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"

    @property
    def context(self) -> dict[str, Any]:
        """The part that makes a `Context`, as its keywords; the rest is the model's."""
        return {k: v for k, v in asdict(self).items() if k != "n_gpu_layers"}
