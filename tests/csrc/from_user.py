"""A program that knows nothing of ropebend: from_user.py (file|memory) MODEL [...].

Loads each model in turn, by llama.cpp from its file, or from metadata and tensors that the program read itself, and
prints the logits after 24 tokens, as decode.c does.
"""

import ctypes
import sys
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as lib

BASE = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
P, SIZE = ctypes.c_void_p, ctypes.c_size_t


class InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(P)))


def function(name: str, result: Any, *arguments: Any) -> Any:
    found = getattr(BASE, name)
    found.restype, found.argtypes = result, arguments
    return found


def from_memory(path: str) -> Any:
    raw, ctx = Path(path).read_bytes(), P()
    metadata = function("gguf_init_from_buffer", P, P, SIZE, InitParams)(
        ctypes.cast(ctypes.create_string_buffer(raw, len(raw)), P), len(raw), InitParams(False, ctypes.pointer(ctx))
    )
    get_name, n_bytes = function("ggml_get_name", ctypes.c_char_p, P), function("ggml_nbytes", SIZE, P)
    get_tensor, get_data = function("ggml_get_tensor", P, P, ctypes.c_char_p), function("ggml_get_data", P, P)
    put = function("ggml_backend_tensor_set", None, P, P, SIZE, SIZE)

    @lib.llama_model_set_tensor_data_t
    def fill(tensor: Any, _: Any) -> None:
        found, n = get_tensor(ctx, get_name(tensor)), n_bytes(tensor)
        if found:
            put(tensor, get_data(found), 0, n)
        else:  # one that a file may leave out: a bias, or factors
            neutral = (ctypes.c_float * (n // 4))(*[0.0 if b"bias" in get_name(tensor) else 1.0] * (n // 4))
            put(tensor, ctypes.cast(neutral, P), 0, n)

    return lib.llama_model_init_from_user(metadata, fill, None, lib.llama_model_default_params())


quiet = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(quiet, None)
lib.llama_backend_init()
for how, path in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    params = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(path.encode(), params) if how == "file" else from_memory(path)
    context_params = lib.llama_context_default_params()
    context_params.n_ctx = 256
    context_params.n_threads = context_params.n_threads_batch = 1
    context_params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, context_params)
    tokens = (lib.llama_token * 24)(*[1 + 37 * i % 120 for i in range(24)])
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, 24)) == 0
    logits = lib.llama_get_logits_ith(context, -1)
    print(*(logits[i].hex() for i in range(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))))
