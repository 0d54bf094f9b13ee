"""The engine without HTTP: order, cancelling, limits, and how it ends."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLParserLimits

from ropebend.context import Batch, Context
from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.server.engine.engine import Engine
from ropebend.server.engine.events import Cancelled, Completed, Event, Failed, Finished, Piece
from ropebend.server.engine.loading import EngineOptions
from ropebend.server.engine.requests import Generation, QueueFull, Unavailable
from ropebend.server.engine.runner import Runner
from ropebend.server.engine.sampling import Sampler, Sampling
from ropebend.server.engine.writer import TextWriter
from ropebend.server.openai.answering import api_error
from ropebend.server.structured import check
from ropebend.server.structured.parts import Grammar, Json

from ..conftest import TOKEN, engine_options, wait_for

GREEDY = Sampling(temperature=0)
PROMPT = [3 + byte for byte in b"dog"]


def run(engine: Engine, *generations: Generation) -> list[Event]:
    """All events of one job."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(generations, events.put)
    out = [events.get(timeout=60)]
    while not isinstance(out[-1], Completed | Cancelled | Failed):
        out.append(events.get(timeout=60))
    return out


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, Piece) and e.index == index)


@pytest.fixture
def make_engine(models: dict[str, Path]) -> Iterator[Callable[..., Engine]]:
    """Loaded engines (n_threads=1), stopped afterwards."""
    made: list[Engine] = []

    def make(name: str = "plain", **options: Any) -> Engine:
        engine = Engine(engine_options(models[name], **options))
        made.append(engine)
        engine.start()
        wait_for(lambda: engine.facts or engine.failure)
        assert engine.failure is None
        return engine

    yield make
    for engine in made:
        assert engine.stop(60)


