"""Fast and slow evaluation of the bundled model must agree, item by item; so must llama-cpp-python's own class."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from architecture_models import write_model
from random_models import write_llama

from ropebend import Context, LayerScaling, Model, RopebendError
from ropebend.choices import PROTOCOLS
from ropebend.evaluate import (
    Answer,
    Evaluation,
    Evaluator,
    PerplexityEvaluator,
    RetrievalEvaluation,
    RetrievalEvaluator,
    Row,
    TextEvaluation,
    greedy_answer,
    open_evaluator,
)
from ropebend.runtime import Runtime
from ropebend.scaling import ShorterPlan
from ropebend.tasks import make_task
from ropebend.tasks.kv import KVRetrieval
from ropebend.tasks.task import RetrievalTask

NEEDLE = str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf")
EPSILON = 0.3  # logits; the margin rule: verdicts may differ only where two tokens are this close
SCALINGS = [None, LayerScaling((1.0, 1.3, 1.2, 1.1, 1.0, 1.0))]  # under both some answers are right, some wrong
ONE = Runtime(n_threads=1)


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


def answers(model: Model, task: RetrievalTask, n: int, scaling: LayerScaling | None = None, **run: Any) -> list[Answer]:
    with open_evaluator(model, task, n, run.pop("runtime", ONE)) as evaluator:
        assert isinstance(evaluator, RetrievalEvaluator)
        evaluator.set_scaling(scaling)
        return [a for i in range(n) for a in evaluator.answers(i, **run)]


def measured(evaluator: Evaluator, scaling: LayerScaling | None, n: int, *, full: bool = True) -> Evaluation:
    evaluator.set_scaling(scaling)
    return Evaluation.of(evaluator.task, [evaluator.measure(i, full=full) for i in range(n)])


def slow_answers(model: Model, task: RetrievalTask, n: int, scaling: LayerScaling | None = None) -> list[Answer]:
    """Each prompt alone, no early end."""
    with open_evaluator(model, task, n, ONE) as evaluator:
        assert isinstance(evaluator, RetrievalEvaluator)
        prompts = evaluator.prompts
        asked = [(q, evaluator.limit(q)) for i in range(n) for q in task.item(i).questions]
    with Context(model, n_ctx=2048, n_threads=1, scaling=scaling) as context:
        return [greedy_answer(context, q, task, limit, prompts) for q, limit in asked]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("n_pairs", [6, 26, 36])
@pytest.mark.parametrize("scaling", SCALINGS, ids=["unscaled", "scaled"])
def test_fast_and_slow_give_the_same_verdicts(
    needle: Model, protocol: str, n_pairs: int, scaling: LayerScaling | None
) -> None:
    task = KVRetrieval(keys=n_pairs, protocol=protocol, seed=5)
    fast = answers(needle, task, 3, scaling)
    exact = answers(needle, task, 3, scaling, full=False)
    slow = slow_answers(needle, task, 3, scaling)
    assert agree(fast, slow) <= 1
    assert all(f.correct for f, e in zip(fast, exact, strict=True) if e.correct)  # exact is the stricter metric
    for f, s in zip(fast, slow, strict=True):
        if f.margin > EPSILON:  # also where looked-up guesses were taken: token for token what greedy decoding says
            assert s.text.startswith(f.text)


def test_llama_cpp_python_gives_the_same_verdicts(needle: Model) -> None:
    task = KVRetrieval(keys=12, seed=9)
    fast = answers(needle, task, 2)
    llm = llama_cpp.Llama(NEEDLE, n_ctx=1024, n_threads=1, verbose=False)
    for answer, q in zip(fast, [q for i in range(2) for q in task.item(i).questions], strict=True):
        text = llm(q.text, max_tokens=100, temperature=0)["choices"][0]["text"]
        assert answer.correct == task.is_right(text, q) or answer.margin < EPSILON
    llm.close()


def test_the_json_is_prefilled_once_for_all_depths(needle: Model) -> None:
    task = KVRetrieval(keys=20, seed=2)
    prompts = [needle.tokenize(q.prompt) for q in task.item(0).questions]
    question = len(needle.tokenize('\n\nKey: "')) + 16 + len(needle.tokenize('"\nCorresponding value:'))
    with RetrievalEvaluator(needle, task, 1, ONE) as evaluator:
        evaluator.answers(0)
        assert evaluator.n_computed <= len(prompts[0]) + 5 * question
    with RetrievalEvaluator(needle, KVRetrieval(keys=20, seed=2, protocol="published"), 1, ONE) as evaluator:
        evaluator.answers(0)
        assert evaluator.n_computed < 0.75 * sum(map(len, prompts))


def test_small_batches_change_no_verdict(needle: Model) -> None:
    task = KVRetrieval(keys=12, seed=4)
    verdicts = [answers(needle, task, 2, runtime=Runtime(n_threads=1, n_batch=n, n_ubatch=n)) for n in (64, 512)]
    agree(*verdicts)


def test_logprob_is_that_of_the_tokens_alone(needle: Model) -> None:
    task = KVRetrieval(keys=5, depths=[0.5], seed=3)
    (q,) = task.item(0).questions
    with RetrievalEvaluator(needle, task, 1, ONE) as evaluator:
        (answer,) = evaluator.answers(0)
        gold = needle.tokenize(evaluator.lead_in + q.answers[0])
    tokens = needle.tokenize(q.prompt) + gold
    with Context(needle, n_ctx=512, n_threads=1, scaling=None) as context:
        context.decode(tokens, 0, all_logits=True)
        rows = context.all_logits(len(tokens))[-len(gold) - 1 : -1].astype(np.float64)
    expected = np.mean([row[t] - np.logaddexp.reduce(row) for row, t in zip(rows, gold, strict=True)])
    assert answer.logprob == pytest.approx(expected, abs=1e-3)


def test_same_run_twice_to_the_bit(needle: Model) -> None:
    task = KVRetrieval(keys=30, seed=6)

    def run() -> Evaluation:
        with open_evaluator(needle, task, 2, ONE) as evaluator:
            return measured(evaluator, SCALINGS[1], 2, full=False)

    first, second = run(), run()
    assert np.array_equal(first.logprob, second.logprob)
    assert np.array_equal(first.value, second.value)


def test_too_few_items_are_said(needle: Model, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Once upon a time. " * 40)
    task = make_task("perplexity", {"text": str(tmp_path / "t.txt"), "length": 64})
    with pytest.raises(RopebendError, match=r"perplexity: 900 items wanted, there are \d+"):
        open_evaluator(needle, task, 900, ONE)
    with pytest.raises(RopebendError, match="no samples"):
        Evaluation.of(task, [])
    with pytest.raises(RopebendError, match="no samples"):
        open_evaluator(needle, task, 0, ONE)


def test_perplexity_is_that_of_the_second_halves(needle: Model, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One day a girl named Lily went to the park. She saw a big dog! " * 20)
    task = make_task("perplexity", {"text": str(tmp_path / "t.txt"), "length": 70})
    runs = []
    for n_batch in (32, 128):
        with open_evaluator(needle, task, 2, Runtime(n_threads=1, n_batch=n_batch)) as evaluator:
            assert isinstance(evaluator, PerplexityEvaluator)
            runs.append(measured(evaluator, SCALINGS[1], 2))
    assert runs[0].logprob == pytest.approx(runs[1].logprob, abs=2e-3)
    assert isinstance(runs[0], TextEvaluation)
    with Context(needle, n_ctx=128, n_threads=1, scaling=SCALINGS[1]) as context:
        for i in range(2):
            tokens = task.window(i)  # type: ignore[attr-defined]
            context.clear()
            context.decode(tokens, 0, all_logits=True)
            rows = context.all_logits(70).astype(np.float64)
            expected = np.mean([rows[j][tokens[j + 1]] - np.logaddexp.reduce(rows[j]) for j in range(35, 69)])
            assert runs[1].logprob[i, 0] == pytest.approx(expected, abs=2e-3)


def test_answers_that_are_moved_are_asked_one_after_another(needle: Model) -> None:
    """Passkey prompts differ in the middle; the verdicts are still those of the slow road."""
    task = make_task("passkey", {"length": 300, "depths": [0.0, 0.5, 1.0]})
    assert isinstance(task, RetrievalTask)
    fast = answers(needle, task, 2)
    slow = slow_answers(needle, task, 2)
    agree(fast, slow)
    for f, s in zip(fast, slow, strict=True):
        assert f.margin < EPSILON or s.text.startswith(f.text)


def test_random_weights_with_another_vocabulary(tmp_path: Path) -> None:
    """A model that is never right: decoding on ends, by token limit or end of text, as the slow road does."""
    with Model(write_llama(tmp_path / "r.gguf")) as model:
        task = KVRetrieval(keys=2, seed=1, depths=[0.0, 1.0])
        fast = answers(model, task, 1)
        slow = slow_answers(model, task, 1)
    assert not any(a.correct for a in [*fast, *slow])
    for f, s in zip(fast, slow, strict=True):
        assert f.text == s.text or f.margin < EPSILON


HYBRID_TASKS: dict[str, dict[str, Any]] = {
    "kv": {"keys": 2, "depths": [0.0, 1.0]},
    "passkey": {"length": 500, "depths": [0.0, 1.0]},  # its prompts differ in the middle
}


@pytest.mark.parametrize("name", HYBRID_TASKS)
@pytest.mark.parametrize("architecture", ["falcon-h1", "granitehybrid"])
def test_hybrid_models_whose_state_cannot_go_back(tmp_path: Path, architecture: str, name: str) -> None:
    task = make_task(name, HYBRID_TASKS[name])
    assert isinstance(task, RetrievalTask)
    with Model(write_model(tmp_path / "h.gguf", architecture, vocabulary=True)) as model:
        scaling = LayerScaling.uniform(2.0, model.info.n_layer)
        fast = answers(model, task, 1, scaling)
        with Context(model, n_ctx=1024, n_threads=1, scaling=scaling) as context:
            assert not context.can_roll_back()
        slow = slow_answers(model, task, 1, scaling)
    for f, s in zip(fast, slow, strict=True):
        assert len(f.text) > 10
        assert f.text == s.text or f.margin < 1e-3  # random weights: the logits themselves are small


@pytest.mark.parametrize(("name", "options"), [("kv", {"keys": 26, "seed": 5}), ("passkey", {"length": 300})])
def test_branches_made_anew_give_the_verdicts_of_those_that_go_back(
    needle: Model, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    task = make_task(name, {"depths": [0.0, 0.5, 1.0], **options})
    assert isinstance(task, RetrievalTask)
    usual = answers(needle, task, 2)
    monkeypatch.setattr(Context, "can_roll_back", lambda _: False)
    anew = answers(needle, task, 2)
    agree(anew, usual)
    for a, u in zip(anew, usual, strict=True):
        assert a.text == u.text or min(a.margin, u.margin) < EPSILON


def test_rows_make_an_evaluation() -> None:
    task = KVRetrieval(keys=2, depths=[0.0, 1.0])
    result = Evaluation.of(task, [Row((1.0, 0.0), (-0.1, -2.0)), Row((1.0, 1.0), (-0.2, -0.3))])
    assert result.mean == 0.75
    assert result.per_item.tolist() == [0.5, 1.0]
    assert isinstance(result, RetrievalEvaluation)


def test_a_measurement_takes_the_plan_of_its_length(needle: Model) -> None:
    task = make_task("kv", {"keys": 3, "seed": 1, "depths": [0.5]})
    with open_evaluator(needle, task, 1, ONE) as evaluator:
        scaling = LayerScaling((1.5, 1.0, 1.0, 1.5, 1.25, 1.0))
        for up_to, unscaled in ((evaluator.n_tokens, True), (evaluator.n_tokens - 1, False)):
            evaluator.set_scaling(replace(scaling, shorter=(ShorterPlan(up_to, None),)))
            assert (evaluator.context.plan is None) == unscaled
