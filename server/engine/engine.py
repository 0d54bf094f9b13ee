"""The engine: one thread that owns the model and works on all jobs at once.  It knows no HTTP.

A job is a list of requests.  The caller's `on_event` is called in the engine's thread with `Piece` (or `Embedding`)
and `Finish` for each request and, last, exactly one of `Done`, `Cancelled` or `Failed` for the job.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ropebend.context import Context
from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.plan import Plan
from ropebend.server.engine.jobs import Cancelled, Done, Event, Failed, Generation, Job, QueueFull, Request, Unavailable
from ropebend.server.engine.kv_pool import KVPool
from ropebend.server.engine.loading import EngineOptions, Facts, load_context, load_model
from ropebend.server.engine.runner import Runner, StepStats
from ropebend.server.engine.sampling import check_grammar
from ropebend.server.engine.scheduler import Scheduler, Step, Task
from ropebend.server.engine.writer import EmbeddingWriter, TextWriter, Writer

log = logging.getLogger("ropebend.server")

#: Outputs of one step, in floats: an echo's or embedding's logits come in parts, whatever the prompt's length.
MAX_ROW_FLOATS = 2**22


@dataclass
class Stats:
    """Counters since the start: jobs by their end, and prompt tokens taken from the cache."""

    done: int = 0
    cancelled: int = 0
    failed: int = 0
    cached_tokens: int = 0


class _Plans:
    """The plans in use, by key: "" is unscaled; dynamic-ntk has one for each bucket of lengths."""

    def __init__(self, facts: Facts):
        self._facts = facts
        self.by_key: dict[str, Plan | None] = {"": None}

    def key(self, scaled: bool, length: int) -> str:
        """The key of a request that may reach `length` tokens."""
        plan = self._facts.plan(scaled, length)
        if plan is None:
            return ""
        self.by_key.setdefault(plan.hash, plan)
        return plan.hash


class Engine:
    """Loads a model in its own thread and runs jobs, many at once.

    on_failure is called in that thread when loading failed or the thread crashed; `failure` then says why.
    Everything but `start` may be called from any thread.
    """

    def __init__(self, options: EngineOptions, on_failure: Callable[[], None] = lambda: None):
        self.options = options
        self.stats = Stats()
        self.failure: str | None = None
        self._on_failure = on_failure
        self._facts: Facts | None = None
        self._model: Model | None = None
        self._context: Context | None = None
        self._scheduler: Scheduler | None = None
        self._runner: Runner | None = None
        self._plans: _Plans | None = None
        self._lock = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._open: dict[Job, list[Task]] = {}
        self._attention = False  # a job was cancelled
        self._stopping = False
        self._n_users = 0  # callers inside the model
        # daemon: a long decode must not keep a stopped process alive
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # ---- the caller's side

    def start(self) -> None:
        """Begin loading; returns at once."""
        self._thread.start()

    @property
    def facts(self) -> Facts | None:
        """None until the model is loaded."""
        return self._facts

    @property
    def n_open(self) -> int:
        """Jobs that have not ended."""
        with self._lock:  # a job is in neither while the engine takes it over
            return len(self._inbox) + len(self._open)

    @property
    def step_stats(self) -> StepStats:
        """Where tokens and time went."""
        return self._runner.stats if self._runner is not None else StepStats()

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, to look at: its slots and its pool change while the engine's thread runs."""
        if self._scheduler is None:
            raise Unavailable("the model is not loaded")
        return self._scheduler

    def _check_open(self) -> None:
        if self._facts is None or self._stopping:
            default = "the server is shutting down" if self._stopping else "the model is not loaded"
            raise Unavailable(self.failure or default)

    @contextmanager
    def _using_model(self) -> Iterator[Model]:
        """The model, for its vocabulary; `stop` does not free it meanwhile."""
        with self._lock:
            self._check_open()
            self._n_users += 1
            model = self._model
        try:
            assert model is not None
            yield model
        finally:
            with self._lock:
                self._n_users -= 1
                self._lock.notify_all()

    # These four raise Unavailable if the engine is loading, stopping or stopped.

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of `text`; add_special: BOS and EOS as the model wants them; parse_special: control tokens in it."""
        with self._using_model() as model:
            return model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Text of tokens; special: with the names of control tokens."""
        with self._using_model() as model:
            return model.detokenize(tokens, special=special)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        with self._using_model() as model:
            return [model.piece(t, special=True) for t in tokens]

    def check_grammar(self, grammar: str) -> None:
        """Raise RopebendError unless llama.cpp can read this GBNF."""
        with self._using_model() as model:
            check_grammar(grammar, model.vocab)

    def submit(self, requests: Sequence[Request], on_event: Callable[[Event], None], *, stream: bool = True) -> Job:
        """Start a job.  Raises QueueFull, or Unavailable if the engine is loading, stopping or stopped."""
        job = Job(requests, on_event, stream, self._notice)
        with self._lock:
            self._check_open()
            n_waiting = self.n_open - self.options.n_slots
            if n_waiting >= self.options.queue_size:
                raise QueueFull(f"{max(n_waiting, 0)} requests are waiting already, the queue holds no more")
            self._inbox.append(job)
            self._lock.notify()
        return job

    def cut(self) -> None:
        """End every job with `Failed` and take no more; the thread ends after the decode it is in."""
        with self._lock:
            self._stopping = True
            self._lock.notify()

    def stop(self, timeout: float) -> bool:
        """`cut`, then wait up to `timeout` seconds for the thread and as long for callers inside the model.

        True if all have ended: then the model is freed.
        """
        self.cut()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        with self._lock:
            if not self._lock.wait_for(lambda: self._n_users == 0, timeout):
                return False
        if self._context is not None:
            self._context.close()
        if self._model is not None:
            self._model.close()
        return True

    def _notice(self) -> None:
        with self._lock:
            self._attention = True
            self._lock.notify()

    # ---- the thread's side

    def _main(self) -> None:
        end: RopebendError = Unavailable("the server is shutting down")
        try:
            self._load()
            log.info("ready")
            self._work()
        except RopebendError as e:
            self.failure = str(e)
        except Exception as e:
            log.debug("the engine crashed", exc_info=True)
            self.failure = f"the engine crashed: {type(e).__name__}: {e}"
        finally:
            self.cut()
            if self.failure is not None:
                end = RopebendError(self.failure)
            for job in (*self._open, *self._inbox):
                self._end(job, Failed(end))
            if self.failure is not None:
                self._on_failure()

    def _load(self) -> None:
        o = self.options
        self._model = load_model(o)
        self._context, facts = load_context(self._model, o)
        n_rows = max(1, min(self._context.n_batch, MAX_ROW_FLOATS // facts.n_vocab))
        pool = KVPool(self._context, facts.n_cells, facts.n_seqs, sharing=facts.shares_prefixes)
        self._scheduler = Scheduler(pool, facts.n_slots, self._context.n_batch, n_rows)
        self._plans = _Plans(facts)
        self._runner = Runner(self._context, self._plans.by_key)
        self._facts = facts

    def _work(self) -> None:
        scheduler = self.scheduler
        while True:
            with self._lock:
                while not (self._inbox or self._attention or self._stopping or scheduler.busy):
                    self._lock.wait()
                if self._stopping:
                    return
                new = list(self._inbox)
                self._inbox.clear()
                self._open.update((job, []) for job in new)
                look, self._attention = self._attention, False
            for job in new:
                self._begin(job)
            if look:
                for job in [j for j in self._open if j.cancelled]:
                    log.info("cancelled")
                    self._abandon(job, Cancelled())
            started = time.perf_counter()
            step = scheduler.next_step()
            if step is not None:
                self._run(step, started)

    def _begin(self, job: Job) -> None:
        assert self._plans is not None
        for index, r in enumerate(job.requests):
            writer = self._writer(job, index, r)
            key = self._plans.key(r.scaled, r.n_max)
            task = Task(job, key, array("i", r.prompt), r.n_max, writer.all_rows, writer.wants_embeddings, writer)
            self._open[job].append(task)
            self.scheduler.add(task)

    def _writer(self, job: Job, index: int, request: Request) -> Writer:
        if isinstance(request, Generation):
            assert self._model is not None
            return TextWriter(job, index, request, self._model)
        assert self._facts is not None
        return EmbeddingWriter(job, index, request, self._facts.n_embd)

    def _run(self, step: Step, started: float) -> None:
        assert self._runner is not None
        try:
            ended, failed = self._runner.run(step)
        except RopebendError as e:
            one_of_each_job = {c.task.group: c.task for c in step.chunks}
            ended, failed = [], [(task, e) for task in one_of_each_job.values()]
        # before anybody hears of an end: whoever does finds its time in the sums
        self.step_stats.seconds += time.perf_counter() - started
        for task in ended:
            self._finish(task)
        for task, error in failed:
            log.error("request failed: %s", error)
            self._abandon(task.group, Failed(error))

    def _finish(self, task: Task) -> None:
        job: Job = task.group
        if task not in self._open.get(job, ()):
            return  # another request of the job failed in the same step
        writer: Writer = task.owner
        self.scheduler.finish(task)
        writer.close()
        n_cached = max(task.n_cached, 0)
        self.stats.cached_tokens += n_cached
        ending = writer.ending(n_cached)
        job.on_event(ending)
        log.info(
            "%d prompt tokens (%d of them cached), %d generated in %.2f s (%s)",
            len(writer.request.prompt), n_cached, ending.n_tokens, time.monotonic() - writer.started, ending.reason,
        )  # fmt: skip
        self._open[job].remove(task)
        if not self._open[job]:
            self._end(job, Done())

    def _abandon(self, job: Job, event: Cancelled | Failed) -> None:
        """End a job early.  What was computed stays cached, unless it may be what failed."""
        if job not in self._open:
            return
        for task in self._open[job]:
            if isinstance(event, Failed):
                self.scheduler.discard(task)
            else:
                self.scheduler.finish(task)
            task.owner.close()
        self._end(job, event)

    def _end(self, job: Job, event: Done | Cancelled | Failed) -> None:
        with self._lock:
            self._open.pop(job, None)
        if isinstance(event, Done):
            self.stats.done += 1
        elif isinstance(event, Cancelled):
            self.stats.cancelled += 1
        else:
            self.stats.failed += 1
        job.on_event(event)
