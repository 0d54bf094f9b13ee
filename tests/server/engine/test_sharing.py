"""Continuous batching on a real model: what is shared, and that it changes no answer."""

from __future__ import annotations

import queue
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from architecture_models import write_model as write_architecture
from random_models import write_llama

from ropebend.context import Context
from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import RopeMethod
from ropebend.server.engine.engine import Engine
from ropebend.server.engine.events import Completed, Embedding, Event, Failed, Finished, Piece
from ropebend.server.engine.outputs import Outputs
from ropebend.server.engine.requests import Embed, Generation, Submission
from ropebend.server.engine.sampling import Sampling
from ropebend.server.engine.writer import EmbeddingWriter, TextWriter

from ..conftest import SCALES, write_model
from ..exactness import Reference, assert_nearly_all_equal, assert_same
from .conftest import Answers

GREEDY = Sampling(temperature=0)
DOCUMENT = [3 + b for b in b"the dog and the sun said to play with a big little tree on happy days " * 2]
QUESTIONS = [[*DOCUMENT, *(3 + b for b in f"Q{i}:".encode())] for i in range(8)]
N_NEW = 12


@pytest.mark.parametrize("flash_attn", [False, True])
def test_one_document_is_computed_once_and_the_answers_are_those_of_each_alone(
    load: Callable[..., Answers], models: dict[str, Path], flash_attn: bool
) -> None:
    path = models["plain"]
    a = load(path, n_ctx=512, n_batch=64, flash_attn=flash_attn)
    requests = [Generation(p, N_NEW, GREEDY) for p in QUESTIONS]
    texts, finishes = a.ask(requests)
    reference = Reference(path, None, flash_attn)
    assert_same(texts, reference, QUESTIONS, N_NEW)
    own = a.engine.step_stats.prompt_tokens - len(DOCUMENT)
    assert own <= sum(len(p) - len(DOCUMENT) for p in QUESTIONS)
    assert sum(f.n_cached for f in finishes) + a.engine.step_stats.prompt_tokens == sum(map(len, QUESTIONS))
    again, finishes = a.ask(requests[-1:])  # from the cache: the last to end, beside few others
    assert_same(again, reference, QUESTIONS[-1:], N_NEW)
    assert finishes[0].n_cached == len(QUESTIONS[-1]) - 1


def test_n_at_once_are_n_in_turn_and_seeds_do_not_depend_on_the_load(
    load: Callable[..., Answers], models: dict[str, Path]
) -> None:
    exact = {"flash_attn": False, "type_k": "f32", "type_v": "f32"}
    a = load(models["plain"], n_ctx=256, n_cells=2048, **exact)
    requests = [Generation(p, N_NEW, Sampling(seed=i, top_k=5)) for i, p in enumerate(QUESTIONS)]
    together, _ = a.ask(requests)
    assert_nearly_all_equal([a.ask([r])[0][0] for r in requests], together)
    a.engine.scheduler.pool.clear_cached()
    assert_nearly_all_equal([a.ask([r])[0][0] for r in requests], together)


def test_pushed_out_requests_give_the_same_answers(load: Callable[..., Answers], models: dict[str, Path]) -> None:
    a = load(models["plain"], n_ctx=256, n_slots=4, flash_attn=False, type_k="f32", type_v="f32")
    requests = [Generation([40 + i, 41], 150, Sampling(seed=i, logit_bias={0: -100})) for i in range(4)]
    together, finishes = a.ask(requests)
    assert a.engine.scheduler.n_preempted > 0
    assert [f.n_tokens for f in finishes] == [150] * 4
    assert_nearly_all_equal([a.ask([r])[0][0] for r in requests], together)


def test_scaled_and_base_run_side_by_side_on_the_same_weights(
    load: Callable[..., Answers], models: dict[str, Path]
) -> None:
    path = models["scaled"]
    a = load(path, flash_attn=False)
    prompts = [p for p in QUESTIONS[:4] for _ in range(2)]
    texts, finishes = a.ask([Generation(p, N_NEW, GREEDY, scaled=i % 2 == 0) for i, p in enumerate(prompts)])
    assert_same(texts[::2], Reference(path, LayerScaling(SCALES, "llama"), False), prompts[::2], N_NEW)
    assert_same(texts[1::2], Reference(path, None, False), prompts[1::2], N_NEW)
    assert texts[::2] != texts[1::2]
    # the document was computed once for each plan
    assert sum(f.n_cached == 0 for f in finishes) == 2


