"""Continuous batching: which tokens of which sequences the next decode computes.  Pure Python, knows no llama.cpp.

A task is a sequence that grows: first by its prompt, then by each token that was sampled.  Every step takes one token
of each task that is generating and fills up with prompt tokens, shared out evenly, so that a long prompt holds up
neither the texts being written nor short prompts behind it.  A prompt that begins like another one of the same plan,
cached or just being computed, waits for those tokens and takes their cells.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from ropebend.server.engine.kv_pool import KVPool, Sequence

#: Cells a task is promised beyond what it has, so that admitting the next one does not push it out at once.
HEADROOM = 32


@dataclass(eq=False)
class Task:
    """A sequence to compute.

    group     tasks of one request; groups take turns
    key       plan hash
    tokens    prompt and what was generated so far
    n_max     tokens it may reach
    all_rows  every token's output is wanted: nothing can be taken from the cache
    alone     its tokens are decoded only beside those of other tasks that say so (embeddings)
    n_cached  prompt tokens taken from another sequence
    """

    group: Any
    key: str
    tokens: array[int]
    n_max: int
    all_rows: bool = False
    alone: bool = False
    owner: Any = None
    arrival: int = -1
    seq: Sequence | None = None
    source: Sequence | None = None
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
    """The next `n` tokens of a task, from position `start`."""

    task: Task
    start: int
    n: int

    @property
    def is_last(self) -> bool:
        """True if nothing is left after it: the next token can be sampled."""
        return self.start + self.n == len(self.task.tokens)


@dataclass(frozen=True)
class Step:
    """One decode: chunks of one plan."""

    key: str
    chunks: list[Chunk]


class Scheduler:
    """n_slots: tasks that run at once; n_batch: tokens of a step; n_rows: outputs of a step for `all_rows` tasks.

    Needs n_slots <= n_batch, n_slots < the pool's sequences (<= if it does not share), and n_max of every task <= the
    pool's cells.
    """

    def __init__(self, pool: KVPool, n_slots: int, n_batch: int, n_rows: int):
        self.pool = pool
        self.n_slots = n_slots
        self.n_batch = n_batch
        self.n_rows = n_rows
        self.n_waiting = 0
        self._waiting: dict[int, deque[Task]] = {}  # by id of the group, in the order of arrival
        self.running: list[Task] = []
        self.n_preempted = 0
        self._n_arrived = 0
        self._last_turn = ("", False)

    @property
    def busy(self) -> bool:
        """True if there is anything to do."""
        return bool(self._waiting or self.running)

    def add(self, task: Task) -> None:
        """Queue a task."""
        task.arrival = self._n_arrived
        self._n_arrived += 1
        self._queue_of(task).append(task)
        self.n_waiting += 1

    def finish(self, task: Task) -> None:
        """The task has ended, by itself or not; what was computed stays cached."""
        self._leave(task, keep=True)

    def discard(self, task: Task) -> None:
        """The task has failed; nothing of it stays."""
        self._leave(task, keep=False)

    def _leave(self, task: Task, keep: bool) -> None:
        if task.seq is None:
            self._unqueue(task)
            return
        self.running.remove(task)
        if keep:
            self.pool.keep(task.seq)
        else:
            self.pool.release(task.seq)
        task.seq = task.source = None

    def _queue_of(self, task: Task) -> deque[Task]:
        return self._waiting.setdefault(id(task.group), deque())

    def _unqueue(self, task: Task) -> None:
        tasks = self._queue_of(task)
        tasks.remove(task)  # nearly always the first
        self.n_waiting -= 1
        if not tasks:
            del self._waiting[id(task.group)]

    # ---- the next step

    def next_step(self) -> Step | None:
        """What to decode now; its tokens have cells from here on.  None if there is nothing to do."""
        self._admit()
        ready = [t for t in self.running if self._is_ready(t)]
        self.pool.spare_the_running()  # after those that wait for one that has ended took its cells
        if not ready:
            return None
        key, alone = self._next_turn(ready)
        chunks = []
        for task, n in self._shares([t for t in ready if (t.key, t.alone) == (key, alone)]):
            if task.seq is None or not self._make_room(n, task):
                continue  # pushed out to make room for another one, or did not find room itself
            chunks.append(Chunk(task, task.seq.n_computed, n))
            self.pool.take(task.seq, n)
        chunks = [c for c in chunks if c.task.seq is not None]
        return Step(key, chunks) if chunks else None

    def _admit(self) -> None:
        while self._waiting and len(self.running) < self.n_slots:
            active = Counter(id(t.group) for t in self.running)
            first = (tasks[0] for tasks in self._waiting.values())
            task = min(first, key=lambda t: (active[id(t.group)], t.arrival))
            source, n = self._match(task)
            promised = sum(t.promised for t in self.running)
            needed = min(task.n_max, len(task.tokens) + HEADROOM) - n + promised
            if self.pool.n_free < needed:
                if self.running and self.pool.n_reclaimable(source) < needed:
                    return  # until others have finished
                self.pool.make_room(needed, source)
            self._unqueue(task)
            self.running.append(task)
            task.seq = self.pool.open(task.key, task.tokens, source)
            task.source, task.n_awaited = source, n

    def _match(self, task: Task) -> tuple[Sequence | None, int]:
        if task.all_rows:
            return None, 0
        limit = len(task.tokens) - 1  # the last one gives the logits
        return self.pool.best_source(task.key, task.tokens, limit, task.seq)

    def _is_ready(self, task: Task) -> bool:
        """Take the shared beginning if it is there; False while it is still being computed."""
        assert task.seq is not None
        while task.source is not None:
            source = task.source
            if source.n_computed >= task.n_awaited and source.id >= 0:
                self.pool.share(source, task.seq, task.n_awaited)
                task.source = None
            elif source.growing:
                return False
            else:
                task.source, task.n_awaited = self._match(task)
        if task.n_cached < 0:
            task.n_cached = task.n_awaited
        task.n_awaited = 0
        return True

    def _next_turn(self, ready: list[Task]) -> tuple[str, bool]:
        """What cannot be mixed takes turns: plans, and what wants to be alone."""
        turns = sorted({(t.key, t.alone) for t in ready})
        self._last_turn = next((turn for turn in turns if turn > self._last_turn), turns[0])
        return self._last_turn

    def _shares(self, tasks: list[Task]) -> list[tuple[Task, int]]:
        """(task, tokens) for one step: generating ones first, then prompts, shortest rest first."""
        out = [(t, 1) for t in tasks if t.n_left == 1]
        prefilling = sorted((t for t in tasks if t.n_left > 1), key=lambda t: (t.n_left, t.arrival))
        budget, rows = self.n_batch - len(out), self.n_rows
        for i, task in enumerate(prefilling):
            n = min(task.n_left, budget // (len(prefilling) - i))
            if task.all_rows:
                n = min(n, rows)
                rows -= n
            if n > 0:
                out.append((task, n))
                budget -= n
        return out

    def _make_room(self, n: int, task: Task) -> bool:
        """Cells for `n` tokens: drop cached sequences, then push out the latest arrivals, `task` itself at last."""
        while not self.pool.make_room(n):
            youngest = max(self.running, key=lambda t: t.arrival)
            assert youngest.seq is not None
            self.running.remove(youngest)
            self.pool.release(youngest.seq)
            youngest.seq = youngest.source = None
            self._queue_of(youngest).appendleft(youngest)  # of its group, those that wait came later
            self.n_waiting += 1
            self.n_preempted += 1
            if youngest is task:
                return False
        return True
