"""`Llama`: llama-cpp-python's class with the layer scales of the GGUF applied.

``llama_cpp.Llama`` neither exposes ``cb_eval`` nor can set it later, so the private context is rebuilt with it, here
and nowhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as lib
from llama_cpp import _internals
from llama_cpp.llama_cache import BaseLlamaCache

from ropebend.errors import RopebendError
from ropebend.model import check_supported, chosen_scaling
from ropebend.model_info import ModelInfo
from ropebend.native import Hook, check_tokenizer, tokenize
from ropebend.scaling import LayerScaling


class _HookedContext(_internals.LlamaContext):  # type: ignore[misc]
    """LlamaContext that tells the hook of decodes, shifts and clearing."""

    hook: Hook

    def decode(self, batch: Any) -> None:
        self.hook.before_decode()
        decoded = False
        try:
            super().decode(batch)
            decoded = True
        finally:
            self.hook.after_decode(decoded=decoded)

    def kv_cache_seq_shift(self, seq_id: int, p0: int, p1: int, shift: int) -> None:
        self.hook.before_shift(self.memory, seq_id, p0, p1, shift)
        super().kv_cache_seq_shift(seq_id, p0, p1, shift)

    def kv_cache_clear(self) -> None:
        super().kv_cache_clear()
        self.hook.forget_shift()


class _PlanCache(BaseLlamaCache):  # type: ignore[misc]
    """A prompt cache seen through the current plan, of which a number is added to every token of a key.

    To every one, for caches find the entry with the longest common prefix, and `LlamaDiskCache` takes it out.
    """

    def __init__(self, cache: BaseLlamaCache, plan_hash: str):
        self.cache = cache
        self._salt = (int(plan_hash, 16) % 2**31) << 32  # above every token; 0: unscaled

    def _salted(self, key: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(token) + self._salt for token in key)

    @property
    def cache_size(self) -> int:
        return int(self.cache.cache_size)

    def __getitem__(self, key: Sequence[int]) -> Any:
        return self.cache[self._salted(key)]

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._salted(key) in self.cache

    def __setitem__(self, key: Sequence[int], value: Any) -> None:
        self.cache[self._salted(key)] = value


class Llama(llama_cpp.Llama):  # type: ignore[misc]
    """``llama_cpp.Llama`` whose layers rotate by their own scale.  Takes all its arguments, and:

    scaling   "file" (default): the scales the GGUF carries, if any; None: unscaled; or a `LayerScaling`.  The attribute
              of this name holds what is in effect, None: unscaled

    Of plans by length it takes the one for as many tokens as a sequence has room for (``llama_n_ctx_seq``).

    Raises ValueError, as llama-cpp-python does, if the file is missing or cannot be loaded; ScalesError if the scales
    do not fit the model; RopebendError if a rope node cannot be patched.

    >>> from ropebend import Llama, LayerScaling                             # doctest: +SKIP
    >>> llm = Llama("model.ropebend.gguf", n_ctx=16384)                      # doctest: +SKIP
    >>> llm.scaling.layer_scale                                              # doctest: +SKIP
    >>> llm.set_scaling(LayerScaling.uniform(2.0, llm.scaling.n_layer))      # doctest: +SKIP
    """

    def __init__(self, *args: Any, scaling: LayerScaling | str | None = "file", **kwargs: Any):
        self.scaling: LayerScaling | None = None
        self._plan_hash = "0"
        self._user_cache: BaseLlamaCache | None = None
        super().__init__(*args, **kwargs)
        check_tokenizer(self._model.model, self.model_path)
        self._model.tokenize = self._tokenize  # what every tokenizer of llama-cpp-python calls
        self._info = ModelInfo.read(self.model_path)
        self._hook = Hook(self._info.n_layer)
        if self.model_params.vocab_only:  # nothing is ever computed
            return
        self._rebuild_context()
        self.set_scaling(scaling)

    def _tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return tokenize(self._model.vocab, text, add_bos, special)

    def _rebuild_context(self) -> None:
        self._ctx: Any
        self._ctx.close()
        self._hook.install(self.context_params)
        ctx = _HookedContext(model=self._model, params=self.context_params, verbose=self.verbose)
        ctx.hook = self._hook
        self._ctx = self._stack.enter_context(contextlib.closing(ctx))
        if self._lora_adapter is not None:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._lora_adapter)
            if llama_cpp.llama_set_adapters_lora(ctx.ctx, adapters, 1, (ctypes.c_float * 1)(self.lora_scale)):
                raise RopebendError(f"{self.lora_path}: llama.cpp cannot apply this LoRA adapter")

    def _warm_up(self) -> None:
        """Find out whether every rope node can be patched, and forget what was evaluated.

        After the LoRA setter this also puts the callback back in place, which llama.cpp would otherwise do only after
        a pending K-shift.
        """
        self._ctx.kv_cache_clear()
        self._hook.reset_counts()
        self._batch.set_batch(batch=[max(self.token_bos(), 0)], n_past=0, logits_all=False)
        self._ctx.decode(self._batch)
        self._hook.learn_layers()
        self._ctx.kv_cache_clear()

    def set_scaling(self, scaling: LayerScaling | str | None) -> None:
        """Swap the scales (None: unscaled; "file": those of the GGUF, if any).

        Forgets what was evaluated and every cached prompt of other scales.  Decodes one token.

        Raises ScalesError if the scales do not fit the model, RopebendError if a rope node cannot be patched (by name),
        if there is none, or if the model was loaded with vocab_only.
        """
        if self.model_params.vocab_only:
            raise RopebendError(f"{self.model_path}: loaded with vocab_only, there is nothing to scale")
        scaling = chosen_scaling(scaling, self._info)
        if scaling is not None:
            check_supported(self._info, scaling)
            scaling = scaling.with_original_context(self._info.n_ctx_train)
        plan = scaling.plan(lib.llama_n_ctx_seq(self._ctx.ctx)) if scaling is not None else None
        self._hook.set_plan(plan)
        self.scaling = scaling
        self._plan_hash = plan.hash if plan is not None else "0"
        self.reset()
        self.set_cache(self._user_cache)
        self._warm_up()
        if scaling is not None and not self._hook.rope_layers:
            raise RopebendError(f"{self.model_path}: the graph has no rope node, layer scales would have no effect")

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Set the prompt cache (None: none); entries made under other scales are never found."""
        self._user_cache = cache
        super().set_cache(None if cache is None else _PlanCache(cache, self._plan_hash))

    def save_state(self) -> Any:
        """As in llama-cpp-python; the state remembers the scales it was made under."""
        state = super().save_state()
        state.ropebend_plan = self._plan_hash
        return state

    def load_state(self, state: Any) -> None:
        """As in llama-cpp-python.  Raises RopebendError if the state was made under other scales, RuntimeError if
        llama.cpp does not take it.
        """
        if getattr(state, "ropebend_plan", "0") != self._plan_hash:
            raise RopebendError("this state was saved under other layer scales; its keys are rotated differently")
        super().load_state(state)
        self._hook.forget_shift()  # the cells are new

    def reset(self) -> None:
        """As in llama-cpp-python."""
        super().reset()
        if self._is_recurrent or self._is_hybrid:  # then it has cleared the cache, past the context's own method
            self._hook.forget_shift()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "scaling": self.scaling}