@pytest.fixture
def no_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the models of `architecture_models`."""
    monkeypatch.setattr(Model, "piece", lambda *_, **__: b"x")
    monkeypatch.setattr(Model, "is_eog", lambda *_: False)


@pytest.mark.usefixtures("no_vocabulary")
def test_a_recurrent_model_has_states_for_its_slots_and_as_many_ended_texts(
    load: Callable[..., Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    make = Context.__init__

    def recorded(self: Context, model: Model, *, n_seq_max: int, **more: Any) -> None:
        asked.append(n_seq_max)
        make(self, model, n_seq_max=n_seq_max, **more)

    monkeypatch.setattr(Context, "__init__", recorded)
    a = load(write_architecture(tmp_path / "mamba.gguf", "mamba"), n_slots=2)
    assert asked == [4]
    texts, finishes = a.ask([Generation([5, 6, 7], n, GREEDY) for n in range(1, 6)])
    assert texts == ["x" * n for n in range(1, 6)]
    assert {f.n_cached for f in finishes} <= {0, 2}  # 2: those that were computed at once


@pytest.mark.usefixtures("no_vocabulary")
def test_a_window_that_was_given_away_is_not_shared(load: Callable[..., Answers], tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "gemma2.gguf", "gemma2")  # a window of 32 tokens
    rng = np.random.default_rng(0)

    def tokens(n: int) -> list[int]:
        return [int(t) for t in rng.integers(1, 60, n)]

    document = tokens(600)
    a = load(path, n_ctx=1024, cache_ram=0, flash_attn=False, type_k="f32", type_v="f32")
    # llama.cpp puts later texts where the beginning of the document was
    for prompt in (tokens(250), document, *(tokens(200) for _ in range(6))):
        a.ask([Generation(prompt, 5, GREEDY)])
    prompt = [*document[:100], 7]
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    a.engine.submit([Generation(prompt, 1, GREEDY, n_logprobs=0)], events.put)
    piece, finish = events.get(timeout=60), events.get(timeout=60)
    assert isinstance(piece, Piece)
    with Model(path) as model, Context(model, n_ctx=1024, n_threads=1, type_k="f32", type_v="f32") as context:
        context.decode(prompt, 0)
        logits = context.logits().astype(np.float64)
    expected = logits.max() - np.log(np.exp(logits).sum())
    assert piece.tokens[0].logprob == pytest.approx(expected, abs=1e-3)
    assert finish == Finished(0, "length", 1, n_cached=0)


def test_dynamic_ntk_takes_the_bucket_of_what_a_request_may_reach(load: Callable[..., Answers], tmp_path: Path) -> None:
    scaling = LayerScaling(SCALES, "llama", RopeMethod("dynamic-ntk", 2.0, 256))
    path = write_model(tmp_path / "ntk.gguf", scaling)
    a = load(path, n_ctx=1024, n_cells=4096, flash_attn=False)
    prompt = QUESTIONS[0]
    lengths = [N_NEW, 300, 301, 800]  # within the trained 256; two in one bucket; another bucket
    texts, finishes = a.ask([Generation(prompt, n, GREEDY) for n in lengths])
    assert [f.n_cached > 0 for f in finishes] == [False, False, True, False]
    keys = {scaling.plan(len(prompt) + n).hash for n in lengths}
    assert len(keys) == 3
    assert keys <= set(a.engine._plans.by_key)  # type: ignore[union-attr]
    for text, n in zip(texts, lengths, strict=True):
        length = len(prompt) + n
        with Model(path) as model, Context(model, n_ctx=1024, n_threads=1, scaling=None) as context:
            context.set_scaling(scaling, length)
            context.decode(prompt, 0)
            assert text.startswith(model.detokenize([int(context.logits().argmax())]))


def test_embeddings_are_the_mean_of_the_hidden_states_whatever_runs_beside(
    load: Callable[..., Answers], models: dict[str, Path]
) -> None:
    a = load(models["plain"], n_ctx=512, n_batch=32, flash_attn=False, type_k="f32", type_v="f32")
    vectors: dict[str, tuple[float, ...]] = {}
    done = threading.Semaphore(0)

    def listen(name: str) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            assert not isinstance(event, Failed)
            if isinstance(event, Embedding):
                vectors[name] = event.vector
            elif isinstance(event, Completed):
                done.release()

        return on_event

    a.engine.submit([Generation(QUESTIONS[1], 60, GREEDY)], listen("text"))
    a.engine.submit([Embed(QUESTIONS[0])], listen("mean"))
    a.engine.submit([Embed(QUESTIONS[0], "last")], listen("last"))
    a.engine.submit([Embed(QUESTIONS[0], "cls")], listen("cls"))
    for _ in range(4):
        assert done.acquire(timeout=60)
    text = bytes(t - 3 for t in QUESTIONS[0]).decode()
    for name, kind in (
        ("mean", llama_cpp.LLAMA_POOLING_TYPE_MEAN),
        ("cls", llama_cpp.LLAMA_POOLING_TYPE_CLS),
        ("last", llama_cpp.LLAMA_POOLING_TYPE_LAST),
    ):
        llama = llama_cpp.Llama(
            str(models["plain"]), embedding=True, pooling_type=kind, n_ctx=512, n_threads=1, type_k=0, type_v=0,
            verbose=False,
        )  # fmt: skip
        try:
            theirs = np.array(llama.embed(text, normalize=True))
        finally:
            llama.close()
        ours = np.array(_embed(a.engine, a.engine.tokenize(text), name))
        assert np.dot(ours, ours) == pytest.approx(1)
        assert np.dot(theirs, ours) == pytest.approx(1, abs=1e-4)
        assert np.dot(vectors[name], _embed(a.engine, QUESTIONS[0], name)) == pytest.approx(1, abs=1e-6)


def test_embeddings_of_a_file_that_carries_a_pooling_type(load: Callable[..., Answers], tmp_path: Path) -> None:
    kinds = {
        "mean": {},
        "last": {"llama.pooling_type": int(llama_cpp.LLAMA_POOLING_TYPE_LAST)},
        "cls": {"llama.pooling_type": int(llama_cpp.LLAMA_POOLING_TYPE_CLS)},
    }
    vectors = []
    for name, fields in kinds.items():
        a = load(write_llama(tmp_path / f"{name}.gguf", fields=fields))
        vectors.append(_embed(a.engine, [5, 6, 7], "mean"))
        assert a.engine.facts is not None
        assert a.engine.facts.pooling == name
        other = "last" if name == "cls" else "cls"
        overruled = load(tmp_path / f"{name}.gguf", pooling=other)
        assert overruled.engine.facts is not None
        assert overruled.engine.facts.pooling == other
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)
    assert vectors[1] == pytest.approx(vectors[0], abs=1e-6)


def test_what_is_computed_twice_is_told_once(models: dict[str, Path]) -> None:
    events: list[Event] = []
    prompt = QUESTIONS[0][:10]
    tokens = array("i", prompt)
    rng = np.random.default_rng(1)
    submission = Submission([], events.append, True, lambda: None)

    def outputs(start: int, rows: Any, is_last: bool) -> Outputs:
        return Outputs(tokens, start, is_last, rows, lambda: rows, None, len(rows) - 1)

    with Model(models["plain"]) as model:
        rows = rng.normal(size=(10, model.n_vocab)).astype(np.float32)
        writer = TextWriter(submission, 0, Generation(prompt, 0, GREEDY, n_logprobs=1, echo=True), model)
        assert writer.deliver(outputs(0, rows[:4], False))
        assert writer.deliver(outputs(0, rows[:5], False))  # it was pushed out and begins again
        assert not writer.deliver(outputs(5, rows[5:], True))
    (piece,) = events
    assert isinstance(piece, Piece)
    assert piece.text == "".join(chr(t - 3) for t in prompt)
    assert [t.offset for t in piece.tokens] == list(range(10))
    embedding = EmbeddingWriter(submission, 0, Embed(prompt), 3)
    states = rng.normal(size=(10, 3)).astype(np.float32)
    assert embedding.deliver(outputs(0, states[:4], False))
    assert not embedding.deliver(outputs(0, states, True))
    assert isinstance(events[-1], Embedding)
    mean = states.mean(0) / np.linalg.norm(states.mean(0))
    assert events[-1].vector == pytest.approx(mean, abs=1e-6)
    with pytest.raises(RopebendError, match="make no vector"):
        embedding.deliver(outputs(0, np.zeros((10, 3), np.float32), True))


def _embed(engine: Engine, tokens: list[int], pooling: Any) -> tuple[float, ...]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit([Embed(tokens, pooling)], events.put)
    event = events.get(timeout=60)
    assert isinstance(event, Embedding)
    while not isinstance(events.get(timeout=60), Completed):
        pass
    return event.vector
