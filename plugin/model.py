"""A model and its context on llama.cpp's C API, with the layer scales applied.

This is what evaluation, search, doctor and the server stand on.  Users of llama-cpp-python's `Llama` take
`ropebend.attach` instead.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ropebend.errors import RopebendError, UsageError
from ropebend.model_info import ModelInfo
from ropebend.native import Hook, captured_log, quiet_llama_log, turns_keys
from ropebend.plan import Plan
from ropebend.runtime import MAX_THREADS
from ropebend.scaling import LayerScaling

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}


def check_supported(info: ModelInfo, scaling: LayerScaling) -> None:
    """Raise RopebendError unless `scaling` can be applied to this model as its file describes it."""
    scaling.check_model(info.n_layer, info.architecture, info.rope_scaling[0])


@functools.cache
def _backend_init() -> None:
    lib.llama_backend_init()


class Closing:
    """Lets `with` call close() at its end."""

    def close(self) -> None:
        """Free what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Model(Closing):
    """Weights and vocabulary of a GGUF.  Several contexts may share one."""

    def __init__(self, path: str | Path, *, n_gpu_layers: int = 0, use_mmap: bool = True):
        self.info = ModelInfo.read(path)
        quiet_llama_log()
        _backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0x7FFFFFFF if n_gpu_layers < 0 else n_gpu_layers
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if use_mmap else lib.LLAMA_LOAD_MODE_NONE
        with captured_log() as log:
            self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise RopebendError(f"{path}: llama.cpp cannot load this model: {log[-1] if log else 'no reason given'}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        """Free the weights.  Every context must be closed before."""
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    @property
    def handle(self) -> Any:
        """The ``llama_model *``."""
        return self._model

    @property
    def vocab(self) -> Any:
        """The ``llama_vocab *``."""
        return self._vocab

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own chat template (jinja), or None."""
        raw = lib.llama_model_chat_template(self._model, None)
        return raw.decode() if raw else None

    @property
    def bos_token(self) -> int:
        """Token id, -1 if the vocabulary has none."""
        return int(lib.llama_vocab_bos(self._vocab))

    @property
    def eos_token(self) -> int:
        """Token id, -1 if the vocabulary has none."""
        return int(lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """True if a prompt of this model starts with BOS."""
        return bool(lib.llama_vocab_get_add_bos(self._vocab))

    def is_eog(self, token: int) -> bool:
        """True if this token ends the generation."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of `text`.  add_special: BOS/EOS as the model wants; parse_special: control tokens in the text."""
        data = text.encode()
        n = len(data) + 16
        for _ in range(2):
            buffer = (ctypes.c_int32 * n)()
            got = lib.llama_tokenize(self._vocab, data, len(data), buffer, n, add_special, parse_special)
            if got >= 0:
                return list(buffer[:got])
            n = -got
        raise RopebendError(f"tokenising {len(data)} bytes failed")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; control tokens are empty unless `special`."""
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        n = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(n)
            got = lib.llama_token_to_piece(self._vocab, token, buffer, n, 0, special)
            if got >= 0:
                piece = buffer.raw[:got]
                self._pieces[token, special] = piece
                return piece
            n = -got
        raise RopebendError(f"token {token} has no piece")

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.piece(t, special=special) for t in tokens).decode(errors="replace")


class Batch:
    """Room for `n_tokens` tokens of a ``llama_batch``, each in up to `n_seq_max` sequences."""

    def __init__(self, n_tokens: int, n_seq_max: int = 1):
        self.n_tokens = n_tokens
        self.token = np.zeros(n_tokens, np.int32)
        self.pos = np.zeros(n_tokens, np.int32)
        self.n_seq = np.ones(n_tokens, np.int32)
        self.seq = np.zeros((n_tokens, n_seq_max), np.int32)
        self.want = np.zeros(n_tokens, np.int8)
        pointers = self.seq.ctypes.data + np.arange(n_tokens, dtype=np.uintp) * self.seq.strides[0]
        self._seq_pointers = np.ascontiguousarray(pointers, dtype=np.uintp)
        b = lib.llama_batch()
        b.token = self.token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        b.pos = self.pos.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        b.n_seq_id = self.n_seq.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        b.seq_id = self._seq_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        b.logits = self.want.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self.struct = b


class Context(Closing):
    """A llama.cpp context whose rope nodes follow a `LayerScaling`.

    scaling: "file" (default) takes the scales the GGUF carries, None runs unscaled, or give a `LayerScaling`.
    n_ctx: KV cells (0: the trained length); n_threads 0: every core this process may use.
    n_seq_max: there may be room for a few more sequences, where that makes prefill faster.
    A warm-up decode proves that every rope node is patched; RopebendError names the node that is not.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 0,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        kv_unified: bool = True,
        n_threads: int = 0,
        flash_attn: bool = False,
        type_k: str = "f16",
        type_v: str = "f16",
        scaling: LayerScaling | str | None = "file",
        rope_freq_scale: float = 0.0,
        hooked: bool = True,
    ):
        info = model.info
        self.model = model
        self.n_ctx = n_ctx or info.n_ctx_train
        self.n_batch = min(n_batch, self.n_ctx)
        self.type_k = type_k
        self.hook = Hook(info.n_layer) if hooked else None
        self.scaling: LayerScaling | None = None
        self.plan: Plan | None = None
        self._shift_pending = False

        params = lib.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = self.n_batch
        params.n_ubatch = min(n_ubatch, self.n_batch)
        params.n_seq_max = _dividing(n_seq_max, params.n_ubatch) if kv_unified else n_seq_max
        params.kv_unified = kv_unified
        if not 0 <= n_threads <= MAX_THREADS:
            raise RopebendError(f"threads: expected 0 to {MAX_THREADS}, got {n_threads}")
        threads = n_threads or min(available_threads(), MAX_THREADS)
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attn else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # hidden states token by token, also if the file carries a pooling type
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        params.type_k, params.type_v = cache_type(type_k), cache_type(type_v)
        params.rope_freq_scale = rope_freq_scale
        params.no_perf = True
        if self.hook is not None:
            self._install_hook(params)
        with captured_log() as log:
            self._ctx = lib.llama_init_from_model(model.handle, params)
        if not self._ctx:
            reason = log[-1] if log else "no reason given"
            raise RopebendError(f"{info.path}: llama.cpp cannot make a context of {self.n_ctx} tokens: {reason}")
        self._memory = lib.llama_get_memory(self._ctx)
        self._prefill = Batch(self.n_batch, 1)
        self.rope_layers: list[int] = []
        try:
            if self.hook is not None:
                self.set_scaling(chosen_scaling(scaling, info))
        except BaseException:
            self.close()
            raise

    def _install_hook(self, params: Any) -> None:
        """Where the doctor puts itself between llama.cpp and the hook."""
        assert self.hook is not None
        self.hook.install(params)

    def close(self) -> None:
        """Free the KV cache and the graph."""
        if self._ctx:
            lib.llama_free(self._ctx)
            self._ctx = None

    @property
    def handle(self) -> Any:
        """The ``llama_context *``."""
        return self._ctx

    def set_scaling(self, scaling: LayerScaling | None, length: int | None = None) -> None:
        """Swap the scales.  The KV cache is cleared: keys rotated under one plan are wrong under another.

        length: tokens a sequence may reach (dynamic-ntk only; default: the KV cells that it has).
        Decodes one token to prove that every rope node can be patched; RopebendError names the node that cannot.
        """
        if self.hook is None:
            raise RopebendError("this context was made without the hook")
        if scaling is not None:
            check_supported(self.model.info, scaling)
            scaling = scaling.with_original_context(self.model.info.n_ctx_train)
        plan = scaling.plan(length or lib.llama_n_ctx_seq(self._ctx)) if scaling is not None else None
        self.hook.set_plan(plan)
        self.scaling, self.plan = scaling, plan
        self.clear()
        self._warm_up()

    def switch_plan(self, plan: Plan | None) -> None:
        """Decode under another plan from now on and keep the cache; `scaling` stays what `set_scaling` was given.

        Each sequence must be decoded under one plan only, and nothing may be shifted.
        """
        if self.hook is None:
            raise RopebendError("this context was made without the hook")
        if plan is not self.plan:
            self.hook.set_plan(plan)
            self.plan = plan

    def _warm_up(self) -> None:
        assert self.hook is not None
        self.hook.reset_counts()
        self.decode([max(self.model.bos_token, 0)], 0)
        self.rope_layers = [i for i, n in enumerate(self.hook.qk_nodes()) if n > 0]
        if not self.rope_layers and self.plan is not None:
            raise RopebendError(
                f"{self.model.info.path}: no rope node in the graph of {self.model.info.architecture}; "
                "layer scales would have no effect"
            )
        self.clear()

    # ---- decoding

    def run(self, batch: Batch, n: int) -> None:
        """``llama_decode`` of the first `n` tokens of `batch`.  Raises RopebendError if it fails."""
        batch.struct.n_tokens = n
        shifted, self._shift_pending = self._shift_pending, False
        if self.hook is not None and shifted:
            self.hook.reset_counts()
        status = lib.llama_decode(self._ctx, batch.struct)
        if self.hook is not None:
            self.hook.check()
            if shifted:  # llama.cpp shifts before it looks for free cells: also where the decode fails
                self._shift_pending = not self.hook.check_shift(self.rope_layers, decoded=status == 0)
        if status != 0:
            reason = {1: f"no free KV cells for {n} tokens in a cache of {self.n_ctx}", 2: "aborted"}
            raise RopebendError(f"llama_decode: {reason.get(status, f'failed with status {status}')}")

    def decode(
        self, tokens: Sequence[int] | npt.NDArray[np.int32], pos: int, seq: int = 0, *, all_logits: bool = False
    ) -> None:
        """Append `tokens` to a sequence from position `pos`, in chunks of n_batch; logits of the last one (or all).

        With all_logits the tokens must fit one batch.
        """
        if all_logits and len(tokens) > self.n_batch:
            raise ValueError(f"{len(tokens)} tokens do not fit n_batch = {self.n_batch}")
        b = self._prefill
        array = np.asarray(tokens, np.int32)
        for start in range(0, len(array), self.n_batch):
            part = array[start : start + self.n_batch]
            n = len(part)
            b.token[:n] = part
            b.pos[:n] = np.arange(pos + start, pos + start + n)
            b.seq[:n, 0] = seq
            b.want[:n] = 1 if all_logits else 0
            if start + n == len(array):
                b.want[n - 1] = 1
            self.run(b, n)

    def logits(self, i: int = -1) -> npt.NDArray[np.float32]:
        """Logits of the i-th token of the last batch: a view of shape [n_vocab], valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self._ctx, i)
        if not pointer:
            raise RopebendError(f"token {i} of the last batch has no logits")
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,))

    def all_logits(self, n: int) -> npt.NDArray[np.float32]:
        """Logits of the n tokens of the last batch that asked for them, in order: a view of shape [n, n_vocab]."""
        return np.ctypeslib.as_array(lib.llama_get_logits(self._ctx), shape=(n, self.model.n_vocab))

    # ---- memory

    def clear(self) -> None:
        """Forget every sequence."""
        self._shift_pending = False
        if self._memory:
            lib.llama_memory_clear(self._memory, False)  # cells without an owner are masked, no need to zero them

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let sequence `dst` share the cells of `src` at positions [p0, p1) (-1: open)."""
        lib.llama_memory_seq_cp(self._memory, src, dst, p0, p1)

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        """Remove positions [p0, p1) of a sequence (-1: open; seq -1: all sequences)."""
        if not lib.llama_memory_seq_rm(self._memory, seq, p0, p1):
            raise RopebendError(f"llama.cpp cannot remove positions [{p0}, {p1}) of sequence {seq} from this cache")

    def can_roll_back(self) -> bool:
        """Find out whether the end of a sequence can be removed, which a recurrent state does not allow.

        Decodes two tokens and forgets every sequence.
        """
        self.clear()
        self.decode([max(self.model.bos_token, 0)] * 2, 0)
        can = lib.llama_memory_seq_rm(self._memory, 0, 1, -1)
        self.clear()
        return bool(can)

    def shift_obstacle(self) -> str | None:
        """Why `seq_add` is refused, None if it is not.  In the first two cases llama.cpp would abort the process."""
        if has_mrope(self.model):
            return "models with M-RoPE cannot be shifted"
        if self.type_k == "bf16":
            return "a K cache of type bf16 cannot be shifted: llama.cpp's rope does not take bf16"
        if not lib.llama_memory_can_shift(self._memory):
            return f"{self.model.info.architecture}: llama.cpp cannot shift this model's cache"
        return None

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        """Shift positions [p0, p1) by `delta`: at the next decode the cached keys are rotated, by the plan of then.

        Shift only cells that no other sequence shares, and decode under the same plan next.
        """
        obstacle = self.shift_obstacle()
        if obstacle is not None:
            raise RopebendError(obstacle)
        turns = turns_keys(self._memory, seq, p0, p1, delta)
        lib.llama_memory_seq_add(self._memory, seq, p0, p1, delta)
        self._shift_pending = self._shift_pending or turns


def has_mrope(model: Model) -> bool:
    """True if positions have several parts (Qwen-VL and the like)."""
    return lib.llama_model_rope_type(model.handle) in (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE)


def chosen_scaling(scaling: LayerScaling | str | None, info: ModelInfo) -> LayerScaling | None:
    """Resolve the `scaling` argument of `Context` and `Llama`: "file" is what the GGUF carries."""
    if scaling == "file":
        return info.scaling
    if scaling is not None and not isinstance(scaling, LayerScaling):
        raise RopebendError(
            f'scaling: expected "file", None or a LayerScaling, got {scaling!r}; '
            "LayerScaling.load(path) reads a factors file"
        )
    return scaling


def available_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _dividing(n_seq_max: int, n_ubatch: int) -> int:
    """The next number of sequences that divides n_ubatch, if llama.cpp takes it.

    It reserves its graph for a multiple of the sequences (``llama_context::graph_reserve``); where that is not
    n_ubatch, the tensors of a full ubatch miss the cache lines: 1,950 tokens of needle took 127 ms with 6 sequences,
    101 ms with 8.
    """
    fitting = (n for n in range(n_seq_max, min(n_ubatch, lib.llama_max_parallel_sequences()) + 1) if n_ubatch % n == 0)
    return next(fitting, n_seq_max)


def cache_type(name: str) -> int:
    """ggml's number of a type of KV cache.  Raises UsageError for one that there is not."""
    if name not in CACHE_TYPES:
        raise UsageError(f"cache type: expected one of {', '.join(CACHE_TYPES)}, got {name!r}")
    return CACHE_TYPES[name]


def scaling_for(info: ModelInfo, factors: str | Path | None) -> LayerScaling | None:
    """The scales to use: those of a factors file if one is given, else those in the GGUF, else None."""
    if factors is None:
        return info.scaling
    scaling = LayerScaling.load(factors)
    try:
        check_supported(info, scaling)
    except RopebendError as e:
        raise RopebendError(f"{factors}: {e}") from None
    return replace(scaling, architecture=info.architecture)
