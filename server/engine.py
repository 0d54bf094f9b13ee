"""The engine: one thread that owns the model and works through a queue of jobs.  It knows no HTTP.

A job is a list of generations run one after another.  The caller's `on_event` is called in the engine's thread with
`Piece` and `Finish` for each generation and, last, exactly one of `Done`, `Cancelled` or `Failed` for the job.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import llama_cpp
import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend import __version__
from ropebend.errors import RopebendError
from ropebend.model import Context, Model, scaling_for
from ropebend.model_info import ModelInfo
from ropebend.scaling import LayerScaling
from ropebend.server.sampling import Sampler, Sampling
from ropebend.server.text import TextStream

log = logging.getLogger("ropebend.server")


class Unavailable(RopebendError):
    """The engine takes no job now: still loading, stopping, or stopped."""


class QueueFull(Unavailable):
    """As many jobs are waiting as the queue holds."""


# ---- what goes in


@dataclass(frozen=True)
class EngineOptions:
    """What to load and how to run it; sizes in tokens.

    alias         model id to answer to; None: the file's general.name or its stem
    n_ctx         0: the context the scales were tested at if the file says so, else the trained one
    n_batch       tokens of a prefill step, after which a cancelled job stops
    n_threads     0: every core this process may use
    n_gpu_layers  -1: all
    factors       scales to use instead of those in the file
    no_scaling    run unscaled
    queue_size    jobs that may wait while one runs
    """

    model: Path
    alias: str | None = None
    n_ctx: int = 0
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int = 0
    n_gpu_layers: int = 0
    flash_attn: bool = False
    type_k: str = "f16"
    type_v: str = "f16"
    factors: Path | None = None
    no_scaling: bool = False
    queue_size: int = 64


@dataclass(frozen=True)
class Generation:
    """One text to generate.  len(prompt) >= 1 and len(prompt) + max_tokens <= n_ctx.

    n_logprobs  None: no log-probabilities; else how many of the likeliest tokens to report at each place
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    n_logprobs: int | None = None


# ---- what comes out


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token and its natural log-probability under the plain distribution (temperature 1, no filters).

    piece   its bytes (of a control token its name)
    offset  characters of the generated text before it
    top     bytes and log-probability of the likeliest tokens, best first
    """

    piece: bytes
    logprob: float
    offset: int
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Piece:
    """More text of generation `index`, whole characters only."""

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finish:
    """Generation `index` ended.  n_tokens: tokens generated, without the one that ended it."""

    index: int
    reason: Literal["stop", "length"]
    n_tokens: int


@dataclass(frozen=True)
class Done:
    """Every generation of the job finished."""


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled by its caller."""


@dataclass(frozen=True)
class Failed:
    """The job ended early; the error's text is meant for the user."""

    error: RopebendError


Event = Piece | Finish | Done | Cancelled | Failed


@dataclass(frozen=True)
class Facts:
    """What the loaded model and context are; tokens unless said otherwise.

    created     time of loading, seconds since 1970
    bos, eos    text of the special tokens, "" if there is none
    scaling     the scales in effect, or None
    plan_hash   digest of the plan in effect, or None
    """

    id: str
    created: int
    path: str
    architecture: str
    n_params: int
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    chat_template: str | None
    bos: str
    eos: str
    scaling: LayerScaling | None
    plan_hash: str | None
    build: str


@dataclass
class Stats:
    """Counters since the start: jobs by their end, and tokens."""

    done: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(eq=False)  # two jobs are never the same job
class Job:
    """A submitted list of generations."""

    generations: Sequence[Generation]
    on_event: Callable[[Event], None]
    _engine: Engine = field(repr=False)
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop within one decode step; nothing happens if the job has ended.  Any thread may call this."""
        self._engine._cancel(self)


class _CancelledError(Exception):
    """Unwinds the engine's stack when a job was cancelled."""


