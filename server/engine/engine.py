"""The engine: one thread that owns the model and works on all submissions at once.  It knows no HTTP.

A submission is a list of requests.  The caller's `on_event` is called in the engine's thread with `Piece` (or
`Embedding`) and `Finished` for each request and, last, exactly one of `Completed`, `Cancelled` or `Failed`.

The thread's work is a loop of `Engine.step`: schedule, run, deliver.
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
from ropebend.scaling.plan import Plan
from ropebend.server.engine.events import Cancelled, Completed, Ending, Event, Failed, Slot
from ropebend.server.engine.loading import EngineOptions, Facts, load_context, load_model, make_pool
from ropebend.server.engine.requests import Generation, QueueFull, Request, Submission, Unavailable
from ropebend.server.engine.runner import Runner, StepStats
from ropebend.server.engine.scheduler import Entry, Scheduler
from ropebend.server.engine.writer import EmbeddingWriter, TextWriter, Writer
from ropebend.server.structured.constraints import Compiler, Constraint
from ropebend.server.structured.parts import Grammar, GrammarError, Part
from ropebend.server.structured.tokens import tokenizer_of

log = logging.getLogger("ropebend.server")

#: Outputs of one step, in floats: an echo's or embedding's logits come in parts, whatever the prompt's length.
MAX_ROW_FLOATS = 2**22


@dataclass
class Stats:
    """Counters since the start: submissions by their end, and prompt tokens taken from the cache."""

    done: int = 0
    cancelled: int = 0
    failed: int = 0
    cached_tokens: int = 0


class _Plans:
    """The plans in use, by key: "" is unscaled; one for each of the plans by length, and of dynamic-ntk's buckets."""

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
    """Loads a model in its own thread and runs submissions, many at once.

    on_loaded is called in that thread before the first request; a RopebendError of it is a failure to load.
    on_failure is called in it when loading failed or the thread crashed; `failure` then says why.
    Everything but `start` may be called from any thread.
    """

    def __init__(
        self,
        options: EngineOptions,
        on_failure: Callable[[], None] = lambda: None,
        on_loaded: Callable[[Facts], None] = lambda facts: None,
    ):
        self.options = options
        self.stats = Stats()
        self.failure: str | None = None
        self._on_failure = on_failure
        self._on_loaded = on_loaded
        self._facts: Facts | None = None
        self._model: Model | None = None
        self._context: Context | None = None
        self._scheduler: Scheduler | None = None
        self._runner: Runner | None = None
        self._plans: _Plans | None = None
        self._compiler: Compiler | None = None
        self._lock = threading.Condition()
        self._inbox: deque[Submission] = deque()
        self._open: dict[Submission, set[Entry]] = {}
        self._writers: dict[Entry, Writer] = {}  # of every open entry
        self._attention = False  # a submission was cancelled
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
        """Submissions that have not ended."""
        with self._lock:  # a submission is in neither while the engine takes it over
            return len(self._inbox) + len(self._open)

    @property
    def step_stats(self) -> StepStats:
        """Where tokens and time went."""
        return self._runner.stats if self._runner is not None else StepStats()

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, to look at: its slots and its pool change while the engine's thread runs.

        Raises Unavailable if the model is not loaded.
        """
        if self._scheduler is None:
            raise Unavailable("the model is not loaded")
        return self._scheduler

    def slots(self) -> list[Slot]:
        """What is being computed now.  Raises Unavailable if the model is not loaded."""
        return [
            Slot(
                entry.arrival,
                len(writer.request.prompt),
                seq.n_computed,
                writer.n_generated,
                max(entry.n_cached, 0),
                entry.key,
            )
            for entry in list(self.scheduler.running)
            if (seq := entry.seq) is not None and (writer := self._writers.get(entry)) is not None
        ]

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

    # These five raise Unavailable if the engine is loading, stopping or stopped.

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of `text`; add_special: BOS and EOS as the model wants them; parse_special: control tokens in it.

        Raises TextError for a text that cannot be tokenised.
        """
        with self._using_model() as model:
            if add_special and parse_special and model.adds_bos and self._facts is not None:
                text = text.removeprefix(self._facts.bos)  # a second one harms the answer
            return model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Text of tokens; special: with the names of control tokens."""
        with self._using_model() as model:
            return model.detokenize(tokens, special=special)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        with self._using_model() as model:
            return [model.piece(t, special=True) for t in tokens]

    def compile(self, part: Part | Grammar) -> Constraint:
        """What a text must follow, for its `Sampling`.  GrammarError, with the reason, if it cannot be used."""
        with self._using_model():
            if self._compiler is None:
                raise GrammarError("this model's file has no vocabulary that a text could be held to")
            return self._compiler.compile(part)

    def submit(
        self, requests: Sequence[Request], on_event: Callable[[Event], None], *, stream: bool = True
    ) -> Submission:
        """Start computing; on_event is called in the engine's thread.  stream: see `Submission`.

        Raises QueueFull, or Unavailable if the engine is loading, stopping or stopped.
        """
        submission = Submission(requests, on_event, stream, self._notice)
        with self._lock:
            self._check_open()
            n_waiting = self.n_open - self.options.n_slots
            if n_waiting >= self.options.queue_size:
                raise QueueFull(f"{max(n_waiting, 0)} requests are waiting already, the queue holds no more")
            self._inbox.append(submission)
            self._lock.notify()
        return submission

    def cut(self) -> None:
        """End every submission with `Failed` and take no more; the thread ends after the decode it is in."""
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
        if self._compiler is not None:
            self._compiler.close()
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
            for submission in (*self._open, *self._inbox):
                self._end(submission, Failed(end))
            if self.failure is not None:
                self._on_failure()

    def _load(self) -> None:
        o = self.options
        self._model = load_model(o)
        tokenizer = tokenizer_of(self._model.vocab)
        self._compiler = None if tokenizer is None else Compiler(tokenizer)
        self._context, facts = load_context(self._model, o)
        n_rows = max(1, min(self._context.n_batch, MAX_ROW_FLOATS // facts.n_vocab))
        self._scheduler = Scheduler(make_pool(self._context, facts, o), facts.n_slots, self._context.n_batch, n_rows)
        self._plans = _Plans(facts)
        self._runner = Runner(self._context, self._plans.by_key)
        self._on_loaded(facts)
        self._facts = facts

    def _work(self) -> None:
        while self._take():
            self.step()

    def _take(self) -> bool:
        """Wait for something to do and take over what was submitted or cancelled; False: stop."""
        with self._lock:
            while not (self._inbox or self._attention or self._stopping or self.scheduler.busy):
                self._lock.wait()
            if self._stopping:
                return False
            new = list(self._inbox)
            self._inbox.clear()
            self._open.update((submission, set()) for submission in new)
            look, self._attention = self._attention, False
        for submission in new:
            self._begin(submission)
        if look:
            for submission in [s for s in self._open if s.cancelled]:
                log.info("cancelled")
                self._abandon(submission, Cancelled())
        return True

    def step(self) -> None:
        """One step of all that is open: decide what to compute, compute it, tell who asked for it."""
        assert self._runner is not None
        started = time.perf_counter()
        step = self.scheduler.next_step()
        if step is None:
            return
        ended: list[Entry] = []
        prompts = [
            (c, w)
            for c in step.chunks
            if c.entry.owner.n_generated == 0 and (w := self._writers.get(c.entry)) is not None
        ]
        for chunk, w in prompts:
            w.begin(max(chunk.entry.n_cached, 0))
        try:
            outputs = self._runner.run(step)
        except RopebendError as e:
            failed = [(chunk.entry, e) for chunk in step.chunks]
        else:
            for chunk, w in prompts:
                w.reached(chunk.start + chunk.n)
            ended, failed = self._runner.deliver(outputs)
        # before anybody hears of an end: whoever does finds its time in the sums
        self.step_stats.seconds += time.perf_counter() - started
        for entry in ended:
            if (writer := self._writers.get(entry)) is not None:
                self._finish(entry, writer)
        for entry, error in failed:
            if (
                writer := self._writers.get(entry)
            ) is not None:  # else another one has failed for all of its submission
                log.error("request failed: %s", error)
                self._abandon(writer.submission, Failed(error))

    def _begin(self, submission: Submission) -> None:
        assert self._plans is not None
        for index, r in enumerate(submission.requests):
            w = self._writer(submission, index, r)
            key = self._plans.key(r.scaled, r.n_max)
            entry = Entry(submission, key, array("i", r.prompt), r.n_max, w, w.all_rows, w.wants_embeddings)
            self._open[submission].add(entry)
            self._writers[entry] = w
            self.scheduler.add(entry)

    def _writer(self, submission: Submission, index: int, request: Request) -> Writer:
        if isinstance(request, Generation):
            assert self._model is not None
            return TextWriter(submission, index, request, self._model)
        assert self._facts is not None
        return EmbeddingWriter(submission, index, request, self._facts.n_embd)

    def _finish(self, entry: Entry, writer: Writer) -> None:
        submission = writer.submission
        self._forget(entry)
        self.scheduler.finish(entry)
        n_cached = max(entry.n_cached, 0)
        self.stats.cached_tokens += n_cached
        ending = writer.ending(n_cached)
        submission.on_event(ending)
        log.info(
            "%d prompt tokens (%d of them cached), %d generated in %.2f s (%s)",
            len(writer.request.prompt), n_cached, ending.n_tokens, time.monotonic() - writer.started, ending.reason,
        )  # fmt: skip
        self._open[submission].remove(entry)
        if not self._open[submission]:
            self._end(submission, Completed())

    def _abandon(self, submission: Submission, event: Cancelled | Failed) -> None:
        """End a submission early.  What was computed stays cached, unless it may be what failed."""
        for entry in self._open[submission]:
            if isinstance(event, Failed):
                self.scheduler.discard(entry)
            else:
                self.scheduler.finish(entry)
            self._forget(entry)
        self._end(submission, event)

    def _forget(self, entry: Entry) -> None:
        self._writers.pop(entry).close()

    def _end(self, submission: Submission, event: Ending) -> None:
        with self._lock:
            self._open.pop(submission, None)
        if isinstance(event, Completed):
            self.stats.done += 1
        elif isinstance(event, Cancelled):
            self.stats.cancelled += 1
        else:
            self.stats.failed += 1
        submission.on_event(event)
