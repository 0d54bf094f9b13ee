"""Where llama.cpp puts a model's weights: GPUs, buffers, mapped or locked memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

import llama_cpp._ggml
import llama_cpp.llama_cpp as lib

from ropebend.errors import UsageError

#: llama.cpp's pattern of the weights of experts.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"

SPLIT_MODES = {"none": lib.LLAMA_SPLIT_MODE_NONE, "layer": lib.LLAMA_SPLIT_MODE_LAYER,
               "row": lib.LLAMA_SPLIT_MODE_ROW, "tensor": lib.LLAMA_SPLIT_MODE_TENSOR}  # fmt: skip


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))  # llama_model_tensor_buft_override


def model_params(
    *,
    n_gpu_layers: int = 0,
    use_mmap: bool = True,
    use_mlock: bool = False,
    split_mode: str = "layer",
    main_gpu: int = 0,
    tensor_split: str = "",
    override_tensor: str = "",
    cpu_moe: bool = False,
) -> tuple[Any, list[Any]]:
    """``llama_model_params`` and what must live as long as they are used.

    tensor_split: shares of the GPUs, as "3,1"; override_tensor: "pattern=buffer type", several between commas.
    UsageError names the flag that cannot be followed.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0x7FFFFFFF if n_gpu_layers < 0 else n_gpu_layers
    modes = {
        (True, False): lib.LLAMA_LOAD_MODE_MMAP,
        (False, False): lib.LLAMA_LOAD_MODE_NONE,
        (True, True): lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (False, True): lib.LLAMA_LOAD_MODE_MLOCK,
    }
    params.load_mode = modes[use_mmap, use_mlock]
    if split_mode not in SPLIT_MODES:
        raise UsageError(f"--split-mode: expected one of {', '.join(SPLIT_MODES)}, got {split_mode!r}")
    params.split_mode = SPLIT_MODES[split_mode]
    params.main_gpu = main_gpu
    kept: list[Any] = []
    if tensor_split:
        shares = _shares(tensor_split)
        array = (ctypes.c_float * max(lib.llama_max_devices(), len(shares)))(*shares)
        params.tensor_split = array
        kept.append(array)
    overrides = _overrides(override_tensor)
    if cpu_moe:
        overrides.append((EXPERTS, "CPU"))
    if overrides:
        known = buffer_types()
        for pattern, name in overrides:
            if name not in known:
                raise UsageError(f"--override-tensor {pattern}={name}: expected one of {', '.join(known)}")
        table = (_Override * (len(overrides) + 1))(*(_Override(p.encode(), known[n]) for p, n in overrides))
        params.tensor_buft_overrides = ctypes.cast(table, ctypes.c_void_p)
        kept.append(table)
    return params, kept


def _shares(text: str) -> Sequence[float]:
    try:
        shares = [float(x) for x in re.split("[,/]", text)]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= x < 1e6 for x in shares) or not sum(shares):
        raise UsageError(f"--tensor-split: expected a share for each GPU, as 3,1, got {text!r}")
    n = max(lib.llama_max_devices(), 1)
    if len(shares) > n:
        raise UsageError(f"--tensor-split: expected at most {n} shares, got {len(shares)}")
    return shares


def _overrides(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in filter(None, text.split(",")):
        pattern, equals, name = part.partition("=")
        if not equals or not pattern:
            raise UsageError(f"--override-tensor: expected pattern=buffer type, got {part!r}")
        try:
            re.compile(pattern)
        except re.error as e:
            raise UsageError(f"--override-tensor {pattern}: not a regular expression: {e}") from None
        found.append((pattern, name))
    return found


def buffer_types() -> dict[str, int]:
    """The buffer types of this llama.cpp's devices, by name."""
    count, get = _function("ggml_backend_dev_count"), _function("ggml_backend_dev_get")
    of, name = _function("ggml_backend_dev_buffer_type"), _function("ggml_backend_buft_name")
    count.restype, get.restype, of.restype, name.restype = (
        ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p,
    )  # fmt: skip
    get.argtypes, of.argtypes, name.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_void_p]
    found: dict[str, int] = {}
    for i in range(count()):
        if buffer := of(get(i)):
            found[name(buffer).decode()] = buffer
    return found


def _function(name: str) -> Any:
    for library in (llama_cpp._ggml.libggml, lib._lib):
        try:
            return getattr(library, name)
        except AttributeError:
            continue
    raise UsageError(f"this llama-cpp-python does not export {name}, which --override-tensor and --cpu-moe need")
