"""Plans by length in the engine: which plan a request takes, and that none leaves cells to another."""

import queue
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ropebend.context import Context
from ropebend.model import Model
from ropebend.scaling import LayerScaling, ShorterPlan
from ropebend.server.engine.events import Completed, Event, Piece
from ropebend.server.engine.requests import Generation
from ropebend.server.engine.sampling import Sampling

from ..conftest import SCALES, write_model
from ..exactness import EPSILON, margin
from .conftest import Answers

GREEDY = Sampling(temperature=0)
SHORT, MIDDLE = 96, 144  # unscaled up to the first, a plan of its own up to the second
MIDDLE_SCALES = LayerScaling(tuple(1 + (s - 1) / 2 for s in SCALES), "llama")
BY_LENGTH = LayerScaling(
    SCALES,
    "llama",
    layer_attn_factor=tuple(1.25 if i % 2 else 0.9 for i in range(len(SCALES))),
    shorter=(ShorterPlan(SHORT, None), ShorterPlan(MIDDLE, MIDDLE_SCALES)),
)


class Fresh:
    """Greedy texts from a context that knows no other text, under the plan of their length, with the margins."""

    def __init__(self, path: Path):
        self._model = Model(path)
        self._context = Context(self._model, n_ctx=512, n_threads=1, scaling=None)
        self.n_compared = self.n_close = 0

    def close(self) -> None:
        self._context.close()
        self._model.close()

    def logits(self, prompt: Sequence[int], length: int) -> np.ndarray:
        self._context.clear()
        self._context.switch_plan(BY_LENGTH.plan(length))
        self._context.decode(prompt, 0)
        return self._context.logits()

    def check(self, text: str, prompt: Sequence[int], n: int) -> None:
        """The text is the one from here up to a choice that was close."""
        self.n_compared += 1
        logits = self.logits(prompt, len(prompt) + n)
        out: list[int] = []
        for i in range(n):
            out.append(int(logits.argmax()))
            if not text.startswith(self._model.detokenize(out)):
                assert margin(logits) < EPSILON[False], (text, self._model.detokenize(out), margin(logits))
                self.n_close += 1
                return
            if i < n - 1:
                self._context.decode(out[-1:], len(prompt) + i)
                logits = self._context.logits()
        assert text == self._model.detokenize(out)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "by-length.gguf", BY_LENGTH)


@pytest.fixture
def fresh(path: Path) -> Iterator[Fresh]:
    reference = Fresh(path)
    yield reference
    reference.close()


def cells_by_plan(answers: Answers) -> dict[str, set[int]]:
    out: dict[str, set[int]] = {}
    pool = answers.engine.scheduler.pool
    for sequence in (*pool.cached.values(), *pool.running):
        out.setdefault(sequence.key, set()).update(sequence.cells)
    return out


def test_each_length_takes_its_plan_and_no_cell_of_another(
    load: Callable[..., Answers], path: Path, fresh: Fresh
) -> None:
    a = load(path, n_ctx=512, n_cells=2048, flash_attn=False)
    prompt = [3 + b for b in b"the happy dog and a big little sun to play with they said "]
    lengths = [SHORT, SHORT + 1, MIDDLE, MIDDLE + 1, 512]
    n_new = [n - len(prompt) for n in lengths]
    texts, finishes = a.ask([Generation(prompt, n, GREEDY) for n in n_new])
    assert [f.n_cached > 0 for f in finishes] == [False, False, True, False, True]
    for text, n in zip(texts, n_new, strict=True):
        fresh.check(text, prompt, n)
    plans = {p.hash for n in lengths if (p := BY_LENGTH.plan(n)) is not None}
    assert set(a.engine._plans.by_key) == {"", *plans}  # type: ignore[union-attr]
    assert len(plans) == 2


def test_within_a_plan_of_none_it_is_the_unscaled_model_bit_for_bit(
    load: Callable[..., Answers], path: Path, tmp_path: Path
) -> None:
    prompt = [3 + b for b in b"to play with a big little tree"]
    request = Generation(prompt, 8, GREEDY, n_logprobs=5, echo=True)
    seen = []
    for model in (path, write_model(tmp_path / "plain.gguf")):
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        load(model, n_ctx=512, flash_attn=False).engine.submit([request], events.put)
        pieces = []
        while not isinstance(event := events.get(timeout=60), Completed):
            pieces += [event] if isinstance(event, Piece) else []
        seen.append(pieces)
    assert seen[0] == seen[1]  # texts and log-probabilities, of the prompt too
    assert len(seen[0]) > 1


def test_conversations_that_outgrow_their_plan_are_those_of_fresh_contexts(
    load: Callable[..., Answers], path: Path, fresh: Fresh
) -> None:
    """200 random conversations, sixteen at once, that grow across both bounds and share beginnings."""
    rng = random.Random(5)
    a = load(path, n_ctx=256, n_cells=1024, n_slots=16, flash_attn=False)
    openings = [[rng.randrange(100, 122) for _ in range(rng.randrange(20, 90))] for _ in range(5)]
    crossed = beside_another = 0
    for _ in range(200 // 20):
        talks = [[*rng.choice(openings), rng.randrange(100, 122)] for _ in range(20)]
        for _ in range(3):
            n_new = [rng.randrange(1, 6) for _ in talks]
            before = [BY_LENGTH.at(len(t) + n) for t, n in zip(talks, n_new, strict=True)]
            texts, _ = a.ask([Generation(t, n, GREEDY) for t, n in zip(talks, n_new, strict=True)])
            keys = cells_by_plan(a)
            beside_another += len(keys) > 1
            assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
            for talk, n, text in zip(talks, n_new, texts, strict=True):
                fresh.check(text, talk, n)
                talk += [*(3 + b for b in text.encode()), *(rng.randrange(100, 122) for _ in range(rng.randrange(40)))]
            crossed += sum(BY_LENGTH.at(len(t) + 6) is not b for t, b in zip(talks, before, strict=True))
    assert crossed > 100
    assert beside_another > 0
    assert fresh.n_close <= fresh.n_compared // 20
