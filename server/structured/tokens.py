"""llguidance's view of a model's vocabulary."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
from llguidance import LLTokenizer

#: Longest token in bytes, as in llguidance.
_MAX_PIECE = 16 * 1024


def tokenizer_of(vocab: Any) -> LLTokenizer | None:
    """Of a ``llama_vocab *``, which it refers to as long as it lives.  Takes half a second for 50,000 tokens.

    As ``llguidance.llamacpp.lltokenizer_from_vocab``, which calls functions that llama.cpp has deprecated and knows
    one end of text.  None if the file has no vocabulary.
    """
    if lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
        return None
    n_vocab = int(lib.llama_vocab_n_tokens(vocab))
    buffer = ctypes.create_string_buffer(_MAX_PIECE)
    tokens, ends = [], []
    for token in range(n_vocab):
        n = lib.llama_token_to_piece(vocab, token, buffer, _MAX_PIECE, 0, True)
        piece = buffer.raw[: max(n, 0)]
        attributes = lib.llama_vocab_get_attr(vocab, token)
        named = attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED and piece[:1] == b"<" and piece[-1:] == b">"
        if attributes & lib.LLAMA_TOKEN_ATTR_CONTROL or named:
            piece = b"\xff" + piece  # llguidance's sign of a token that is no text
        tokens.append(piece)
        if lib.llama_vocab_is_eog(vocab, token):
            ends.append(token)
    if not ends:  # an end of text beyond the vocabulary, which nobody samples
        tokens.append(b"\xff")
        ends = [n_vocab]
    ends.sort(key=lambda token: token != lib.llama_vocab_eos(vocab))
    tokenize = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value
    make: Any = LLTokenizer  # whose type stub leaves this out
    tokenizer: LLTokenizer = make.from_llamacpp(
        tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=ends, slices=None
    )
    return tokenizer


def specials_of(tokenizer: LLTokenizer) -> dict[str, int]:
    """Name of each control token → its id."""
    special = (t for t in range(tokenizer.vocab_size) if tokenizer.is_special_token(t))
    named = ((tokenizer.decode_str([t]), t) for t in special)
    return {name: t for name, t in named if name}
