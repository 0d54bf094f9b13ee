"""Fast and slow evaluation of the bundled model must agree, item by item; so must llama-cpp-python's own class."""

from collections.abc import Iterator
from importlib import resources
from typing import Any

import llama_cpp
import numpy as np
import pytest

from ropebend import Context, LayerScaling, Model, RopebendError
from ropebend.evaluate import DEPTHS, Answer, KVEvaluator, evaluate, greedy_answer
from ropebend.tasks import kv

NEEDLE = str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf")
EPSILON = 0.3  # logits; the margin rule of design section 5: verdicts may differ only where two tokens are this close
SCALINGS = [None, LayerScaling((1.5, 1.0, 1.0, 1.5, 1.25, 1.0))]


@pytest.fixture(scope="module")
def needle() -> Iterator[Model]:
    with Model(NEEDLE) as model:
        yield model


def agree(fast: list[Answer], slow: list[Answer]) -> int:
    """Every verdict alike, except where it hung by less than EPSILON; returns how many of these there were."""
    close = 0
    for f, s in zip(fast, slow, strict=True):
        if f.correct != s.correct:
            assert min(f.margin, s.margin) < EPSILON, (f, s)
            close += 1
    return close


@pytest.mark.parametrize("protocol", kv.PROTOCOLS)
@pytest.mark.parametrize("n_pairs", [6, 26, 44])
@pytest.mark.parametrize("scaling", SCALINGS, ids=["unscaled", "scaled"])
def test_fast_and_slow_give_the_same_verdicts(
    needle: Model, protocol: str, n_pairs: int, scaling: LayerScaling | None
) -> None:
    samples = kv.generate(n_pairs, 3, seed=5)
    with KVEvaluator(needle, samples, protocol=protocol, n_threads=1) as evaluator:
        evaluator.set_scaling(scaling)
        fast = [a for s in samples for a in evaluator.run(s)]
        exact = [a for s in samples for a in evaluator.run(s, full=False)]
    with Context(needle, n_ctx=2048, n_threads=1, scaling=scaling) as context:
        slow = [greedy_answer(context, q.prompt, q.value) for s in samples for q in kv.questions(s, DEPTHS, protocol)]
    assert agree(fast, slow) <= 1
    assert all(f.correct for f, e in zip(fast, exact, strict=True) if e.correct)  # exact is the stricter metric
    for f, s in zip(fast, slow, strict=True):
        if f.correct and f.margin > EPSILON:
            assert s.text.startswith(f.text)


def test_llama_cpp_python_gives_the_same_verdicts(needle: Model) -> None:
    samples = kv.generate(20, 2, seed=9)
    with KVEvaluator(needle, samples, n_threads=1) as evaluator:
        fast = [a for s in samples for a in evaluator.run(s)]
    llm = llama_cpp.Llama(NEEDLE, n_ctx=1024, n_threads=1, verbose=False)
    for answer, q in zip(fast, [q for s in samples for q in kv.questions(s, DEPTHS)], strict=True):
        text = llm(q.prompt, max_tokens=100, temperature=0)["choices"][0]["text"]
        assert answer.correct == kv.contains(text, q.value) or answer.margin < EPSILON
    llm.close()


def test_the_json_is_prefilled_once_for_all_depths(needle: Model) -> None:
    (sample,) = kv.generate(20, 1, seed=2)
    prompts = [needle.tokenize(q.prompt) for q in kv.questions(sample, DEPTHS)]
    question = len(needle.tokenize('\n\nKey: "')) + 16 + len(needle.tokenize('"\nCorresponding value:'))
    with KVEvaluator(needle, [sample], n_threads=1) as evaluator:
        evaluator.run(sample)
        assert evaluator.prefilled <= len(prompts[0]) + len(DEPTHS) * question
    with KVEvaluator(needle, [sample], n_threads=1, protocol="published") as evaluator:
        evaluator.run(sample)
        assert evaluator.prefilled < 0.75 * sum(map(len, prompts))


def test_small_batches_change_no_verdict(needle: Model) -> None:
    samples = kv.generate(12, 2, seed=4)
    verdicts = []
    for n_batch in (64, 512):
        with KVEvaluator(needle, samples, n_threads=1, n_batch=n_batch) as evaluator:
            verdicts.append([a for s in samples for a in evaluator.run(s)])
    assert agree(*verdicts) == 0


def test_logprob_is_that_of_the_tokens_alone(needle: Model) -> None:
    (sample,) = kv.generate(5, 1, seed=3)
    (q,) = kv.questions(sample, [0.5])
    with KVEvaluator(needle, [sample], depths=[0.5], n_threads=1) as evaluator:
        (answer,) = evaluator.run(sample)
        gold = needle.tokenize(evaluator.lead_in + q.value)
    tokens = needle.tokenize(q.prompt) + gold
    with Context(needle, n_ctx=512, n_threads=1, scaling=None) as context:
        context.decode(tokens, 0, all_logits=True)
        rows = context.all_logits(len(tokens))[-len(gold) - 1 : -1].astype(np.float64)
    expected = np.mean([row[t] - np.logaddexp.reduce(row) for row, t in zip(rows, gold, strict=True)])
    assert answer.logprob == pytest.approx(expected, abs=1e-3)


def test_same_run_twice_to_the_bit(needle: Model) -> None:
    samples = kv.generate(30, 2, seed=6)

    def run() -> Any:
        with KVEvaluator(needle, samples, n_threads=1) as evaluator:
            return evaluate(evaluator, samples, SCALINGS[1], full=False)

    first, second = run(), run()
    assert np.array_equal(first.logprob, second.logprob)
    assert np.array_equal(first.correct, second.correct)


def test_nothing_to_evaluate_is_said(needle: Model) -> None:
    samples = kv.generate(2, 1, seed=0)
    with KVEvaluator(needle, samples, n_threads=1) as evaluator, pytest.raises(RopebendError, match="no samples"):
        evaluate(evaluator, [], None)
