"""How llama.cpp is to run: one object for evaluation, search and server."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ropebend.errors import UsageError

#: Types of the KV cache that llama.cpp's programs offer.
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

#: ggml's numbers of these types.
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}

#: "auto": llama.cpp decides by what the devices can do.
FlashAttn = bool | Literal["auto"]

SplitMode = Literal["none", "layer", "row", "tensor"]

_OF_MODEL = frozenset(
    ["n_gpu_layers", "use_mmap", "use_mlock", "split_mode", "main_gpu", "tensor_split", "override_tensor", "cpu_moe"]
)

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
    use_mmap, use_mlock  map the file; keep it in memory
    split_mode, main_gpu, tensor_split  over several GPUs; the last is their shares, as "3,1"
    override_tensor  "pattern=buffer type" of weights to put elsewhere, several between commas
    cpu_moe       experts stay with the CPU
    """

    n_threads: int = 0
    n_gpu_layers: int = 0
    n_batch: int = 512
    n_ubatch: int = 256
    flash_attn: FlashAttn = False
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    use_mmap: bool = True
    use_mlock: bool = False
    split_mode: SplitMode = "layer"
    main_gpu: int = 0
    tensor_split: str = ""
    override_tensor: str = ""
    cpu_moe: bool = False

    @property
    def context(self) -> dict[str, Any]:
        """The part that makes a `Context`, as its keywords; the rest is the model's."""
        return {k: v for k, v in asdict(self).items() if k not in _OF_MODEL}

    @property
    def model(self) -> dict[str, Any]:
        """The part that makes a `Model`, as its keywords."""
        return {k: v for k, v in asdict(self).items() if k in _OF_MODEL}


def available_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_type(name: str) -> int:
    """ggml's number of a type of KV cache.  Raises UsageError for one that there is not."""
    if name not in CACHE_TYPES:
        raise UsageError(f"cache type: expected one of {', '.join(CACHE_TYPES)}, got {name!r}")
    return CACHE_TYPES[name]
