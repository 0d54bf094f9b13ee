"""llama.cpp's cache as the pool needs it: sharing, removing, saving and restoring sequences; and what it keeps."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as lib
import numpy as np

from ropebend.context import Context
from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.server.engine.checkpoints import State
from ropebend.server.engine.kv_pool import Keeps


def window_of(model: Model) -> int:
    """Tokens of the sliding window, 0 if there is none."""
    return max(0, int(lib.llama_model_n_swa(model.handle)))


def keeps(model: Model) -> Keeps:
    """What this model's cache keeps.

    llama.cpp gives away cells that have left the window of their sequence (``llama_kv_cache::find_slot``), also with
    ``swa_full``; ``llama_memory_seq_pos_min`` says which are left.
    """
    m = model.handle
    if model.info.architecture == "deepseek4":
        return Keeps.NOTHING  # it has compressed keys beside its window, and says that it has none
    if lib.llama_model_is_recurrent(m) or lib.llama_model_is_hybrid(m):
        return Keeps.END
    return Keeps.WINDOW if window_of(model) else Keeps.ALL


class ContextMemory:
    """The memory of a context, see `kv_pool.Memory`."""

    def __init__(self, context: Context):
        self._context = context
        self._memory = lib.llama_get_memory(context.handle)

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let `dst` share the cells of `src` at positions [p0, p1); a recurrent state is shared whatever they are."""
        self._context.seq_cp(src, dst, p0, p1)

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        self._context.seq_rm(seq, p0, p1)

    def first_position(self, seq: int) -> int:
        """All positions from here to the end are there."""
        return int(lib.llama_memory_seq_pos_min(self._memory, seq))

    def save(self, seq: int) -> State:
        """What could not be taken from a longer sequence: its window or recurrent state."""
        handle, flags = self._context.handle, lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        state = np.empty(lib.llama_state_seq_get_size_ext(handle, seq, flags), np.uint8)
        if lib.llama_state_seq_get_data_ext(handle, _pointer(state), state.nbytes, seq, flags) != state.nbytes:
            raise RopebendError("llama.cpp did not save the state of a sequence")
        return state

    def load(self, seq: int, state: State) -> bool:
        """Put a saved state in place of the one that the sequence has; False if it could not be done."""
        handle, flags = self._context.handle, lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        return bool(lib.llama_state_seq_set_data_ext(handle, _pointer(state), state.nbytes, seq, flags) == state.nbytes)


def _pointer(state: State) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * state.nbytes).from_address(state.ctypes.data)


def restores(context: Context) -> bool:
    """Find out whether this context goes on from a restored state as it did from the state that was saved.

    Decodes a few tokens and forgets every sequence.
    """
    n, n_vocab, memory = 8, context.model.n_vocab, ContextMemory(context)
    tokens = [(7 * i + 1) % n_vocab for i in range(n + 3)]
    context.clear()
    try:
        context.decode(tokens[:n], 0)
        state = memory.save(0)
        context.decode(tokens[n:], n)
        expected = context.logits().copy()
        memory.seq_cp(0, 1, 0, n)
        if not memory.load(1, state):
            return False
        context.decode(tokens[n:], n, seq=1)
        # another place in the cache moves the sums a little, another state moves them by their size
        close = np.abs(context.logits() - expected).max() <= 0.1 * np.ptp(expected)
        return bool(close)
    except RopebendError:
        return False
    finally:
        context.clear()