class Engine:
    """Loads a model in its own thread and runs jobs one at a time, first come first served.

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
        self._lock = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._stopping = False
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
    def n_queued(self) -> int:
        """Jobs waiting."""
        return len(self._queue)

    @property
    def n_running(self) -> int:
        """Jobs being worked on: 0 or 1."""
        return int(self._running is not None)

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Tokens of `text`, control tokens recognised; add_special: BOS and EOS as the model wants them."""
        if self._model is None:
            raise Unavailable("the model is not loaded")
        return self._model.tokenize(text, add_special=add_special, parse_special=True)

    def submit(self, generations: Sequence[Generation], on_event: Callable[[Event], None]) -> Job:
        """Queue a job.  Raises QueueFull, or Unavailable if the engine is loading, stopping or stopped."""
        job = Job(generations, on_event, self)
        with self._lock:
            if self._facts is None or self._stopping:
                default = "the server is shutting down" if self._stopping else "the model is not loaded"
                raise Unavailable(self.failure or default)
            if self.n_queued + self.n_running > self.options.queue_size:
                raise QueueFull(f"{self.n_queued} requests are waiting already, the queue holds no more")
            self._queue.append(job)
            self._lock.notify()
        return job

    def cut(self) -> None:
        """End every job with `Failed` and take no more; the thread ends after the decode it is in."""
        with self._lock:
            self._stopping = True
            waiting = list(self._queue)
            self._queue.clear()
            self._lock.notify()
        for job in waiting:
            self._end(job, Failed(Unavailable("the server is shutting down")))

    def stop(self, timeout: float) -> bool:
        """`cut`, then wait up to `timeout` seconds for the thread; True if it has ended."""
        self.cut()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _cancel(self, job: Job) -> None:
        with self._lock:
            job.cancelled = True
            if job not in self._queue:
                return  # running: the thread sees the flag; ended: nothing to do
            self._queue.remove(job)
        self._end(job, Cancelled())

    def _end(self, job: Job, event: Done | Cancelled | Failed) -> None:
        with self._lock:  # ends come from several threads
            if isinstance(event, Done):
                self.stats.done += 1
            elif isinstance(event, Cancelled):
                self.stats.cancelled += 1
            else:
                self.stats.failed += 1
        job.on_event(event)

    # ---- the thread's side

    def _main(self) -> None:
        try:
            self._facts = self._load()
            log.info("ready")
            self._work()
        except RopebendError as e:
            self.failure = str(e)
        except Exception as e:
            log.debug("the engine crashed", exc_info=True)
            self.failure = f"the engine crashed: {type(e).__name__}: {e}"
        finally:
            running = self._running
            self.cut()
            if running is not None:
                self._end(running, Failed(RopebendError(self.failure or "the engine ended")))
            if self._context is not None:
                self._context.close()
            if self._model is not None:
                self._model.close()
            if self.failure is not None:
                self._on_failure()

    def _load(self) -> Facts:
        o = self.options
        if o.n_gpu_layers != 0 and not lib.llama_supports_gpu_offload():
            log.warning("this build of llama.cpp has no GPU support: --n-gpu-layers has no effect")
        self._model = model = Model(o.model, n_gpu_layers=o.n_gpu_layers)
        info = model.info
        if lib.llama_model_has_encoder(model.handle):
            raise RopebendError(f"{info.path}: {info.architecture} has an encoder; only decoder-only models are served")
        scaling = None if o.no_scaling else scaling_for(info, o.factors)
        n_ctx, why = choose_n_ctx(o.n_ctx, info, scaling)
        self._context = context = Context(
            model,
            n_ctx=n_ctx,
            n_batch=o.n_batch,
            n_ubatch=o.n_ubatch,
            n_threads=o.n_threads,
            flash_attn=o.flash_attn,
            type_k=o.type_k,
            type_v=o.type_v,
            scaling=scaling,
        )
        facts = Facts(
            id=o.alias or info.name,
            created=int(time.time()),
            path=info.path,
            architecture=info.architecture,
            n_params=int(lib.llama_model_n_params(model.handle)),
            n_vocab=model.n_vocab,
            n_ctx=n_ctx,
            n_ctx_train=info.n_ctx_train,
            chat_template=model.chat_template,
            bos=_special(model, model.bos_token),
            eos=_special(model, model.eos_token),
            scaling=context.scaling,
            plan_hash=context.plan.hash if context.plan is not None else None,
            build=f"ropebend {__version__}, llama-cpp-python {llama_cpp.__version__}",
        )
        size = f"{info.n_layer} layers, {facts.n_params:,} parameters"
        log.info("model %s: %s, %s", facts.id, info.architecture, size)
        log.info("layer scales: %s", describe_scaling(scaling, o, info))
        log.info("context: %s", describe_context(n_ctx, why, info, scaling))
        return facts

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._stopping:
                    self._lock.wait()
                if self._stopping:
                    return
                job = self._running = self._queue.popleft()
            end: Done | Cancelled | Failed = Done()
            try:
                for index, generation in enumerate(job.generations):
                    self._generate(job, index, generation)
            except _CancelledError:
                end = Cancelled()
                log.info("cancelled")
            except RopebendError as e:
                end = Failed(e)
                log.error("request failed: %s", e)
            # First free the place, then tell: who sees the end may submit the next job.
            self._running = None
            self._end(job, end)

    def _check(self, job: Job) -> None:
        if job.cancelled:
            raise _CancelledError
        if self._stopping:
            raise Unavailable("the server is shutting down")

    def _generate(self, job: Job, index: int, g: Generation) -> None:
        context, model = self._context, self._model
        assert context is not None
        assert model is not None
        started = time.monotonic()
        context.clear()
        for start in range(0, len(g.prompt), context.n_batch):
            self._check(job)
            context.decode(g.prompt[start : start + context.n_batch], start)
        self.stats.prompt_tokens += len(g.prompt)
        prefilled = time.monotonic()

        text = TextStream(g.stop)
        untold: deque[TokenLogprob] = deque()  # tokens whose text is held back

        def tell(piece: str, everything: bool = False) -> None:
            tokens = []
            while untold and (everything or untold[0].offset < text.n_sent):
                tokens.append(untold.popleft())
            if piece or tokens:
                job.on_event(Piece(index, piece, tuple(tokens)))

        n, token = 0, -1
        reason: Literal["stop", "length"] = "stop"
        sampler = Sampler(g.sampling, model.n_vocab, context.n_ctx)
        try:
            while True:
                self._check(job)
                if n > 0:
                    context.decode([token], len(g.prompt) + n - 1)
                token = sampler.sample(context.handle)
                logits = context.logits()
                if math.isnan(logits[token]):
                    raise RopebendError("the model computed logits that are not numbers")
                if model.is_eog(token):
                    break
                n += 1
                self.stats.generated_tokens += 1
                if g.n_logprobs is not None:
                    untold.append(_token_logprob(model, token, logits, g.n_logprobs, text.n_decoded))
                tell(text.feed(model.piece(token)))
                if text.stopped:
                    break
                if n == g.max_tokens:
                    reason = "length"
                    break
        finally:
            sampler.close()
        rest = text.feed(b"", final=True)
        # Tokens of a stop string have no text in the answer, so they have no place in its log-probabilities.
        tell(rest, everything=not text.stopped)
        job.on_event(Finish(index, reason, n))
        log.info(
            "%d prompt tokens in %.2f s, %d generated in %.2f s (%s)",
            len(g.prompt), prefilled - started, n, time.monotonic() - prefilled, reason,
        )  # fmt: skip