def test_events_of_a_job(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    events = run(engine, Generation(PROMPT, 3, GREEDY), Generation(PROMPT, 2, GREEDY))
    assert [e for e in events if not isinstance(e, Piece)] == [
        Finished(0, "length", 3),
        Finished(1, "length", 2, n_cached=2),
        Completed(),
    ]
    assert text_of(events, 0).startswith(text_of(events, 1))
    assert engine.stats.done == 1
    steps = engine.step_stats
    assert (steps.prompt_tokens, engine.stats.cached_tokens, steps.generated_tokens) == (4, 2, 5)


@pytest.mark.parametrize(
    ("text", "pieces", "offsets"),
    [
        ("a dog", ["<s>", " ", "a", " dog"], [0, 0, 0, 1, 5]),
        (" dog", ["<s>", " ", " dog"], [0, 0, 1, 4]),
        ("dog</s>é dog", ["<s>", " dog", "</s>", " ", "\xc3", "\xa9", " dog"], [0, 0, 3, 7, 7, 7, 8, 12]),
    ],
)
def test_an_echo_is_the_text_without_what_the_tokeniser_adds(
    make_engine: Callable[..., Engine], text: str, pieces: list[str], offsets: list[int]
) -> None:
    engine = make_engine("spm")
    events = run(engine, Generation(engine.tokenize(text), 1, GREEDY, n_logprobs=0, echo=True, text=text))
    assert text_of(events).startswith(text)
    entries = [t for e in events if isinstance(e, Piece) for t in e.tokens]
    assert [t.piece.decode("latin-1") for t in entries[:-1]] == pieces
    assert [t.offset for t in entries] == offsets  # the last is the generated token's


def test_a_long_echo_comes_in_parts_of_a_few_outputs(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropebend.server.engine.engine.MAX_ROW_FLOATS", 10 * len(TOKEN))
    rows: list[int] = []
    all_logits = Context.all_logits

    def counted(self: Context, n: int) -> Any:
        rows.append(n)
        return all_logits(self, n)

    monkeypatch.setattr(Context, "all_logits", counted)
    events = run(make_engine(), Generation([40] * 200, 0, GREEDY, n_logprobs=0, echo=True))
    (piece,) = (e for e in events if isinstance(e, Piece))
    assert len(piece.tokens) == 200
    assert rows == [10] * 20


def test_a_job_that_has_ended_is_in_the_sums(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    seen: queue.SimpleQueue[tuple[float, float]] = queue.SimpleQueue()

    def on_event(event: Event) -> None:
        if isinstance(event, Completed):
            seen.put((engine.step_stats.seconds, engine.step_stats.decode_seconds))

    engine.submit([Generation(PROMPT, 1, GREEDY)], on_event)
    seconds, decode_seconds = seen.get(timeout=60)
    assert seconds > decode_seconds > 0


def test_the_same_seed_gives_the_same_text(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    texts = [text_of(run(engine, Generation(PROMPT, 20, Sampling(seed=s)))) for s in (1, 1, 2, -1, 2**32 - 1)]
    assert texts[0] == texts[1] != texts[2]
    again = [text_of(run(engine, Generation(PROMPT, 20, Sampling(seed=s)))) for s in (-1, 2**32 - 1)]
    assert texts[3:] == again


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=1), Sampling(top_p=0.0), Sampling(min_p=1.0), Sampling(temperature=1e-30)]
)
def test_filters_at_their_limit_are_greedy(make_engine: Callable[..., Engine], sampling: Sampling) -> None:
    engine = make_engine()
    greedy = run(engine, Generation(PROMPT, 10, GREEDY))
    assert text_of(run(engine, Generation(PROMPT, 10, sampling))) == text_of(greedy)


def test_end_of_generation(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    events = run(engine, Generation(PROMPT, 5, replace(GREEDY, logit_bias={0: 100})))
    assert events == [Finished(0, "stop", 0), Completed()]


def test_a_job_is_counted_while_the_engine_takes_it_over(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.append(engine.n_open))
    begun, hold = threading.Event(), threading.Event()

    class Inbox(deque[Any]):
        def clear(self) -> None:
            super().clear()
            if not begun.is_set():
                reader.start()
                begun.set()
                reader.join(0.2)  # long enough for it to look, if it does not wait for the lock

    engine._inbox = Inbox()
    engine.submit([Generation(PROMPT, 1, GREEDY)], lambda _: hold.wait(60))
    assert begun.wait(60)
    reader.join(60)
    hold.set()
    assert seen == [1]


def test_cancelled_after_the_step_it_is_in(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    pieces, ended, started = [], threading.Event(), threading.Event()

    def on_event(event: Event) -> None:
        pieces.append(event)
        if isinstance(event, Piece):
            started.wait(60)
            job.cancel()
        else:
            ended.set()

    job = engine.submit([Generation(PROMPT, 200, GREEDY)], on_event)
    started.set()
    assert ended.wait(60)
    assert [type(e) for e in pieces] == [Piece, Cancelled]
    assert engine.stats.cancelled == 1
    assert text_of(run(engine, Generation(PROMPT, 3, GREEDY)))  # it goes on with the next


def test_cancelled_between_prefill_steps(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(n_batch=16, n_ubatch=16)
    steps, ended, started = [], threading.Event(), threading.Event()
    run_batch = Context.run

    def counted(self: Context, batch: Batch, n: int) -> None:
        started.wait(60)
        steps.append((n, int(batch.pos[0])))
        run_batch(self, batch, n)
        if len(steps) == 2:
            job.cancel()

    monkeypatch.setattr(Context, "run", counted)
    job = engine.submit([Generation([40] * 100, 100, GREEDY)], lambda _: ended.set())
    started.set()
    assert ended.wait(60)
    assert steps == [(16, 0), (16, 16)]


def test_queue_limit_and_cancelling_a_waiting_job(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(queue_size=2, n_slots=1)
    hold, log, ended, running = threading.Event(), [], threading.Event(), threading.Event()

    def job(name: str) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            if isinstance(event, Piece):
                running.set()
                hold.wait(60)
                return
            if isinstance(event, Completed | Cancelled):
                log.append((name, type(event)))
                if name == "c":
                    ended.set()

        return on_event

    one = [Generation(PROMPT, 1, GREEDY)]
    engine.submit(one, job("a"))
    assert running.wait(60)
    b = engine.submit(one, job("b"))
    engine.submit(one, job("c"))
    assert engine.n_open == 3
    with pytest.raises(QueueFull, match="2 requests are waiting already"):
        engine.submit(one, job("x"))
    b.cancel()
    b.cancel()  # once more does nothing
    hold.set()
    assert ended.wait(60)
    assert log == [("a", Completed), ("b", Cancelled), ("c", Completed)]


def test_a_failing_request_leaves_the_engine_alive(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def fail(*_: Any) -> None:
        raise RopebendError("llama_decode: failed with status -3")

    with monkeypatch.context() as m:
        m.setattr(Context, "run", fail)
        (event,) = run(engine, Generation(PROMPT, 3, GREEDY))
    assert isinstance(event, Failed)
    assert "status -3" in str(event.error)
    assert engine.stats.failed == 1
    assert text_of(run(engine, Generation(PROMPT, 3, GREEDY)))


def test_a_grammar_is_begun_and_an_echo_prepared_only_for_texts_that_run(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(n_slots=2)
    made, prepare = [], TextWriter._echo.func

    def counted(*args: Any) -> Sampler:
        made.append("sampler")
        return Sampler(*args)

    def echo(writer: TextWriter) -> bytes:
        made.append("echo")
        return prepare(writer)

    monkeypatch.setattr("ropebend.server.engine.writer.Sampler", counted)
    counted_echo = cached_property(echo)
    counted_echo.__set_name__(TextWriter, "_echo")
    monkeypatch.setattr(TextWriter, "_echo", counted_echo)
    events: queue.SimpleQueue[tuple[Event, int]] = queue.SimpleQueue()
    one = Generation(PROMPT, 2, Sampling(constraint=engine.compile(Grammar('root ::= "ab"'))), echo=True)
    engine.submit([one] * 8, lambda event: events.put((event, len(made))))
    got = [events.get(timeout=60)]
    while not isinstance(got[-1][0], Completed):
        got.append(events.get(timeout=60))
    assert [text_of([event for event, _ in got], i) for i in range(8)] == ["dogab"] * 8
    assert got[0][1] == 2  # a sampler and an echo at the first event
    assert got[-1][1] == 16


def test_what_exceeds_a_grammars_limits_while_it_is_written_is_the_requests_error(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    few = LLParserLimits(max_lexer_states=80, verbose_errors=False)
    monkeypatch.setattr(check, "limits", lambda: few)
    endless = engine.compile(Json({"type": "string", "pattern": "^(.*[a-m].{40}|.*[k-z].{40})$"}))
    *_, event = run(engine, Generation(PROMPT, 200, Sampling(seed=1, constraint=endless)))
    assert isinstance(event, Failed)
    error = api_error(event)
    assert error.status == 400
    assert "the grammar cannot be followed: lexer error: too many states" in str(error)
    assert text_of(run(engine, Generation(PROMPT, 3, GREEDY)))


def test_logits_that_are_not_numbers_are_an_error(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    run_batch = Context.run

    def poisoned(self: Context, batch: Batch, n: int) -> None:
        run_batch(self, batch, n)
        self.logits()[:] = float("nan")

    monkeypatch.setattr(Context, "run", poisoned)
    (event,) = run(engine, Generation(PROMPT, 3, GREEDY))
    assert isinstance(event, Failed)
    assert "not numbers" in str(event.error)


def test_a_crash_ends_every_job_and_is_reported(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    failed, hold = threading.Event(), threading.Event()
    engine = Engine(engine_options(models["plain"]), on_failure=failed.set)

    def crash(*_: Any) -> None:
        hold.wait(60)
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(Runner, "run", crash)
    engine.start()
    wait_for(lambda: engine.facts)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    for _ in range(2):
        engine.submit([Generation(PROMPT, 3)], events.put)
    hold.set()
    assert failed.wait(60)
    assert engine.failure == "the engine crashed: ZeroDivisionError: boom"
    assert all(isinstance(events.get(timeout=60), Failed) for _ in range(2))
    with pytest.raises(Unavailable):
        engine.submit([Generation(PROMPT, 3)], events.put)
    assert engine.stop(60)


def test_cut_ends_the_running_and_the_waiting(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    running, hold = threading.Event(), threading.Event()
    events: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()

    def on_event(event: Event) -> None:
        events.put(("a", event))
        running.set()
        hold.wait(60)

    engine.submit([Generation(PROMPT, 200, GREEDY)], on_event)
    engine.submit([Generation(PROMPT, 200, GREEDY)], lambda e: events.put(("b", e)))
    assert running.wait(60)
    engine.cut()
    hold.set()
    assert engine.stop(60)
    got = [events.get(timeout=60) for _ in range(3)]
    assert [(name, type(e)) for name, e in got] == [("a", Piece), ("a", Failed), ("b", Failed)]
    with pytest.raises(Unavailable, match="shutting down"):
        engine.submit([Generation(PROMPT, 1)], on_event)


def test_the_model_is_not_freed_under_a_caller(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    inside, hold, got = threading.Event(), threading.Event(), []
    tokenize = Model.tokenize

    def slow(self: Model, text: str, **more: bool) -> list[int]:
        inside.set()
        hold.wait(60)
        assert self.handle
        return tokenize(self, text, **more)

    monkeypatch.setattr(Model, "tokenize", slow)
    caller = threading.Thread(target=lambda: got.append(engine.tokenize("dog")))
    caller.start()
    assert inside.wait(60)
    assert not engine.stop(0.1)
    with pytest.raises(Unavailable, match="shutting down"):
        engine.tokenize("dog")
    hold.set()
    caller.join(60)
    assert got == [PROMPT]
    assert engine.stop(60)


def test_loading_a_file_that_is_no_model_fails_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"nothing")
    failed = threading.Event()
    engine = Engine(EngineOptions(path), on_failure=failed.set)
    engine.start()
    assert failed.wait(60)
    assert engine.failure is not None
    assert "not a GGUF file" in engine.failure
    with pytest.raises(Unavailable, match="not a GGUF file"):
        engine.submit([Generation([1], 1)], lambda _: None)
    with pytest.raises(Unavailable, match="not a GGUF file"):
        engine.tokenize("a")


@pytest.mark.parametrize("name", ["plain", "spm"])
def test_no_text_has_fewer_tokens_than_told_beforehand(make_engine: Callable[..., Engine], name: str) -> None:
    engine = make_engine(name)
    facts = engine.facts
    assert facts is not None
    assert facts.longest_piece == {"plain": len("<|assistant|>"), "spm": len("<0x00>")}[name]
    texts = ["", "a", "dog " * 50, "<|assistant|>" * 30, " " * 100, "é€😀" * 20, "<|assis", "the\n\n\n dog"]
    for text in texts:
        n = len(engine.tokenize(text, add_special=False))
        assert facts.fewest_tokens(text) <= n
        assert replace(facts, drops_blanks=True).fewest_tokens(text) <= facts.fewest_tokens(text)
        assert replace(facts, longest_piece=0).fewest_tokens(text) == 0
    assert facts.fewest_tokens("<|assistant|>" * 30) == (30 if name == "plain" else 65)
