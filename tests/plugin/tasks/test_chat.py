"""Prompts in the model's own chat template."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from random_models import write_llama
from small_search import NEEDLE
from typer.testing import CliRunner

from ropebend import Model, RopebendError, UsageError
from ropebend.cli import app
from ropebend.evaluate import Prompts, RetrievalEvaluator, open_evaluator
from ropebend.runtime import Runtime
from ropebend.tasks import make_task
from ropebend.tasks.task import Question, RetrievalTask

ONE = Runtime(n_threads=1)


@pytest.fixture(scope="module")
def needle() -> Iterator[Model]:
    with Model(NEEDLE) as model:
        yield model


def test_the_prompt_is_a_message_and_the_prefix_begins_the_answer(needle: Model) -> None:
    """Needle's template: <|role|>content<|end|>, then <|assistant|>."""
    chat = Prompts(needle, chat=True)
    written = "<|user|>What is it?<|end|><|assistant|> It is"
    assert chat("What is it?", " It is") == needle.tokenize(written, parse_special=True)
    prompt, answer = chat.with_answer(Question(0.0, "What is it?", ("a cat",), " It is"), " a cat")
    assert prompt + answer == needle.tokenize(written + " a cat", parse_special=True)
    assert Prompts(needle)("What is it?", " It is") == needle.tokenize("What is it? It is")


@pytest.mark.parametrize("chat", [True, False])
def test_the_template_counts_into_the_length(needle: Model, chat: bool) -> None:
    task = make_task("passkey", {"length": 200, "chat": chat, "depths": [0.0, 1.0]})
    with open_evaluator(needle, task, 3, ONE) as evaluator:
        assert isinstance(evaluator, RetrievalEvaluator)
        assert isinstance(task, RetrievalTask)
        assert evaluator.chat == chat
        counts = [len(evaluator.prompts(q.prompt, q.prefix)) for i in range(3) for q in task.item(i).questions]
        evaluator.measure(0)
    assert min(counts) >= 180
    assert max(counts) <= 200


def test_without_a_word_plain_text_stays_where_the_easy_items_are_right(needle: Model) -> None:
    with open_evaluator(needle, make_task("kv", {"keys": 4}), 1, ONE) as evaluator:
        assert (evaluator.chat, evaluator.easy) == (False, 1)


def test_a_template_that_is_not_there_is_said(tmp_path: Path) -> None:
    with Model(write_llama(tmp_path / "r.gguf")) as model:
        assert model.chat_template is None
        with pytest.raises(RopebendError, match="--chat: this model has no chat template"):
            open_evaluator(model, make_task("kv", {"keys": 2, "chat": True}), 1, ONE)
    with pytest.raises(UsageError, match="--chat has no effect: task perplexity asks nothing"):
        make_task("perplexity", {"text": __file__, "chat": True})


def test_eval_says_whether_it_was_a_chat(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    args = ["eval", NEEDLE, "--keys", "3", "--samples", "1", "--depths", "0", "-t", "1", "-o", str(out), "--chat"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "in the model's chat template" in done.output
    report = json.loads(out.read_text())
    assert report["chat"] is True
    assert report["task"]["chat"] is True
