"""What a task is: numbered items, each with questions about one context or with a text to predict.

A task of your own is a Python file that defines `def task(**options)` returning a `RetrievalTask` or a `TextTask`;
`ropebend eval MODEL --task my_task.py --task-option name=value` runs it (docs/tasks.md has an example).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NO_DEPTH = float("nan")


class Tokenize(Protocol):
    """The tokens that a model is given for a prompt, all told: BOS, chat template, and what the answer begins with."""

    def __call__(self, prompt: str, prefix: str = "", /) -> list[int]:
        """Tokens of `prompt` and of the answer prefix behind it (in a chat: behind the template's end).

        Raises TextError for what cannot be tokenised.
        """
        ...


@dataclass(frozen=True)
class Question:
    """One prompt and what counts as its answer.

    depth     where in the context the answer stands: 0 first, 1 last; `NO_DEPTH` where it stands nowhere in particular
    answers   the values looked for; the task says whether any of them is enough or all are wanted
    prefix    what the answer is made to begin with: follows the prompt, in a chat the template's end; not judged
    expected  what a good model says next, word for word: its probability is measured.  None: the first answer, after
              whatever this model says before one, which the evaluator has to find out
    asked     the key that is asked for: where the answer repeats it, that is no value
    """

    depth: float
    prompt: str
    answers: tuple[str, ...]
    prefix: str = ""
    expected: str | None = None
    asked: str = ""

    @property
    def text(self) -> str:
        """Prompt and answer prefix, for models that are given plain text."""
        return self.prompt + self.prefix


@dataclass(frozen=True)
class Item:
    """Questions, one per depth, that are resampled together; what their prompts share at the start is computed once."""

    questions: tuple[Question, ...]


class Task:
    """Numbered items, from 0, the same at every call, so that a score is (scales, first k items).

    name     in reports and file names
    n_items  how many there are; None: as many as wanted
    """

    name: str
    n_items: int | None = None

    def prepare(self, tokenize: Tokenize) -> None:
        """Called before anything else, with the model's tokeniser; for tasks whose lengths are in tokens.

        Called again where it is found that prompts stand in a chat template, or in another process.  May raise
        RopebendError if a length holds no item.
        """

    def config(self) -> dict[str, Any]:
        """What decides the items, as JSON, among it "name": goes into reports and provenance."""
        raise NotImplementedError


class RetrievalTask(Task):
    """Questions with answers.

    depths             of the questions of every item, in order; () where an item is one question without a depth
    exact              True if the answer is one fixed string that a good model says at once; a search then need not
                       decode on when the model says something else
    all_answers        True: the score is the share of the answers found; False: any of them is enough
    value_form         what a value looks like, where that is known: then the first value the model says is its answer.
                       None: an answer counts wherever it stands among `max_answer_tokens`
    chat               put the prompts into the model's chat template; None: where its easy items go better so
    max_answer_tokens  how long the model may talk, in tokens; None: little longer than the expected answer with its
                       lead-in takes
    """

    depths: tuple[float, ...]
    exact: bool = True
    all_answers: bool = False
    value_form: re.Pattern[str] | None = None
    max_answer_tokens: int | None = 100
    chat: bool | None = None

    @property
    def max_prompt_tokens(self) -> int | None:
        """Tokens that no prompt exceeds, where that is known without making them."""
        return None

    @property
    def chat_config(self) -> dict[str, Any]:
        """Its part of `config`."""
        return {} if self.chat is None else {"chat": self.chat}

    def item(self, i: int) -> Item:
        """Item number i; depends on the configuration, the tokeniser and i alone."""
        raise NotImplementedError

    def easy_item(self, i: int) -> Item:
        """A short item of the same kind, to learn from what the model says before the answer."""
        raise NotImplementedError

    def score(self, answer: str, question: Question) -> float:
        """What a greedy answer is worth, 0 to 1, once it has ended.  answer: without the prefix."""
        if not self.all_answers:
            return float(self.is_right(answer, question))
        said = answer.lower()
        return sum(a.lower() in said for a in question.answers) / len(question.answers)

    def is_right(self, answer: str, question: Question) -> bool:
        """The verdict on a greedy answer.  Must stay true as the answer grows, and is asked after every token."""
        if self.all_answers:
            return self.score(answer, question) == 1
        said = answer.lower()
        if (value := self._first_value(answer, question)) is not None:
            said = value.lower()
        return any(a.lower() in said for a in question.answers)

    def is_settled(self, answer: str, question: Question) -> bool:
        """True once nothing that may follow changes the score.  Asked after every token."""
        return self.is_right(answer, question) or self._first_value(answer, question) is not None

    def _first_value(self, answer: str, question: Question) -> str | None:
        if self.value_form is None:
            return None
        asked = question.asked.lower()
        return next((m[0] for m in self.value_form.finditer(answer) if m[0].lower() != asked), None)


class TextTask(Task):
    """Texts to predict, as windows of tokens; their mean log-probability per token is what is maximised."""

    def window(self, i: int) -> Sequence[int]:
        """Tokens of window number i; the second half is scored, as llama-perplexity does."""
        raise NotImplementedError
