"""What a task is: numbered items, each with questions about one context or with a text to predict.

A task of your own is a Python file that defines `def task(**options)` returning a `RetrievalTask` or a `TextTask`;
`ropebend eval MODEL --task my_task.py --task-option name=value` runs it (docs/search.md has an example).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Tokenize = Callable[[str], list[int]]

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Question:
    """One prompt and what counts as its answer.

    depth    where in the context the answer stands: 0 first, 1 last
    answers  any of these is right; the first one is the one whose probability is measured
    """

    depth: float
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Questions, one per depth, that are resampled together; what their prompts share at the start is computed once."""

    questions: tuple[Question, ...]


class Task:
    """Numbered items, the same at every call, so that a score is (scales, first k items).

    n_items  how many there are; None: as many as wanted
    """

    name: ClassVar[str]
    n_items: int | None = None

    def prepare(self, tokenize: Tokenize) -> None:
        """Called once before anything else, with the model's tokeniser; for tasks whose lengths are in tokens."""

    def config(self) -> dict[str, Any]:
        """What decides the items, as JSON, among it "name": goes into reports and provenance."""
        raise NotImplementedError


class RetrievalTask(Task):
    """Questions with answers.

    depths  of the questions of every item, in order
    exact   True if the answer is one fixed string that a good model says at once; a search then need not decode on
            when the model says something else
    """

    depths: tuple[float, ...]
    exact: ClassVar[bool] = True

    def item(self, i: int) -> Item:
        """Item number i; depends on the configuration and i alone."""
        raise NotImplementedError

    def easy_item(self, i: int) -> Item:
        """A short item of the same kind, to learn from what the model says before the answer."""
        raise NotImplementedError

    def is_right(self, answer: str, question: Question) -> bool:
        """The verdict on a greedy answer.  Must stay true as the answer grows, and is asked after every token."""
        raise NotImplementedError


class TextTask(Task):
    """Texts to predict, as windows of tokens."""

    def window(self, i: int) -> Sequence[int]:
        """Tokens of window number i; the second half is scored, as llama-perplexity does."""
        raise NotImplementedError
