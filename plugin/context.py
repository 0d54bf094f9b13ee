"""A context on llama.cpp's C API in which each layer rotates by its own scale.

This is what evaluation, search, doctor and the server stand on.  Users of llama-cpp-python's `Llama` take
`ropebend.Llama` instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.model import Closing, Model, check_supported, chosen_scaling, has_mrope
from ropebend.native import Hook, captured_log
from ropebend.runtime import MAX_THREADS, FlashAttn, available_threads, cache_type
from ropebend.scaling import LayerScaling
from ropebend.scaling.plan import Plan


class Batch:
    """Room for `n_tokens` tokens of a ``llama_batch``, each in up to `n_seq_max` sequences.

    token, pos  int32 [n_tokens]
    n_seq       how many sequences each is in, int32 [n_tokens], 1 until it is set otherwise
    seq         which ones, int32 [n_tokens, n_seq_max]
    want        1 where logits are asked for, int8 [n_tokens]
    """

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
    n_ctx: KV cells (0: the trained length), which llama.cpp rounds up to a multiple of 256; n_batch, n_ubatch: tokens
    per llama_decode and per graph; n_threads 0: every core this process may use.
    n_seq_max: there may be room for a few more sequences, where that makes prefill faster.
    flash_attn: True, False or "auto"; type_k, type_v: of the KV cache, as "q8_0"; rope_freq_scale: llama.cpp's own
    flag, 0 is the model's; hooked=False leaves llama.cpp as it is (``llama_init_from_model`` and nothing else).
    `scaling` and `plan` then hold what is in effect, None: unscaled.

    A warm-up decode proves that every rope node is patched; RopebendError names the node that is not, or says why
    llama.cpp makes no such context.  Raises ScalesError if the scales do not fit the model, UsageError for a type of KV
    cache that there is not.
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
        flash_attn: FlashAttn = False,
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
        kinds = {True: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO}
        params.flash_attn_type = kinds.get(flash_attn, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED)
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

    @property
    def rope_layers(self) -> list[int]:
        """The layers in which something rotates, as the hook saw them; none without the hook."""
        return self.hook.rope_layers if self.hook is not None else []

    def set_scaling(self, scaling: LayerScaling | None, length: int | None = None) -> None:
        """Swap the scales.  The KV cache is cleared: keys rotated under one plan are wrong under another.

        length: tokens a sequence may reach, which plans by length and dynamic-ntk go by (default: the KV cells that it
        has).
        Decodes one token to prove that every rope node can be patched; RopebendError names the node that cannot.
        Raises ScalesError if the scales do not fit the model, RopebendError if the context was made without the hook.
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

        Each sequence must be decoded under one plan only, and nothing may be shifted.  Raises RopebendError if the
        context was made without the hook, ValueError for a plan of another number of layers.
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
        self.hook.learn_layers()
        if not self.rope_layers and self.plan is not None:
            raise RopebendError(
                f"{self.model.info.path}: no rope node in the graph of {self.model.info.architecture}; "
                "layer scales would have no effect"
            )
        self.clear()

    # ---- decoding

    def run(self, batch: Batch, n: int) -> None:
        """``llama_decode`` of the first `n` tokens of `batch`.

        Raises RopebendError if it fails, or if a rope node could not be patched.
        """
        batch.struct.n_tokens = n
        if self.hook is None:
            status = lib.llama_decode(self._ctx, batch.struct)
        else:
            self.hook.before_decode()
            status = lib.llama_decode(self._ctx, batch.struct)
            self.hook.after_decode(decoded=status == 0)
        if status != 0:
            reason = {1: f"no free KV cells for {n} tokens in a cache of {self.n_ctx}", 2: "aborted"}
            raise RopebendError(f"llama_decode: {reason.get(status, f'failed with status {status}')}")

    def decode(
        self, tokens: Sequence[int] | npt.NDArray[np.int32], pos: int, seq: int = 0, *, all_logits: bool = False
    ) -> None:
        """Append `tokens` to a sequence from position `pos`, in chunks of n_batch; logits of the last one (or all).

        With all_logits the tokens must fit one batch (else ValueError).  Raises RopebendError if llama.cpp cannot
        decode, as when there is no free KV cell.
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
        """Logits of the i-th token of the last batch: a view of shape [n_vocab], valid until the next decode.

        Raises RopebendError if that token asked for none (``llama_get_logits_ith``).
        """
        pointer = lib.llama_get_logits_ith(self._ctx, i)
        if not pointer:
            raise RopebendError(f"token {i} of the last batch has no logits")
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,))

    def all_logits(self, n: int) -> npt.NDArray[np.float32]:
        """Logits of the n tokens of the last batch that asked for them, in order: a view of shape [n, n_vocab], valid
        until the next decode.  That there are n is not checked (``llama_get_logits``).
        """
        return np.ctypeslib.as_array(lib.llama_get_logits(self._ctx), shape=(n, self.model.n_vocab))

    # ---- memory

    def clear(self) -> None:
        """Forget every sequence."""
        if self.hook is not None:
            self.hook.forget_shift()
        if self._memory:
            lib.llama_memory_clear(self._memory, False)  # cells without an owner are masked, no need to zero them

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let sequence `dst` share the cells of `src` at positions [p0, p1) (-1: open), as ``llama_memory_seq_cp``."""
        lib.llama_memory_seq_cp(self._memory, src, dst, p0, p1)

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        """Remove positions [p0, p1) of a sequence (-1: open; seq -1: all sequences), as ``llama_memory_seq_rm``.

        Raises RopebendError if the memory cannot do that: see `can_roll_back`.
        """
        if not lib.llama_memory_seq_rm(self._memory, seq, p0, p1):
            raise RopebendError(f"llama.cpp cannot remove positions [{p0}, {p1}) of sequence {seq} from this cache")

    def can_roll_back(self) -> bool:
        """Find out whether the end of a sequence can be removed, which a recurrent state does not allow.

        Decodes two tokens and forgets every sequence.  Raises RopebendError as `run` does.
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

        As ``llama_memory_seq_add``.  Shift only cells that no other sequence shares, and decode under the same plan
        next.  Raises RopebendError with `shift_obstacle`.
        """
        obstacle = self.shift_obstacle()
        if obstacle is not None:
            raise RopebendError(obstacle)
        if self.hook is not None:
            self.hook.before_shift(self._memory, seq, p0, p1, delta)
        lib.llama_memory_seq_add(self._memory, seq, p0, p1, delta)


def _dividing(n_seq_max: int, n_ubatch: int) -> int:
    """The next number of sequences that divides n_ubatch, if llama.cpp takes it.

    It reserves its graph for a multiple of the sequences (``llama_context::graph_reserve``); where that is not
    n_ubatch, the tensors of a full ubatch miss the cache lines: 1,950 tokens of needle took 127 ms with 6 sequences,
    101 ms with 8.
    """
    fitting = (n for n in range(n_seq_max, min(n_ubatch, lib.llama_max_parallel_sequences()) + 1) if n_ubatch % n == 0)
    return next(fitting, n_seq_max)
