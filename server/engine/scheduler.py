"""Continuous batching: which tokens of which sequences the next decode computes.  Pure Python, knows no llama.cpp.

An entry is a sequence that grows: first by its prompt, then by each token that was sampled.  Every step takes one token
of each entry that is generating and fills up with prompt tokens, shared out evenly, so that a long prompt holds up
neither the texts being written nor short prompts behind it.  A prompt that begins like another one of the same plan,
cached or just being computed, waits for those tokens and takes their cells.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass

from ropebend.server.engine.checkpoints import FEWEST_TOKENS, Checkpoint, places
from ropebend.server.engine.kv_pool import KVPool, Match, Sequence
from ropebend.server.engine.outputs import Owner

#: Cells an entry is promised beyond what it has, so that admitting the next one does not push it out at once.
HEADROOM = 32


@dataclass(eq=False)
class Entry:
    """A sequence to compute, waiting or running.

    group     what the entries of one request have in common; groups take turns
    key       plan hash
    tokens    prompt and what was generated so far
    n_max     tokens it may reach
    owner     who gets the outputs
    all_rows  every token's output is wanted: nothing can be taken from the cache
    alone     its tokens are decoded only beside those of other entries that say so (embeddings)
    n_cached  prompt tokens taken from another sequence
    """

    group: Hashable
    key: str
    tokens: array[int]
    n_max: int
    owner: Owner
    all_rows: bool = False
    alone: bool = False
    arrival: int = -1
    seq: Sequence | None = None
    source: Sequence | None = None
    checkpoint: Checkpoint | None = None
    n_awaited: int = 0
    n_cached: int = -1

    @property
    def n_left(self) -> int:
        """Known tokens without cells."""
        return len(self.tokens) - (self.seq.n_computed if self.seq is not None else 0)

    @property
    def promised(self) -> int:
        """Cells to hold ready for it."""
        assert self.seq is not None
        target = min(self.n_max, len(self.tokens) + HEADROOM)
        return max(0, target - max(self.seq.n_computed, self.n_awaited))


@dataclass(frozen=True)
class Chunk:
    """The next `n` tokens of an entry, from position `start`."""

    entry: Entry
    start: int
    n: int

    @property
    def is_last(self) -> bool:
        """True if nothing is left after it: the next token can be sampled."""
        return self.start + self.n == len(self.entry.tokens)


@dataclass(frozen=True)
class Step:
    """One decode: chunks of one plan."""

    key: str
    chunks: list[Chunk]


class Scheduler:
    """n_slots: entries that run at once; n_batch: tokens of a step; n_rows: outputs of a step for `all_rows` entries.

    Needs n_slots <= n_batch, n_slots < the pool's sequences (<= if it does not share), and n_max of every entry <= the
    pool's cells.
    """

    def __init__(self, pool: KVPool, n_slots: int, n_batch: int, n_rows: int):
        self.pool = pool
        self.n_slots = n_slots
        self.n_batch = n_batch
        self.n_rows = n_rows
        self.n_waiting = 0
        self._waiting: dict[int, deque[Entry]] = {}  # by id of the group, in the order of arrival
        self.running: list[Entry] = []
        self.n_preempted = 0
        self._n_arrived = 0
        self._last_turn = ("", False)

    @property
    def busy(self) -> bool:
        """True if there is anything to do."""
        return bool(self._waiting or self.running)

    def add(self, entry: Entry) -> None:
        entry.arrival = self._n_arrived
        self._n_arrived += 1
        self._queue_of(entry).append(entry)
        self.n_waiting += 1

    def finish(self, entry: Entry) -> None:
        """The entry has ended, by itself or not; what was computed stays cached."""
        self._leave(entry, keep=True)

    def discard(self, entry: Entry) -> None:
        """The entry has failed; nothing of it stays."""
        self._leave(entry, keep=False)

    def _leave(self, entry: Entry, keep: bool) -> None:
        if entry.seq is None:
            self._unqueue(entry)
            return
        self.running.remove(entry)
        if keep:
            self.pool.keep(entry.seq)
        else:
            self.pool.release(entry.seq)
        entry.seq = entry.source = entry.checkpoint = None

    def _queue_of(self, entry: Entry) -> deque[Entry]:
        return self._waiting.setdefault(id(entry.group), deque())

    def _unqueue(self, entry: Entry) -> None:
        entries = self._queue_of(entry)
        entries.remove(entry)  # nearly always the first
        self.n_waiting -= 1
        if not entries:
            del self._waiting[id(entry.group)]

    # ---- the next step

    def next_step(self) -> Step | None:
        """What to decode now; its tokens have cells from here on.  None if there is nothing to do."""
        self._save()
        self._admit()
        ready = [e for e in self.running if self._is_ready(e)]
        self.pool.spare_the_running()  # after those that wait for one that has ended took its cells
        if not ready:
            return None
        key, alone = self._next_turn(ready)
        chunks = []
        for entry, n in self._shares([e for e in ready if (e.key, e.alone) == (key, alone)]):
            if entry.seq is None or not self._make_room(n, entry):
                continue  # pushed out to make room for another one, or did not find room itself
            chunks.append(Chunk(entry, entry.seq.n_computed, n))
            self.pool.take(entry.seq, n)
        chunks = [c for c in chunks if c.entry.seq is not None]
        return Step(key, chunks) if chunks else None

    def _admit(self) -> None:
        while self._waiting and len(self.running) < self.n_slots:
            active = Counter(id(e.group) for e in self.running)
            first = (entries[0] for entries in self._waiting.values())
            entry = min(first, key=lambda e: (active[id(e.group)], e.arrival))
            match = self._match(entry)
            promised = sum(e.promised for e in self.running)
            needed = min(entry.n_max, len(entry.tokens) + HEADROOM) - match.n + self.pool.n_more(match) + promised
            if self.pool.n_free < needed:
                if self.running and self.pool.n_reclaimable(match.seq) < needed:
                    return  # until others have finished
                self.pool.make_room(needed, match.seq)
            self._unqueue(entry)
            self.running.append(entry)
            entry.seq = self.pool.open(entry.key, entry.tokens, match.seq)
            self._follow(entry, match)
            self._is_ready(entry)  # take what is there before others make room for themselves
            if self.pool.saves and not entry.alone:
                n = len(entry.tokens)
                # where others began to differ, others may again
                entry.seq.stops |= {p for p in (*places(n), match.n_common) if max(match.n, FEWEST_TOKENS - 1) < p < n}

    def _save(self) -> None:
        """Keep the states of those that have paused for it."""
        for entry in self.running:
            seq = entry.seq
            assert seq is not None
            if seq.n_computed in seq.stops:
                seq.stops.remove(seq.n_computed)
                self.pool.save(seq)

    def _match(self, entry: Entry) -> Match:
        if entry.all_rows:
            return Match()
        limit = len(entry.tokens) - 1  # the last one gives the logits
        return self.pool.best_source(entry.key, entry.tokens, limit, entry.seq)

    def _follow(self, entry: Entry, match: Match) -> None:
        entry.source, entry.n_awaited, entry.checkpoint = match.seq, match.n, match.checkpoint
        if self.pool.loses_places and match.seq is not None and match.n > match.seq.n_computed:
            match.seq.stops.add(match.n)

    def _is_ready(self, entry: Entry) -> bool:
        """Take the shared beginning if it is there; False while it is still being computed."""
        assert entry.seq is not None
        while entry.source is not None:
            source = entry.source
            if entry.checkpoint is not None and source.id >= 0:
                if not self.pool.restore(source, entry.seq, entry.checkpoint):
                    entry.n_awaited = 0
                entry.source = entry.checkpoint = None
            elif self.pool.holds(source, entry.n_awaited):
                self.pool.share(source, entry.seq, entry.n_awaited)
                entry.source = None
            elif source.growing and source.n_computed < entry.n_awaited:
                return False
            else:
                self._follow(entry, self._match(entry))
        if entry.n_cached < 0:
            entry.n_cached = entry.n_awaited
        entry.n_awaited = 0
        return True

    def _next_turn(self, ready: list[Entry]) -> tuple[str, bool]:
        """What cannot be mixed takes turns: plans, and what wants to be alone."""
        turns = sorted({(e.key, e.alone) for e in ready})
        self._last_turn = next((turn for turn in turns if turn > self._last_turn), turns[0])
        return self._last_turn

    def _shares(self, entries: list[Entry]) -> list[tuple[Entry, int]]:
        """(entry, tokens) for one step: generating ones first, then prompts, shortest rest first."""
        out = [(e, 1) for e in entries if e.n_left == 1]
        prefilling = sorted((e for e in entries if e.n_left > 1), key=lambda e: (e.n_left, e.arrival))
        budget, rows = self.n_batch - len(out), self.n_rows
        for i, entry in enumerate(prefilling):
            assert entry.seq is not None
            n = min(entry.n_left, budget // (len(prefilling) - i), entry.seq.next_stop())
            if entry.all_rows:
                n = min(n, rows)
                rows -= n
            if n > 0:
                out.append((entry, n))
                budget -= n
        return out

    def _make_room(self, n: int, entry: Entry) -> bool:
        """Cells for `n` tokens: drop cached sequences, then push out the latest arrivals, `entry` itself at last."""
        while not self.pool.make_room(n):
            youngest = max(self.running, key=lambda e: e.arrival)
            assert youngest.seq is not None
            self.running.remove(youngest)
            self.pool.release(youngest.seq)
            youngest.seq = youngest.source = youngest.checkpoint = None
            self._queue_of(youngest).appendleft(youngest)  # of its group, those that wait came later
            self.n_waiting += 1
            self.n_preempted += 1
            if youngest is entry:
                return False
        return True
