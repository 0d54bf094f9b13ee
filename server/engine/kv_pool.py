"""Which KV cells and sequence ids are in use: the books of llama.cpp's unified cache.  Pure Python and numpy.

llama.cpp does not say how many cells are free, so every cell a token takes is counted here under a number of our
own.  Sequences that share a prefix share its cells (`llama_memory_seq_cp`); a cell is free when nobody has it.

Of models with a sliding window or a recurrent state a text can begin with all of another one, but with a part of it
only where a checkpoint was saved, or where the window has not been given away.
"""

from __future__ import annotations

import enum
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ropebend.server.engine.checkpoints import FEWEST_TOKENS, Checkpoint, Checkpoints, Shelf, State

#: Texts of fewer tokens are short: computing one again costs less than what its cells cost every decode meanwhile,
#: because llama.cpp's attention looks at every cell in use, whoever owns it.
SHORT = 256

#: Cells that ended short texts may keep: a thirty-second part of all, at least this many.
MIN_SHORT_CELLS = 256

#: With more running texts than this, ended short ones keep no cells: each running one pays for them in every step
#: (256 cells took 5 % off the speed of 16 texts of a 100 M model on a CPU).
FEW = 4


class Keeps(enum.Enum):
    """What of a text another one can begin with, as long as it is cached.

    ALL      any part of it
    WINDOW   all of it, or as much as its sliding window has not been given away of
    END      all of it and nothing less: a recurrent state cannot go back
    NOTHING  nothing
    """

    ALL = enum.auto()
    WINDOW = enum.auto()
    END = enum.auto()
    NOTHING = enum.auto()


