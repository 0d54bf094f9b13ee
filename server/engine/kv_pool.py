"""Which KV cells and sequence ids are in use: the books of llama.cpp's unified cache.  Pure Python and numpy.

llama.cpp does not say how many cells are free, so every cell a token takes is counted here under a number of our
own.  Sequences that share a prefix share its cells (`llama_memory_seq_cp`); a cell is free when nobody has it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Protocol

import numpy as np

#: Texts of fewer tokens are short: computing one again costs less than what its cells cost every decode meanwhile,
#: because llama.cpp's attention looks at every cell in use, whoever owns it.
SHORT = 256

#: Cells that ended short texts may keep: a thirty-second part of all, at least this many.
MIN_SHORT_CELLS = 256

#: With more running texts than this, ended short ones keep no cells: each running one pays for them in every step
#: (256 cells took 5 % off the speed of 16 texts of a 100 M model on a CPU).
FEW = 4


class Memory(Protocol):
    """What the pool needs of a context."""

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let `dst` share the cells of `src` at positions [p0, p1)."""

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        """Remove a sequence."""


class Sequence:
    """Tokens of which the first `n_computed` have cells in the cache.

    key      plan hash: sequences of different plans never share
    growing  someone is going to compute the rest of `tokens`
    """

    __slots__ = ("cells", "growing", "id", "key", "tokens")

    def __init__(self, id: int, key: str, tokens: array[int]):
        self.id = id
        self.key = key
        self.tokens = tokens
        self.cells = array("i")
        self.growing = True

    @property
    def n_computed(self) -> int:
        """Tokens with cells."""
        return len(self.cells)


def common_prefix(a: array[int], b: array[int], limit: int) -> int:
    """Length of the common beginning of two token lists, at most `limit`."""
    n = min(len(a), len(b), limit)
    if n <= 0 or a[0] != b[0]:
        return 0
    differ = np.frombuffer(a, np.int32, n) != np.frombuffer(b, np.int32, n)
    first = int(differ.argmax())
    return first if differ[first] else n


def _n_distinct(sequences: list[Sequence]) -> int:
    """Cells that these sequences have, shared ones counted once."""
    return len(np.unique(np.concatenate([np.frombuffer(s.cells, np.int32) for s in sequences])))


