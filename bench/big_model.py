"""Random-weight llama models of any size for benchmarks, Q8_0: bench/big_model.py M.gguf [SIZE].

The server benchmarks' is of about 100 million parameters (the default), context 8,192.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

N_CTX = 8192


@dataclass(frozen=True)
class Shape:
    """What decides the size of a llama."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int = 32000


SHAPES = {
    "tiny": Shape(4, 128, 4, 2, 256, n_vocab=1000),
    "100m": Shape(12, 768, 12, 4, 2048),
    "1b": Shape(16, 2048, 32, 8, 8192),
    "3b": Shape(28, 3072, 24, 8, 8192),
    "8b": Shape(32, 4096, 32, 8, 14336),
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def words() -> list[str]:
    """Made-up words, one token each."""
    a, b = "bcdfghjklmnprstvwz", "aeiou"
    syllables = [x + y for x in a for y in b]
    return [" " + s + t + u for s in syllables for t in syllables for u in ("", *syllables)]


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order of the file."""
    n_embd, n_ff = shape.n_embd, shape.n_ff
    kv = shape.n_head_kv * (n_embd // shape.n_head)
    yield "token_embd.weight", (shape.n_vocab, n_embd)
    yield "output_norm.weight", (n_embd,)
    matrices = {
        "attn_q": (n_embd, n_embd), "attn_k": (kv, n_embd), "attn_v": (kv, n_embd), "attn_output": (n_embd, n_embd),
        "ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff),
    }  # fmt: skip
    for i in range(shape.n_layer):
        for name, size in matrices.items():
            yield f"blk.{i}.{name}.weight", size
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", (n_embd,)


def write(path: Path, kind: str = "100m") -> Path:
    """Write the model if it is not there yet, a tensor at a time: eight billion parameters fit no memory twice."""
    if path.exists():
        return path
    shape = SHAPES[kind]
    part = path.with_suffix(".part")
    w = gguf.GGUFWriter(part, "llama")
    w.add_name(f"random-{kind}")
    w.add_context_length(N_CTX)
    w.add_embedding_length(shape.n_embd)
    w.add_block_count(shape.n_layer)
    w.add_feed_forward_length(shape.n_ff)
    w.add_head_count(shape.n_head)
    w.add_head_count_kv(shape.n_head_kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(shape.n_embd // shape.n_head)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(shape.n_vocab)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    texts = [*specials, *("".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}") for b in range(256))]
    texts += words()[: shape.n_vocab - len(texts)]
    w.add_tokenizer_model("rwkv")
    w.add_token_list(texts)
    w.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (shape.n_vocab - 4))
    w.add_eos_token_id(0)
    w.add_chat_template(CHAT_TEMPLATE)
    f32, q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
    block, block_bytes = gguf.GGML_QUANT_SIZES[q8_0]
    for name, size in tensors(shape):
        n = math.prod(size)
        n_bytes, stored = (4 * n, f32) if len(size) == 1 else (n // block * block_bytes, q8_0)
        w.add_tensor_info(name, size, np.dtype(np.float32), n_bytes, stored)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for name, size in tensors(shape):
        w.write_tensor_data(tensor(name, size, rng))
    w.close()
    part.rename(path)
    return path


def tensor(name: str, size: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32 | np.uint8]:
    """Ones for norms, else random numbers in Q8_0."""
    if len(size) == 1:
        return np.ones(size, np.float32)
    data = rng.standard_normal(size, np.float32) * np.float32(size[1] ** -0.5)
    if name == "token_embd.weight":
        data *= np.float32(8)
        data[:260] = 0  # control tokens and single bytes are never the likeliest: the text is words, and never ends
    return gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), *sys.argv[2:]))
