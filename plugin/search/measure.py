"""Scores of candidates on a task's first items: measured once, logged, and read back from the log on resume."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ropebend.errors import RopebendError
from ropebend.evaluate import Row
from ropebend.scaling import LayerScaling
from ropebend.search.objective import Objective
from ropebend.search.space import Candidate, Key
from ropebend.search.worker import Done, Executor, Job

CHUNK = 8  # items per job at most, so that workers share what is left at the end

#: Key of the candidate (None: unscaled), number of the task, full or not.
MemoKey = tuple[Key | None, int, bool]


class Measurer:
    """Measures through an executor and never measures the same thing twice.

    base  gives method and architecture; its scales are replaced by the candidate's
    log   append-only JSON lines, flushed after each job; items that it holds already are taken from there
    """

    def __init__(self, objective: Objective, base: LayerScaling, executor: Executor, log: Path | None = None):
        self.objective, self.base, self.executor = objective, base, executor
        self.n_tokens = 0  # prompt tokens computed for what was asked so far, now or when the log was written
        self.n_measured = 0  # items measured now
        self.lengths: dict[int, int] = {}  # tokens that a sequence of each task may reach
        self._memo: defaultdict[MemoKey, dict[int, Row]] = defaultdict(dict)
        self._logged: dict[tuple[MemoKey, int], Done] = {}  # one item each, until it is asked for
        self._log: IO[str] | None = None
        if log is not None:
            self._read(log)
            self._log = open(log, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def scaling(self, candidate: Candidate) -> LayerScaling:
        """What a candidate is on this model."""
        rope = replace(self.base.rope, factor=candidate.factor)
        return replace(self.base, layer_scale=candidate.scales, rope=rope, control_points=candidate.control_points)

    def rows(
        self,
        candidates: Sequence[Candidate | None],
        tasks: Sequence[int],
        items: range,
        *,
        full: bool = False,
        on_item: Callable[[int], None] | None = None,
    ) -> list[list[list[Row]]]:
        """Rows per candidate (None: unscaled), task and item.

        on_item is called with the number of items of each job done.  If interrupted, what was done is kept.
        """
        jobs: dict[tuple[MemoKey, int], Job] = {}  # by key and first item: what is asked for twice is done once
        for candidate in candidates:
            scaling = self.scaling(candidate) if candidate is not None else None
            for task in tasks:
                key = self._key(candidate, task, full)
                for i in items:
                    if (key, i) in self._logged:  # at its price in tokens, so that a budget of them ends a resumed
                        self._take(key, i, self._logged.pop((key, i)), on_item)  # run where it ends any other
                for start, stop in _runs([i for i in items if i not in self._memo[key]]):
                    jobs[key, start] = Job(scaling, task, start, stop, full)
        order = list(jobs)
        for number, done in self.executor.run(list(jobs.values())):
            key, start = order[number]
            self.n_measured += len(done.rows)
            self._write(key, start, done)
            self._take(key, start, done, on_item)
        return [[[self._memo[self._key(c, t, full)][i] for i in items] for t in tasks] for c in candidates]

    def scores(
        self, candidates: Sequence[Candidate], n_items: int, on_item: Callable[[int], None] | None = None
    ) -> list[float]:
        """Scores on the first n_items; comparable with others at the same n_items only."""
        tasks = range(len(self.objective.terms))
        (unscaled,) = self.rows([None], tasks, range(n_items))
        return [
            self.objective.score(r, unscaled) for r in self.rows(candidates, tasks, range(n_items), on_item=on_item)
        ]

    def is_known(self, candidate: Candidate, n_items: int) -> bool:
        """True if the score on the first n_items needs no measurement."""
        tasks = range(len(self.objective.terms))
        return all(i in self._memo[self._key(candidate, t, False)] for t in tasks for i in range(n_items))

    @staticmethod
    def _key(candidate: Candidate | None, task: int, full: bool) -> MemoKey:
        return (candidate.key if candidate is not None else None), task, full

    def _take(self, key: MemoKey, start: int, done: Done, on_item: Callable[[int], None] | None) -> None:
        self._memo[key].update(enumerate(done.rows, start))
        self.n_tokens += sum(done.n_tokens)
        self.lengths[key[1]] = done.length
        if on_item is not None:
            on_item(len(done.rows))

    # ---- the log

    def _write(self, key: MemoKey, start: int, done: Done) -> None:
        if self._log is None:
            return
        candidate, task, full = key
        scales, factor = candidate if candidate is not None else (None, None)
        line = {
            "scales": scales, "factor": factor, "task": task, "full": full, "start": start,
            "value": [r.value for r in done.rows], "logprob": [r.logprob for r in done.rows],
            "tokens": done.n_tokens, "length": done.length,
        }  # fmt: skip
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def _read(self, log: Path) -> None:
        """Take over what a log holds; a last line that a kill cut off is cut away."""
        if not log.exists():
            return
        for key, start, done in read_log(log):
            for i, (row, n) in enumerate(zip(done.rows, done.n_tokens, strict=True), start):
                self._logged[key, i] = Done((row,), (n,), done.length)
        data = log.read_bytes()
        if not data.endswith(b"\n"):
            with open(log, "r+b") as f:
                f.truncate(data.rfind(b"\n") + 1)


def read_log(log: Path) -> Iterator[tuple[MemoKey, int, Done]]:
    """The measurements in a log, each with its key and first item; a torn last line is left out.

    Raises RopebendError naming the line that is not a measurement.
    """
    data = log.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].decode().splitlines(), 1):
        try:
            yield _parse(json.loads(line))
        except (ValueError, KeyError, TypeError) as e:
            raise RopebendError(f"{log}: line {number}: not a measurement ({type(e).__name__}: {e})") from None


def _parse(line: dict[str, Any]) -> tuple[MemoKey, int, Done]:
    key: Key | None = None
    if line["scales"] is not None:
        key = tuple(float(s) for s in line["scales"]), float(line["factor"])
    rows = tuple(Row(tuple(v), tuple(p)) for v, p in zip(line["value"], line["logprob"], strict=True))
    done = Done(rows, tuple(map(int, line["tokens"])), int(line["length"]))
    return (key, int(line["task"]), bool(line["full"])), int(line["start"]), done


def _runs(items: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive items as [start, stop) of at most CHUNK."""
    out: list[tuple[int, int]] = []
    for i in items:
        if out and out[-1][1] == i and i - out[-1][0] < CHUNK:
            out[-1] = (out[-1][0], i + 1)
        else:
            out.append((i, i + 1))
    return out
