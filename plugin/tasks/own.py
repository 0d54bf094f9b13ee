"""A task of the user's own, from a Python file: whatever goes wrong in it is named with its line."""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.tasks.task import Item, Question, RetrievalTask, Task, TextTask, Tokenize


def read_maker(path: str) -> Callable[..., Task]:
    """The function `task` of a file.  Raises RopebendError if there is none, or if the file fails, with the line."""
    if not Path(path).is_file():
        raise RopebendError(f"{path}: No such file")
    with naming(path):
        names = runpy.run_path(path)
    if not callable(names.get("task")):
        raise RopebendError(f"{path}: expected a function task(**options)")
    return names["task"]


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever goes wrong in a user's file becomes a RopebendError that says in which of its lines."""
    try:
        yield
    except RopebendError:
        raise
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        where = f"{path}: line {lines[-1]}" if lines else path
        raise RopebendError(f"{where}: {type(e).__name__}: {e}") from e


def guarded(path: str, task: object) -> Task:
    """The task with its mistakes named.  Raises RopebendError for what is none."""
    if isinstance(task, RetrievalTask):
        return _OwnRetrieval(path, task)
    if isinstance(task, TextTask):
        return _OwnText(path, task)
    raise RopebendError(f"{path}: task() returned {type(task).__name__}, expected a RetrievalTask or a TextTask")


class _Own(Task):
    def __init__(self, path: str, inner: Task):
        self.path, self.inner = path, inner
        with naming(path):
            config = inner.config()
        if not (isinstance(config, dict) and "name" in config):
            raise RopebendError(f"{path}: config() returned {config!r:.80}, expected a dict with a name")
        self.name, self.n_items = str(config["name"]), inner.n_items

    def prepare(self, tokenize: Tokenize) -> None:
        with naming(self.path):
            self.inner.prepare(tokenize)
        self.n_items = self.inner.n_items

    def config(self) -> dict[str, Any]:
        with naming(self.path):
            return self.inner.config()


class _OwnRetrieval(_Own, RetrievalTask):
    inner: RetrievalTask

    def config(self) -> dict[str, Any]:
        return {**super().config(), **self.chat_config}

    def __init__(self, path: str, inner: RetrievalTask):
        super().__init__(path, inner)
        depths = getattr(inner, "depths", None)
        if not isinstance(depths, Sequence):
            raise RopebendError(f"{path}: depths is {depths!r:.80}, expected the depths of every item's questions")
        self.depths, self.exact, self.all_answers = tuple(depths), inner.exact, inner.all_answers
        self.value_form, self.max_answer_tokens = inner.value_form, inner.max_answer_tokens
        self.chat = inner.chat

    def item(self, i: int) -> Item:
        with naming(self.path):
            item = self.inner.item(i)
        self._check(item, f"item({i})")
        n = max(1, len(self.depths))
        if len(item.questions) != n:
            raise RopebendError(
                f"{self.path}: item({i}) has {len(item.questions)} questions, expected {n}: one a depth"
            )
        return item

    def easy_item(self, i: int) -> Item:
        with naming(self.path):
            item = self.inner.easy_item(i)
        self._check(item, f"easy_item({i})")
        return item

    def _check(self, item: object, what: str) -> None:
        questions = getattr(item, "questions", None)
        if not isinstance(item, Item) or not questions or not all(isinstance(q, Question) for q in item.questions):
            raise RopebendError(f"{self.path}: {what} returned {item!r:.80}, expected an Item with Questions")
        for q in item.questions:
            texts = (q.prompt, q.prefix, *q.answers)
            if not q.answers or not q.text or not all(isinstance(t, str) for t in texts):
                raise RopebendError(f"{self.path}: {what} has {q!r:.80}, expected a prompt and answers, as text")

    def score(self, answer: str, question: Question) -> float:
        with naming(self.path):
            return float(self.inner.score(answer, question))

    def is_right(self, answer: str, question: Question) -> bool:
        with naming(self.path):
            return bool(self.inner.is_right(answer, question))

    def is_settled(self, answer: str, question: Question) -> bool:
        with naming(self.path):
            return bool(self.inner.is_settled(answer, question))


class _OwnText(_Own, TextTask):
    inner: TextTask

    def window(self, i: int) -> Sequence[int]:
        with naming(self.path):
            return self.inner.window(i)
