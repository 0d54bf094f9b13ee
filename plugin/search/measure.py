"""Scores of candidates on a task's first items: measured once, logged item by item, and read back on resume."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from ropebend.errors import RopebendError
from ropebend.evaluate import Row
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import RopeMethod
from ropebend.search.objective import Objective
from ropebend.search.space import Candidate, Key
from ropebend.search.worker import Done, Executor, Job


class MemoKey(NamedTuple):
    """What was measured: a candidate (None: the unscaled model) on a task, full or not.

    method  the extension method underneath, None: the one that the measurer began with
    """

    candidate: Key | None
    task: int
    full: bool
    method: str | None = None


@dataclass(frozen=True)
class Logged:
    """A line of the log.

    elapsed  seconds of the run when it was written, all resumes together; None in logs of the first release
    """

    key: MemoKey
    item: int
    done: Done
    elapsed: float | None


class Measurer:
    """Measures through an executor and never measures the same thing twice.

    base     gives method and architecture; its scales are replaced by the candidate's
    log      append-only JSON lines, one an item, flushed; items that it holds already are taken from there
    started  when the run began, on time.monotonic's clock
    """

    def __init__(
        self, objective: Objective, base: LayerScaling, executor: Executor, log: Path | None = None,
        started: float | None = None,
    ):  # fmt: skip
        self.objective, self.base, self.executor = objective, base, executor
        self._first_method = base.rope.method
        self.n_tokens = 0  # prompt tokens computed for what was asked so far, now or when the log was written
        self.n_measured = 0  # items measured now
        self.lengths: dict[int, int] = {}  # tokens that a sequence of each task may reach
        self.easy: dict[int, float | None] = {}  # share of each task's easy questions that are answered right
        self.chat = False  # whether prompts stand in the model's chat template, as far as was measured now
        self._started = time.monotonic() if started is None else started
        self._before = 0.0  # seconds of the run before this resume
        self._replayed = 0.0  # what the clock showed at the last item taken from the log
        self._memo: defaultdict[MemoKey, dict[int, Row]] = defaultdict(dict)
        self._costs: defaultdict[tuple[int, bool], list[tuple[int, float]]] = defaultdict(list)
        self._logged: dict[tuple[MemoKey, int], Logged] = {}  # until it is asked for
        self._log: IO[str] | None = None
        if log is not None:
            self._read(log)
            try:
                self._log = open(log, "a", encoding="utf-8")  # noqa: SIM115
            except OSError as e:
                raise RopebendError(f"{log}: cannot write: {e.strerror}") from None

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    @property
    def seconds(self) -> float:
        """What the run has taken, all its resumes together; while it is read back from the log, what it had taken then,
        so that a budget in time is shared out as it was."""
        if self._before and not self.n_measured:
            return self._replayed
        return self.spent

    @property
    def spent(self) -> float:
        """What the run has taken until now, all its resumes together."""
        return self._before + time.monotonic() - self._started

    def cost(self, task: int, *, full: bool = False) -> tuple[float, float]:
        """Prompt tokens and seconds of one item of a task, full or not, the mean of those measured (not the first one
        where there are more: it warms up); 0, 0 before the first one."""
        known = self._costs[task, full]
        known = known[1:] or known
        if not known:
            return 0.0, 0.0
        return sum(n for n, _ in known) / len(known), sum(s for _, s in known) / len(known)

    def use_method(self, method: str, n_ctx_train: int) -> None:
        """Measure on this extension method from now on."""
        self.base = replace(self.base, rope=RopeMethod(method)).with_original_context(n_ctx_train)

    def scaling(self, candidate: Candidate) -> LayerScaling:
        """What a candidate is on this model."""
        rope = replace(self.base.rope, factor=candidate.factor)
        return replace(
            self.base, layer_scale=candidate.scales, layer_attn_factor=candidate.attn or (), rope=rope,
            control_points=candidate.control_points,
        )  # fmt: skip

    def rows(
        self,
        candidates: Sequence[Candidate | None],
        tasks: Sequence[int],
        items: Sequence[int],
        *,
        full: bool = False,
        on_item: Callable[[], None] | None = None,
    ) -> list[list[list[Row]]]:
        """Rows per candidate (None: unscaled), task and item.

        on_item is called after each item.  If interrupted, the items that were done are kept.
        """
        jobs: dict[tuple[MemoKey, int], Job] = {}  # what is asked for twice is done once
        for candidate in candidates:
            for task in tasks:
                key = self._key(candidate, task, full)
                scaling = self.scaling(candidate) if candidate is not None and key.candidate is not None else None
                for i in items:
                    if (key, i) in self._logged:  # at its price in tokens, so that a budget of them ends a resumed
                        self._take_logged(self._logged.pop((key, i)))  # run where it ends any other
                        if on_item is not None:
                            on_item()
                    elif i not in self._memo[key]:
                        jobs[key, i] = Job(scaling, task, i, full)
        order = list(jobs)
        for number, done in self.executor.run(list(jobs.values())):
            key, i = order[number]
            self.n_measured += 1
            self._write(key, i, done)
            self._take(key, i, done)
            if on_item is not None:
                on_item()
        return [[[self._memo[self._key(c, t, full)][i] for i in items] for t in tasks] for c in candidates]

    def scores(
        self, candidates: Sequence[Candidate], items: Sequence[int], on_item: Callable[[], None] | None = None
    ) -> list[float]:
        """Scores on these items; comparable with others on the same ones only."""
        tasks = range(len(self.objective.terms))
        unscaled: list[list[Row]] = [[] for _ in tasks]
        if self.objective.needs_unscaled:
            (unscaled,) = self.rows([None], tasks, items, on_item=on_item)
        return [self.objective.score(r, unscaled) for r in self.rows(candidates, tasks, items, on_item=on_item)]

    def known(self, task: int, *, full: bool = False) -> list[Row]:
        """What is known of the unscaled model on a task's first items, or on those that it was measured on in full."""
        return [row for _, row in sorted(self._memo[MemoKey(None, task, full)].items())]

    def n_missing(self, candidate: Candidate | None, items: Sequence[int]) -> int:
        """Of these items (of all tasks) those that the score still needs."""
        tasks = range(len(self.objective.terms))
        known = (self._memo[self._key(candidate, t, False)] for t in tasks)
        return sum(i not in rows for rows in known for i in items)

    def _key(self, candidate: Candidate | None, task: int, full: bool) -> MemoKey:
        if candidate is None or (
            self.base.rope.method == "none" and set(candidate.scales) == {1.0} and candidate.attn is None
        ):
            return MemoKey(None, task, full)  # scale 1 is the unscaled model
        method = self.base.rope.method
        return MemoKey(candidate.key, task, full, method if method != self._first_method else None)

    def _take_logged(self, logged: Logged) -> None:
        self._take(logged.key, logged.item, logged.done)
        self._replayed = max(self._replayed, logged.elapsed or 0.0)

    def _take(self, key: MemoKey, item: int, done: Done) -> None:
        self._memo[key][item] = done.row
        self._costs[key.task, key.full].append((done.n_tokens, done.seconds))
        self.n_tokens += done.n_tokens
        self.lengths[key.task] = done.length
        self.easy[key.task] = done.easy
        self.chat |= done.chat

    # ---- the log

    def _write(self, key: MemoKey, item: int, done: Done) -> None:
        if self._log is None:
            return
        candidate, task, full, method = key
        scales, factor, attn = candidate if candidate is not None else (None, None, None)
        line: dict[str, Any] = {
            "scales": scales, "factor": factor, "attn": attn, "task": task, "full": full, "item": item,
            "value": done.row.value, "logprob": done.row.logprob, "tokens": done.n_tokens, "length": done.length,
            "seconds": round(done.seconds, 4), "elapsed": round(self.seconds, 3),
        }  # fmt: skip
        if method is not None:
            line["method"] = method
        try:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        except OSError as e:
            raise RopebendError(f"{self._log.name}: cannot write: {e.strerror}") from None

    def _read(self, log: Path) -> None:
        """Take over what a log holds; a last line that a kill cut off is cut away."""
        if not log.exists():
            return
        for logged in read_log(log):
            self._logged[logged.key, logged.item] = logged
            self._before = max(self._before, logged.elapsed or 0.0)
        data = log.read_bytes()
        if not data.endswith(b"\n"):
            with open(log, "r+b") as f:
                f.truncate(data.rfind(b"\n") + 1)


