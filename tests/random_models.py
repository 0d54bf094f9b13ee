"""Random-weight llama GGUFs for tests: real files of any shape, with a byte vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ropebend.models.needle.tokenizer import Tokenizer
from ropebend.scaling import LayerScaling, gguf_keys

N_VOCAB = 257  # all bytes, and <|end|>
SHAPE = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_ff": 96}  # the default


def weights(
    *, n_layer: int, n_embd: int, n_head: int, n_head_kv: int, head_dim: int, n_ff: int, seed: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors by GGUF name, float32, shaped [out, in]."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def gain(n: int) -> npt.NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    out = {
        "token_embd.weight": rng.standard_normal((N_VOCAB, n_embd)).astype(np.float32),
        "output_norm.weight": gain(n_embd),
        "output.weight": 2 * matrix(N_VOCAB, n_embd),
    }
    for i in range(n_layer):
        out |= {
            f"blk.{i}.attn_norm.weight": gain(n_embd),
            f"blk.{i}.attn_q.weight": 2 * matrix(n_head * head_dim, n_embd),
            f"blk.{i}.attn_k.weight": 2 * matrix(n_head_kv * head_dim, n_embd),
            f"blk.{i}.attn_v.weight": matrix(n_head_kv * head_dim, n_embd),
            f"blk.{i}.attn_output.weight": matrix(n_embd, n_head * head_dim),
            f"blk.{i}.ffn_norm.weight": gain(n_embd),
            f"blk.{i}.ffn_gate.weight": matrix(n_ff, n_embd),
            f"blk.{i}.ffn_up.weight": matrix(n_ff, n_embd),
            f"blk.{i}.ffn_down.weight": matrix(n_embd, n_ff),
        }
    return out


def write_llama(
    path: Path,
    *,
    n_layer: int = 3,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int = 16,
    n_ff: int = 96,
    n_ctx_train: int = 128,
    freq_base: float = 10000.0,
    seed: int = 0,
    scaling: LayerScaling | None = None,
    chat_template: str | None = None,
    pre_tokenizer: str | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """Write a random llama model in F32.  fields: more metadata, values as `add_field` takes them, by full key."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(f"random-{n_layer}x{n_embd}")
    w.add_block_count(n_layer)
    w.add_context_length(n_ctx_train)
    w.add_embedding_length(n_embd)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_rope_dimension_count(head_dim)
    w.add_rope_freq_base(freq_base)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(N_VOCAB)
    if pre_tokenizer is None:
        add_vocabulary(w)
    else:
        add_bpe(w, pre_tokenizer)
    if chat_template is not None:
        w.add_chat_template(chat_template)
    for key, value in (fields or {}).items():
        add_field(w, key, value)
    if scaling is not None:
        add_scaling(w, scaling)
    shape = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "n_head_kv": n_head_kv, "head_dim": head_dim}
    for name, tensor in weights(**shape, n_ff=n_ff, seed=seed).items():
        w.add_tensor(name, tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def add_field(w: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A str, int (u32), float (f32), a list of these, or an array of uint32."""
    if isinstance(value, np.ndarray):
        assert value.dtype == np.uint32
        w.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    else:
        {str: w.add_string, int: w.add_uint32, float: w.add_float32, list: w.add_array}[type(value)](key, value)


def add_vocabulary(w: gguf.GGUFWriter) -> None:
    """N_VOCAB tokens: the end of text, and all bytes."""
    tokenizer = Tokenizer([b"<|end|>", *(bytes([b]) for b in range(256))])
    w.add_tokenizer_model("rwkv")
    w.add_token_list(tokenizer.gguf_texts())
    w.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * 256)
    w.add_eos_token_id(0)


def add_bpe(w: gguf.GGUFWriter, pre_tokenizer: str, model: str = "gpt2") -> None:
    """N_VOCAB tokens of a BPE without merges, behind one of llama.cpp's pre-tokenisers."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2's letters for bytes
    others = (b for b in range(256) if b not in plain)
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(pre_tokenizer)
    w.add_token_list(["<|end|>", *(letters[b] for b in range(256))])
    w.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * 256)
    w.add_token_merges(["a a"])
    w.add_eos_token_id(0)


def add_scaling(w: gguf.GGUFWriter, scaling: LayerScaling) -> None:
    """Our metadata keys, by gguf-py: independent of the converter."""
    for key, value in scaling.to_metadata().items():
        add_field(w, key, np.array(value, np.uint32) if key == gguf_keys.PLAN_UP_TO else value)
