"""The model of the server benchmarks: a random-weight llama of about 100 million parameters, Q8_0, context 8,192."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_VOCAB, N_CTX = 12, 768, 12, 4, 2048, 32000, 8192
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def words() -> list[str]:
    """Made-up words, one token each."""
    a, b = "bcdfghjklmnprstvwz", "aeiou"
    syllables = [x + y for x in a for y in b]
    return [" " + s + t + u for s in syllables for t in syllables for u in ("", *syllables)]


def write(path: Path) -> Path:
    """Write the model if it is not there yet."""
    if path.exists():
        return path
    rng = np.random.default_rng(1)
    full = path.with_suffix(".f16.gguf")
    w = gguf.GGUFWriter(full, "llama")
    w.add_name("random-100m")
    w.add_context_length(N_CTX)
    w.add_embedding_length(N_EMBD)
    w.add_block_count(N_LAYER)
    w.add_feed_forward_length(N_FF)
    w.add_head_count(N_HEAD)
    w.add_head_count_kv(N_HEAD_KV)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(N_EMBD // N_HEAD)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(N_VOCAB)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    texts = [*specials, *("".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}") for b in range(256))]
    texts += words()[: N_VOCAB - len(texts)]
    w.add_tokenizer_model("rwkv")
    w.add_token_list(texts)
    w.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (N_VOCAB - 4))
    w.add_eos_token_id(0)
    w.add_chat_template(CHAT_TEMPLATE)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float16]:
        return (rng.standard_normal((rows, columns), np.float32) * columns**-0.5).astype(np.float16)

    embeddings = matrix(N_VOCAB, N_EMBD) * np.float16(8)
    embeddings[:260] = 0  # control tokens and single bytes are never the likeliest: the text is words, and never ends
    w.add_tensor("token_embd.weight", embeddings)
    w.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    kv = N_HEAD_KV * (N_EMBD // N_HEAD)
    for i in range(N_LAYER):
        shapes = {"attn_q": (N_EMBD, N_EMBD), "attn_k": (kv, N_EMBD), "attn_v": (kv, N_EMBD)}
        shapes |= {"attn_output": (N_EMBD, N_EMBD), "ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD)}
        for name, shape in {**shapes, "ffn_down": (N_EMBD, N_FF)}.items():
            w.add_tensor(f"blk.{i}.{name}.weight", matrix(*shape))
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(N_EMBD, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0
    if lib.llama_model_quantize(os.fsencode(full), os.fsencode(path), params) != 0:
        raise SystemExit(f"error: {full}: llama.cpp cannot quantise it")
    full.unlink()
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