class KVPool:
    """Cells and sequence ids, with the finished sequences that stay cached until their room is needed (LRU).

    sharing  False: every sequence is on its own and nothing stays cached (see `loading.shares_prefixes`)
    """

    def __init__(self, memory: Memory, n_cells: int, n_seqs: int, *, sharing: bool = True):
        self.n_cells = n_cells
        self._sharing = sharing
        self._memory = memory
        self._free_cells = array("i", range(n_cells - 1, -1, -1))
        self._owners = np.zeros(n_cells, np.int32)
        self._free_ids = list(range(n_seqs - 1, -1, -1))
        self.running: list[Sequence] = []
        self.cached: OrderedDict[int, Sequence] = OrderedDict()  # by id, the longest unused first

    @property
    def n_free(self) -> int:
        """Cells nobody has."""
        return len(self._free_cells)

    @property
    def n_free_sequences(self) -> int:
        """Sequence ids that neither a running nor a cached sequence has."""
        return len(self._free_ids)

    # ---- a sequence's life

    def open(self, key: str, tokens: array[int], spare: Sequence | None = None) -> Sequence:
        """A new running sequence without cells; a cached one other than `spare` is dropped if there is no id left."""
        if not self._free_ids:
            self._drop_oldest(spare)
        seq = Sequence(self._free_ids.pop(), key, tokens)
        self.running.append(seq)
        return seq

    def best_source(
        self, key: str, tokens: array[int], limit: int, asking: Sequence | None = None
    ) -> tuple[Sequence | None, int]:
        """The sequence with the longest common beginning of at most `limit` tokens, computed or being computed.

        Of the running ones only those that began before `asking`, so that two never wait for each other.
        """
        if not self._sharing:
            return None, 0
        best: Sequence | None = None
        n_best = n_done = 0
        # most recently used first, so that of equals the freshest wins
        older = self.running[: self.running.index(asking)] if asking is not None else self.running
        for seq in (*reversed(self.cached.values()), *older):
            if seq.key != key:
                continue
            n = common_prefix(seq.tokens, tokens, limit)
            done = min(n, seq.n_computed)
            if (n, done) > (n_best, n_done):
                best, n_best, n_done = seq, n, done
        return best, n_best

    def share(self, src: Sequence, dst: Sequence, n: int) -> None:
        """Give `dst`, which has no cells yet, those of the first `n` tokens of `src`."""
        assert not dst.cells
        assert n <= src.n_computed
        if n == 0:
            return
        self._memory.seq_cp(src.id, dst.id, 0, n)
        dst.cells = src.cells[:n]
        self._owners[np.frombuffer(dst.cells, np.int32)] += 1
        if src.id in self.cached:
            self.cached.move_to_end(src.id)

    def take(self, seq: Sequence, n: int) -> None:
        """`n` more tokens of `seq` get cells.  `n_free` must be enough."""
        cells = self._free_cells[len(self._free_cells) - n :]
        del self._free_cells[len(self._free_cells) - n :]
        seq.cells.extend(cells)
        if n == 1:
            self._owners[cells[0]] = 1
        else:
            self._owners[np.frombuffer(cells, np.int32)] = 1

    def release(self, seq: Sequence) -> None:
        """Forget a sequence; its id is -1 from here on."""
        self._memory.seq_rm(seq.id)
        if seq.cells:
            cells = np.frombuffer(seq.cells, np.int32)
            self._owners[cells] -= 1
            self._free_cells.extend(cells[self._owners[cells] == 0].tolist())
        self._free_ids.append(seq.id)
        if self.cached.pop(seq.id, None) is None:
            self.running.remove(seq)
        seq.id, seq.growing, seq.cells = -1, False, array("i")

    def keep(self, seq: Sequence) -> None:
        """A running sequence has ended and stays cached with what was computed of it.

        Cached sequences that it begins with are dropped, and so is itself if another one holds all of it.
        """
        seq.growing = False
        seq.tokens = seq.tokens[: seq.n_computed]
        n = seq.n_computed
        for other in list(self.cached.values()):
            if other.key != seq.key:
                continue
            common = common_prefix(other.tokens, seq.tokens, n)
            if common == n:
                self.release(seq)
                self.cached.move_to_end(other.id)
                return
            if common == other.n_computed:
                self.release(other)
        if n == 0 or not self._sharing:
            self.release(seq)
            return
        self.running.remove(seq)
        self.cached[seq.id] = seq
        self._drop_short(max(self.n_cells // 32, MIN_SHORT_CELLS))

    def spare_the_running(self) -> None:
        """Drop ended short texts if many are running; those that wait for one must have taken its cells before."""
        if self.cached and len(self.running) > FEW:
            self._drop_short(0)

    def _drop_short(self, allowed: int) -> None:
        """Let ended short texts have at most so many cells, the longest unused go first."""
        short = [s for s in self.cached.values() if s.n_computed < SHORT]
        while sum(s.n_computed for s in short) > allowed and _n_distinct(short) > allowed:
            self.release(short.pop(0))

    # ---- making room

    def make_room(self, n: int, spare: Sequence | None = None) -> bool:
        """Drop cached sequences, the longest unused first but never `spare`, until `n` cells are free."""
        while self.n_free < n:
            if not self._drop_oldest(spare):
                return False
        return True

    def n_reclaimable(self, spare: Sequence | None = None) -> int:
        """Cells that would be free if every cached sequence but `spare` were dropped."""
        held = np.zeros(self.n_cells, bool)
        for seq in (*self.running, *([spare] if spare is not None else [])):
            held[np.frombuffer(seq.cells, np.int32)] = True
        return self.n_cells - int(held.sum())

    def clear_cached(self) -> None:
        """Drop every cached sequence."""
        while self._drop_oldest(None):
            pass

    def _drop_oldest(self, spare: Sequence | None) -> bool:
        seq = next((s for s in self.cached.values() if s is not spare), None)
        if seq is None:
            return False
        self.release(seq)
        return True