class Memory(Protocol):
    """What the pool needs of a context."""

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let `dst` share the cells of `src` at positions [p0, p1)."""

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        """Remove a sequence."""

    def first_position(self, seq: int) -> int:
        """All positions from here to the end are there."""

    def save(self, seq: int) -> State:
        """What could not be taken from a longer sequence: its window or recurrent state."""

    def load(self, seq: int, state: State) -> bool:
        """Put a saved state in place of the one that the sequence has; False if it could not be done."""


class Sequence:
    """Tokens of which the first `n_computed` have cells in the cache.

    key      plan hash: sequences of different plans never share
    growing  someone is going to compute the rest of `tokens`
    window   cells beside those of its tokens, as long as the sequence that it was restored from has those, too
    n_window tokens that were restored with it
    shelf    checkpoints of its beginning
    stops    after how many tokens its computing pauses, because others wait for that state or it is to be saved
    """

    __slots__ = ("cells", "growing", "id", "key", "n_window", "shelf", "stops", "tokens", "window")

    def __init__(self, id: int, key: str, tokens: array[int], shelf: Shelf):
        self.id = id
        self.key = key
        self.tokens = tokens
        self.cells = array("i")
        self.window = array("i")
        self.n_window = 0
        self.growing = True
        self.shelf = shelf
        self.stops: set[int] = set()

    @property
    def n_computed(self) -> int:
        """Tokens with cells."""
        return len(self.cells)

    def next_stop(self) -> int:
        """Tokens that may be computed before it pauses."""
        return min((n - self.n_computed for n in self.stops if n > self.n_computed), default=len(self.tokens))


@dataclass(frozen=True)
class Match:
    """What a new text can begin with: the first `n` tokens of `seq`.

    checkpoint  the state there, if it must be restored
    n_common    the longest common beginning with any text, had its state been kept
    """

    seq: Sequence | None = None
    n: int = 0
    checkpoint: Checkpoint | None = None
    n_common: int = 0


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

    keeps             what of a text another one can begin with; NOTHING: nothing stays cached
    window            tokens of the sliding window; llama.cpp keeps it in a second cache of as many cells, in which the
                      window of a restored text needs room of its own
    checkpoint_bytes  what checkpoints may take
    """

    def __init__(
        self,
        memory: Memory,
        n_cells: int,
        n_seqs: int,
        *,
        keeps: Keeps = Keeps.ALL,
        window: int = 0,
        checkpoint_bytes: int = 0,
    ):
        self.n_cells = n_cells
        self.checkpoints = Checkpoints(checkpoint_bytes)
        self._keeps = keeps
        self._window = window
        self._memory = memory
        self._free_cells = array("i", range(n_cells - 1, -1, -1))
        self._owners = np.zeros(n_cells, np.int32)
        self._free_ids = list(range(n_seqs - 1, -1, -1))
        self.running: list[Sequence] = []
        self.cached: OrderedDict[int, Sequence] = OrderedDict()  # by id, the longest unused first

    @property
    def loses_places(self) -> bool:
        """Whether a text must pause where another one is to begin: it cannot go back."""
        return self._keeps in (Keeps.WINDOW, Keeps.END)

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints."""
        return self.loses_places and self.checkpoints.limit > 0

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
        seq = Sequence(self._free_ids.pop(), key, tokens, Shelf(self.checkpoints))
        self.running.append(seq)
        return seq

    def best_source(self, key: str, tokens: array[int], limit: int, asking: Sequence | None = None) -> Match:
        """What a text can begin with, at most `limit` tokens, computed or being computed.

        Of the running ones only those that began before `asking`, so that two never wait for each other.
        """
        if self._keeps is Keeps.NOTHING:
            return Match()
        best, best_rank, n_common = Match(), (0, True, 0), 0
        # most recently used first, so that of equals the freshest wins
        older = self.running[: self.running.index(asking)] if asking is not None else self.running
        for seq in (*reversed(self.cached.values()), *older):
            if seq.key != key:
                continue
            common = common_prefix(seq.tokens, tokens, limit)
            n_common = max(n_common, common)
            if common < best_rank[0] and self._keeps is not Keeps.ALL:
                continue  # looking closer costs more
            n, checkpoint = self._usable(seq, common)
            rank = (n, checkpoint is None, min(n, seq.n_computed))
            if rank > best_rank:
                best, best_rank = Match(seq, n, checkpoint), rank
        return Match(best.seq, best.n, best.checkpoint, n_common)

    def _usable(self, seq: Sequence, common: int) -> tuple[int, Checkpoint | None]:
        """How many of the first `common` tokens of `seq` another text can begin with, now or when they are computed."""
        if self._keeps is Keeps.ALL or common >= seq.n_computed or self._reaches_back(seq, common):
            return common, None
        checkpoint = seq.shelf.best(common)
        return (checkpoint.n, checkpoint) if checkpoint is not None else (0, None)

    def _reaches_back(self, seq: Sequence, n: int) -> bool:
        """Whether what the next token after the first `n` of `seq` looks at is still there."""
        return self._keeps is Keeps.WINDOW and self._memory.first_position(seq.id) <= max(0, n - self._window + 1)

    def _n_window(self, n: int) -> int:
        """Cells that a state after `n` tokens needs when it is restored."""
        return min(n, self._window)

    def n_more(self, match: Match) -> int:
        """Cells that beginning so takes."""
        return self._n_window(match.n) if match.checkpoint is not None else 0

    def holds(self, seq: Sequence, n: int) -> bool:
        """Whether a text can begin with the first `n` tokens of `seq` now."""
        if seq.id < 0 or n > seq.n_computed:
            return False
        return self._keeps is Keeps.ALL or n == seq.n_computed or self._reaches_back(seq, n)

    def share(self, src: Sequence, dst: Sequence, n: int) -> None:
        """Give `dst`, which has no cells yet, those of the first `n` tokens of `src`."""
        assert not dst.cells
        assert n <= src.n_computed
        if n == 0:
            return
        self._memory.seq_cp(src.id, dst.id, 0, n)
        dst.cells, dst.window, dst.n_window = src.cells[:n], src.window[:], src.n_window
        for cells in (dst.cells, dst.window):
            self._owners[np.frombuffer(cells, np.int32)] += 1
        dst.shelf.take_over(src.shelf, n)
        if src.id in self.cached:
            self.cached.move_to_end(src.id)

    def restore(self, src: Sequence, dst: Sequence, checkpoint: Checkpoint) -> bool:
        """The same with the state of a checkpoint of `src`.  False if there is no room: then nothing was shared."""
        n_window = self._n_window(checkpoint.n)
        roomy = self.make_room(n_window, src)
        if checkpoint.state is None or not (roomy or src.id in self.cached):
            return False
        self.share(src, dst, checkpoint.n)
        # the window of `src`, as far as it is left, is replaced
        self._disown(dst.window)
        dst.window, dst.n_window = self._take(n_window if roomy else 0), checkpoint.n
        if not roomy:
            self.release(src)  # and its window goes with it
            if self._n_own(dst) < n_window:
                self._clear(dst)
                return False
        if not self._memory.load(dst.id, checkpoint.state):
            self.checkpoints.drop(checkpoint)
            self._clear(dst)
            return False
        self.checkpoints.touch(checkpoint)
        return True

    def save(self, seq: Sequence) -> None:
        """Make a checkpoint of what was computed of a sequence, if it is long enough."""
        n = seq.n_computed
        if n < FEWEST_TOKENS or not self.saves or n in seq.shelf:
            return
        checkpoint = self.checkpoints.add(n, self._memory.save(seq.id))
        if checkpoint is not None:
            seq.shelf.add(checkpoint)

    def take(self, seq: Sequence, n: int) -> None:
        """`n` more tokens of `seq` get cells.  `n_free` must be enough."""
        seq.cells.extend(self._take(n))

    def _take(self, n: int) -> array[int]:
        """`n` cells, each with one owner."""
        cells = self._free_cells[len(self._free_cells) - n :]
        del self._free_cells[len(self._free_cells) - n :]
        if n == 1:
            self._owners[cells[0]] = 1
        elif n:
            self._owners[np.frombuffer(cells, np.int32)] = 1
        return cells

    def _disown(self, cells: array[int]) -> None:
        """Somebody has these no more; they are free if nobody else has them."""
        if cells:
            numbers = np.frombuffer(cells, np.int32)
            self._owners[numbers] -= 1
            self._free_cells.extend(numbers[self._owners[numbers] == 0].tolist())

    def _clear(self, seq: Sequence) -> None:
        """Take a sequence's cells away."""
        self._memory.seq_rm(seq.id)
        self._disown(seq.cells)
        self._disown(seq.window)
        seq.cells, seq.window = array("i"), array("i")
        seq.shelf.clear()

    def release(self, seq: Sequence) -> None:
        """Forget a sequence; its id is -1 from here on."""
        self._clear(seq)
        self._free_ids.append(seq.id)
        if self.cached.pop(seq.id, None) is None:
            self.running.remove(seq)
        seq.id, seq.growing = -1, False

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
            # of a longer text only some models can take the beginning
            if common == n and (self._keeps is Keeps.ALL or n == other.n_computed):
                other.shelf.take_over(seq.shelf, n)
                self.release(seq)
                self.cached.move_to_end(other.id)
                return
            if common == other.n_computed:
                seq.shelf.take_over(other.shelf, common)
                self.release(other)
        if n == 0 or self._keeps is Keeps.NOTHING:
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
            if not (self._drop_oldest(spare) or self._settle()):
                return False
        return True

    def _settle(self) -> bool:
        """Take the second window of a running text, if nobody else has the cells of the first one any more."""
        for seq in self.running:
            if seq.window and self._n_own(seq) >= len(seq.window):
                self._disown(seq.window)
                seq.window = array("i")
                return True
        return False

    def _n_own(self, seq: Sequence) -> int:
        """Cells of what was restored that only this sequence has."""
        return int((self._owners[np.frombuffer(seq.cells, np.int32)[: seq.n_window]] == 1).sum())

    def n_reclaimable(self, spare: Sequence | None = None) -> int:
        """Cells that would be free if every cached sequence but `spare` were dropped."""
        held = np.zeros(self.n_cells, bool)
        for seq in (*self.running, *([spare] if spare is not None else [])):
            for cells in (seq.cells, seq.window):
                held[np.frombuffer(cells, np.int32)] = True
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
