"""Models with a sliding window or a recurrent state go on where a text was, and no answer changes by it."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_models
from architecture_models import write_model

from ropebend.context import Context
from ropebend.model import Model
from ropebend.scaling import LayerScaling
from ropebend.scaling.source import ScaleSource
from ropebend.server.engine import memory
from ropebend.server.engine.checkpoints import BEFORE_THE_END
from ropebend.server.engine.engine import Engine
from ropebend.server.engine.events import Completed, Event, Failed, Finished, Piece
from ropebend.server.engine.kv_pool import Keeps
from ropebend.server.engine.requests import Generation
from ropebend.server.engine.sampling import Sampling

from ..exactness import EPSILON, Reference, margin

GREEDY = Sampling(temperature=0, logit_bias={0: -100})  # token 0 ends a text
EXACT = {"flash_attn": False, "type_k": "f32", "type_v": "f32"}
KEEPS = {"gemma3": Keeps.WINDOW, "llama4": Keeps.WINDOW, "falcon-h1": Keeps.END, "granitehybrid": Keeps.END}
KEEPS |= {"mamba": Keeps.END}
N_CTX = 1024


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: write_model(folder / f"{name}.gguf", name, vocabulary=True) for name in KEEPS}


class Asker:
    """Asks an engine one thing after another."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def ask(self, prompt: list[int], n: int = 8, scaled: bool = True) -> tuple[float, Finished]:
        """The log-probability of the first token, and the end."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        generation = Generation(prompt, n, GREEDY, n_logprobs=0, scaled=scaled)
        self.engine.submit([generation], events.put)
        logprobs, finished = [], None
        while not isinstance(event := events.get(timeout=60), Completed):
            assert not isinstance(event, Failed), event
            if isinstance(event, Piece):
                logprobs += [t.logprob for t in event.tokens]
            elif isinstance(event, Finished):
                finished = event
        assert finished is not None
        assert logprobs[0] is not None
        return logprobs[0], finished

    @property
    def last(self) -> list[int]:
        """The tokens that are cached of the last text."""
        return list(next(reversed(self.engine.scheduler.pool.cached.values())).tokens)

    @property
    def n_computed(self) -> int:
        return self.engine.step_stats.prompt_tokens


@pytest.fixture
def load(started: Callable[..., Engine]) -> Callable[..., Asker]:
    return lambda path, **options: Asker(started(path, **options))


def written(path: Path, prompt: list[int], n: int, scaling: LayerScaling | None = None) -> list[Any]:
    """`n` times a token, its log-probability and margin: as GREEDY in a context that computes nothing else."""
    out = []
    with (
        Model(path) as model,
        Context(model, n_ctx=N_CTX, n_threads=1, type_k="f32", type_v="f32", scaling=scaling) as context,
    ):
        context.decode(prompt, 0)
        for i in range(n):
            logits = context.logits().astype(np.float64)
            token = 1 + int(logits[1:].argmax())
            logprob = logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            out.append((token, logprob, margin(logits[1:])))
            if i < n - 1:
                context.decode([token], len(prompt) + i)
    return out


def fresh(path: Path, prompt: list[int], scaling: LayerScaling | None = None) -> float:
    """The log-probability of the first one."""
    return float(written(path, prompt, 1, scaling)[0][1])


def tokens(n: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(1, 250, n)]


DOCUMENT = tokens(300, 0)  # ended texts of less than 256 tokens do not stay long
CELLS = 1100


def document_out_of_its_window(a: Asker) -> None:
    """Let the document be cached, but llama.cpp have given away what left its window.  `a` has CELLS cells."""
    a.ask(tokens(300, 1), 5)
    a.ask(DOCUMENT, 61)
    a.ask(tokens(640, 2), 5)  # in the place of the first one, and beyond
    pool = a.engine.scheduler.pool
    (document,) = (s for s in pool.cached.values() if s.tokens[0] == DOCUMENT[0])
    assert document.n_computed == 360
    if a.engine.facts.keeps is Keeps.WINDOW:  # type: ignore[union-attr]
        assert pool._memory.first_position(document.id) > len(DOCUMENT)


@pytest.mark.parametrize("architecture", KEEPS)
def test_each_turn_of_a_chat_computes_only_what_is_new(
    load: Callable[..., Asker], paths: dict[str, Path], architecture: str
) -> None:
    path = paths[architecture]
    a = load(path, n_ctx=N_CTX, cache_ram=0, **EXACT)
    assert a.engine.facts is not None
    assert a.engine.facts.keeps is KEEPS[architecture]
    prompt, before, close = tokens(50, 0), 0, 0
    for turn in range(10):
        _, finished = a.ask(prompt, 8)
        new = 50 if turn == 0 else 21  # the last token of an answer was chosen but not computed
        assert (finished.n_cached, a.n_computed - before) == (len(prompt) - new, new)
        before = a.n_computed
        answer = a.last[len(prompt) :]
        expected, _, margins = zip(*written(path, prompt, 7), strict=True)
        if answer != list(expected):
            n = next(i for i in range(7) if answer[i] != expected[i])
            assert margins[n] < EPSILON[False], (turn, n, margins[n])
            close += 1
        prompt = [*a.last, *tokens(21, turn + 1)]
    assert close <= 2  # the rule is an exception


@pytest.mark.parametrize("architecture", sorted({*KEEPS} - {"llama4"}))  # llama.cpp gives that one a window of 8,192
def test_a_checkpoint_gives_the_state_that_was_saved(
    load: Callable[..., Asker], paths: dict[str, Path], architecture: str
) -> None:
    path = paths[architecture]
    a = load(path, n_ctx=CELLS, **EXACT)
    document_out_of_its_window(a)
    pool = a.engine.scheduler.pool
    for i, beginning in enumerate((DOCUMENT, DOCUMENT, DOCUMENT[:270])):
        prompt = [*beginning, *tokens(9, 20 + i)]
        logprob, finished = a.ask(prompt, 30)
        assert logprob == pytest.approx(fresh(path, prompt), abs=1e-3)
        # where the second one branches from the first is known by then, where the third one does is not
        assert finished.n_cached == (len(DOCUMENT) - BEFORE_THE_END, len(DOCUMENT), 0)[i], i
    assert pool.checkpoints.n_restored >= 1


@pytest.mark.parametrize("architecture", ["gemma3", "falcon-h1"])
def test_scaled_and_unscaled_texts_share_no_state(
    load: Callable[..., Asker], paths: dict[str, Path], tmp_path: Path, architecture: str
) -> None:
    path = paths[architecture]
    with Model(path) as model:
        scaling = LayerScaling([1.5 + 0.1 * i for i in range(model.info.n_layer)], architecture)
    factors = tmp_path / "factors.json"
    factors.write_text(json.dumps(list(scaling.layer_scale)))
    a = load(path, n_ctx=N_CTX, scales=ScaleSource(factors=factors), **EXACT)
    found = []
    for turn in range(3):
        for scaled in (True, False):
            prompt = [*DOCUMENT, *tokens(9, turn)]
            logprob, finished = a.ask(prompt, 30, scaled)
            assert logprob == pytest.approx(fresh(path, prompt, scaling if scaled else None), abs=1e-3)
            found.append(finished.n_cached)
    assert found[:2] == [0, 0]
    assert found[4:] == [len(DOCUMENT)] * 2


def test_a_model_whose_states_llama_cpp_does_not_restore_computes_everything(
    load: Callable[..., Asker],
    paths: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory.ContextMemory, "load", lambda *_: False)
    a = load(paths["gemma3"], n_ctx=N_CTX)
    assert "does not restore states of gemma3" in caplog.text
    for _ in range(2):
        assert a.ask(tokens(100, 0))[1].n_cached == 0
    assert not a.engine.scheduler.pool.cached


@pytest.mark.parametrize("architecture", ["gemma3", "granitehybrid"])
def test_a_state_that_cannot_be_restored_is_computed_again(
    load: Callable[..., Asker], paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    path = paths[architecture]
    a = load(path, n_ctx=CELLS, **EXACT)
    document_out_of_its_window(a)
    monkeypatch.setattr(memory.ContextMemory, "load", lambda *_: False)
    prompt = [*DOCUMENT, 5]
    logprob, finished = a.ask(prompt)
    assert finished.n_cached == 0
    assert logprob == pytest.approx(fresh(path, prompt), abs=1e-3)


def test_ten_turns_with_gemma(load: Callable[..., Asker]) -> None:
    path = real_models.find(real_models.GEMMA)
    a = load(path, n_ctx=N_CTX, flash_attn=False, n_slots=2)
    reference = Reference(path, None, False)
    prompt: list[int] = []
    before = 0
    for turn in range(10):
        words = " ".join(
            f"the {w} of tree number {turn}," for w in ("leaf", "root", "bark", "fruit", "age", "height", "shade")
        )
        text = f"<start_of_turn>user\nTell me about {words} please.<end_of_turn>\n"
        new = a.engine.tokenize(f"{text}<start_of_turn>model\n", add_special=turn == 0)
        prompt += new
        _, finished = a.ask(prompt, 12)
        assert a.n_computed - before == len(prompt) - finished.n_cached == len(new) + bool(turn)
        before = a.n_computed
        kept = a.last
        if turn == 9:  # beyond the window of 512
            expected, margins = reference.tokens(prompt, 8)
            answer = kept[len(prompt) : len(prompt) + 8]
            if answer != expected:
                n = next(i for i in range(8) if answer[i] != expected[i])
                assert margins[n] < EPSILON[True], (n, margins[n])
        prompt = [*kept, 106]  # <end_of_turn>, which is never computed
    assert len(prompt) > 600
