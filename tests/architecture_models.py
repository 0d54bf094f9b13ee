"""Tiny random GGUFs of many architectures.

Only the metadata is written here: which tensors an architecture needs, of what shape, llama.cpp says itself when it
makes a model from metadata and asks for their contents (``llama_model_init_from_user``).
"""

from __future__ import annotations

import ctypes
import zlib
from pathlib import Path
from typing import Any

import gguf
import llama_cpp._ggml
import llama_cpp.llama_cpp as lib
import numpy as np
import random_models

from ropebend.doctor.observe import Tensor
from ropebend.native import captured_log

N_VOCAB, N_EMBD, N_HEAD, HEAD_DIM, N_FF, N_CTX = 64, 64, 2, 32, 96, 256

BASE: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "context_length": N_CTX,
    "embedding_length": N_EMBD,
    "block_count": 2,
    "feed_forward_length": N_FF,
    "attention.head_count": N_HEAD,
    "attention.head_count_kv": N_HEAD,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
MOE: dict[str, Any] = {"expert_count": 2, "expert_used_count": 2, "expert_feed_forward_length": N_FF}
SSM: dict[str, Any] = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 2 * N_EMBD, "ssm.state_size": 16, "ssm.time_step_rank": N_HEAD,
    "ssm.group_count": 1,
}  # fmt: skip
MLA: dict[str, Any] = {
    "attention.head_count": 1, "attention.head_count_kv": 1, "attention.key_length": 96, "attention.value_length": 64,
    "attention.key_length_mla": 64, "attention.value_length_mla": 32, "attention.kv_lora_rank": 64,
    "attention.q_lora_rank": 32, "rope.dimension_count": 32, "leading_dense_block_count": 1, "expert_shared_count": 1,
    "expert_weights_scale": 1.0, "expert_gating_func": 2,
}  # fmt: skip

#: What each architecture needs on top of BASE.
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"rope.dimension_count": HEAD_DIM},
    "qwen2": {},
    "qwen3": {},
    "qwen3moe": MOE,
    "gemma2": {"attention.sliding_window": 32},
    "gemma3": {
        "block_count": 6, "attention.sliding_window": 32, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
        "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
    },
    "gemma3n": {
        "block_count": 22, "attention.sliding_window": 32, "embedding_length_per_layer_input": 16,
        "attention.sliding_window_pattern": [i % 5 != 4 for i in range(22)],
    },
    "phi3": {
        "rope.dimension_count": HEAD_DIM, "rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.19,
    },
    "stablelm": {"rope.dimension_count": 8, "use_parallel_residual": True},
    "gptneox": {"rope.dimension_count": 8, "use_parallel_residual": True},
    "falcon": {},
    "command-r": {"logit_scale": 1.0},
    "olmo2": {},
    "deepseek2": {**MOE, **MLA},
    "qwen2vl": {"rope.dimension_sections": [4, 6, 6, 0]},
    "falcon-h1": {**SSM, "ssm.state_size": 32, "attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM},
    "granitehybrid": {
        **SSM, "ssm.state_size": 32, "attention.head_count_kv": [0, N_HEAD, 0, N_HEAD], "block_count": 4,
        "attention.scale": 0.2, "embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": 1.0,
        "rope.scaling.finetuned": True,
    },
    "bitnet": {},
    "llama4": {
        **MOE, "block_count": 4, "interleave_moe_layer_step": 2, "expert_shared_feed_forward_length": N_FF,
        "attention.chunk_size": 32,
    },
    "mamba": {**SSM, "ssm.state_size": 16, "ssm.time_step_rank": 8},
    "gpt2": {},
}  # fmt: skip


class _GgufParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _contents(name: str, n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = 0.15 * rng.standard_normal(n)
    if name.startswith("rope_"):
        values = 1 + 3 * rng.random(n)  # frequency factors
    elif "norm" in name:
        values = 1 + values
    elif "ssm_a" in name:
        values = -np.abs(values)
    return values.astype(np.float32)


def write_model(path: Path, architecture: str, more: dict[str, Any] | None = None, *, vocabulary: bool = False) -> Path:
    """Write a random model.  more: further metadata, by key without the architecture; vocabulary: one of bytes."""
    fields = {**BASE, **FIELDS[architecture], **(more or {})}
    if vocabulary:
        fields["vocab_size"] = random_models.N_VOCAB
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}

    @lib.llama_model_set_tensor_data_t
    def collect(address: int, _user_data: Any) -> None:
        tensor = Tensor(address)
        tensors[tensor.name] = _contents(tensor.name, int(np.prod(tensor.ne))).reshape(tensor.ne[::-1])

    _write(path, architecture, fields, {}, vocabulary)
    read, free = llama_cpp._ggml.libggml.gguf_init_from_file, llama_cpp._ggml.libggml.gguf_free
    read.argtypes, read.restype = [ctypes.c_char_p, _GgufParams], ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    with captured_log() as log:
        metadata = read(str(path).encode(), _GgufParams(True, None))
        model = lib.llama_model_init_from_user(metadata, collect, None, lib.llama_model_default_params())
    assert model, f"{architecture}: {log}"
    lib.llama_model_free(model)
    free(metadata)
    _write(path, architecture, fields, tensors, vocabulary)
    return path


def _write(path: Path, architecture: str, fields: dict[str, Any], tensors: dict[str, Any], vocabulary: bool) -> None:
    w = gguf.GGUFWriter(path, architecture)
    kinds = {bool: w.add_bool, str: w.add_string, int: w.add_uint32, float: w.add_float32, list: w.add_array}
    for key, value in fields.items():
        kinds[type(value)](f"{architecture}.{key}", value)
    if vocabulary:
        random_models.add_vocabulary(w)
    else:
        w.add_tokenizer_model("no_vocab")
    for name, data in tensors.items():
        w.add_tensor(name, data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