def _special(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode(errors="replace") if token >= 0 else ""


def _token_logprob(model: Model, token: int, logits: npt.NDArray[np.float32], n_top: int, offset: int) -> TokenLogprob:
    x = logits.astype(np.float64)
    x -= x.max()
    x -= math.log(np.exp(x).sum())
    x = np.maximum(x, -9999.0)  # OpenAI's number for what JSON cannot say: minus infinity
    # stable: of equal logits the lower token id comes first, as in greedy sampling
    best = np.argsort(-x, kind="stable")[:n_top]
    top = tuple((model.piece(int(t), special=True), float(x[t])) for t in best)
    return TokenLogprob(model.piece(token, special=True), float(x[token]), offset, top)


def choose_n_ctx(asked: int, info: ModelInfo, scaling: LayerScaling | None) -> tuple[int, str]:
    """Context size in tokens, and why: `asked` if given, else what the scales were tested at, else the trained one."""
    if asked:
        return asked, "as asked"
    tested = scaling.provenance.get("n_ctx") if scaling is not None else None
    if type(tested) is int and tested > 0:
        return tested, "what the scales were tested at"
    return info.n_ctx_train, "what the model was trained at"


def describe_scaling(scaling: LayerScaling | None, o: EngineOptions, info: ModelInfo) -> str:
    """One line for the log: which scales are in effect and where they come from."""
    if scaling is None:
        off = o.no_scaling and info.scaling is not None
        return "off (--no-scaling), although the file carries some" if off else "none"
    low, high = min(scaling.layer_scale), max(scaling.layer_scale)
    rope = scaling.rope
    method = f", times {rope.method} {rope.factor:g}" if rope.method != "none" else ""
    return f"{low:g} to {high:g}{method}, from {o.factors or 'the model file'}"


def describe_context(n_ctx: int, why: str, info: ModelInfo, scaling: LayerScaling | None) -> str:
    """One line for the log: the size, why, and plainly whether it goes beyond the training."""
    line = f"{n_ctx} tokens ({why})"
    if n_ctx <= info.n_ctx_train:
        return line
    help_ = "the layer scales stretch it" if scaling is not None else "nothing stretches it, expect worse answers there"
    return f"{line}, {n_ctx / info.n_ctx_train:.3g} times the {info.n_ctx_train} the model was trained at: {help_}"