def read_log(log: Path) -> Iterator[Logged]:
    """The measurements in a log, item by item; a torn last line is left out.

    Raises RopebendError naming the line that is not a measurement.
    """
    try:
        data = log.read_bytes()
    except OSError as e:
        raise RopebendError(f"{log}: {e.strerror}") from None
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].decode(errors="replace").splitlines(), 1):
        try:
            yield from _parse(json.loads(line))
        except (ValueError, KeyError, TypeError) as e:
            raise RopebendError(f"{log}: line {number}: not a measurement ({type(e).__name__}: {e})") from None


def _parse(line: dict[str, Any]) -> list[Logged]:
    key: Key | None = None
    if line["scales"] is not None:
        attn = line.get("attn")
        key = tuple(map(float, line["scales"])), float(line["factor"]), tuple(map(float, attn)) if attn else None
    memo_key = MemoKey(key, int(line["task"]), bool(line["full"]), line.get("method"))
    if "start" in line:  # the first release wrote several items a line, without their time
        items = zip(line["value"], line["logprob"], line["tokens"], strict=True)
        return [
            Logged(memo_key, i, Done(Row(tuple(v), tuple(p)), int(n), 0.0, int(line["length"])), None)
            for i, (v, p, n) in enumerate(items, int(line["start"]))
        ]
    row = Row(tuple(line["value"]), tuple(line["logprob"]))
    done = Done(row, int(line["tokens"]), float(line["seconds"]), int(line["length"]))
    return [Logged(memo_key, int(line["item"]), done, float(line["elapsed"]))]
