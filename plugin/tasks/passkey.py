"""Passkey retrieval (Mohtashami and Jaggi, "Landmark Attention", 2023): a number hidden in running text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.tasks.task import DEPTHS, Item, Question, RetrievalTask, Tokenize
from ropebend.tasks.text import read_text

HEAD = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
TAIL = "\nWhat is the pass key? The pass key is"


class Passkey(RetrievalTask):
    """Prompts of about `length` tokens, with the pass key at each depth of the filler.

    text: a file to take the filler from, sentence by sentence, from another place for each item; default: the published
    filler.  Raises RopebendError if `length` is too small to hold the question.
    """

    name = "passkey"

    def __init__(
        self,
        *,
        length: int = 4096,
        depths: Sequence[float] = DEPTHS,
        seed: int | str = 1,
        text: str | Path | None = None,
    ):
        self.length, self.depths, self.seed, self.text = length, tuple(depths), seed, text
        self._sentences = _sentences(read_text(text)) if text is not None else _sentences(FILLER)
        if not self._sentences:
            raise RopebendError(f"{text}: expected sentences, there is nothing between the full stops")
        self._n_sentences = 0

    def prepare(self, tokenize: Tokenize) -> None:
        """Find how many sentences fill the length."""
        overhead = len(tokenize(self._prompt([], 0.0, 12345)))
        sample = (self._sentences * (200 // len(self._sentences) + 1))[:2000]
        per_sentence = len(tokenize("".join(sample))) / len(sample)
        self._n_sentences = int((self.length - overhead) / per_sentence)
        if self._n_sentences < 1:
            raise RopebendError(
                f"passkey: a prompt takes at least {overhead + per_sentence:.0f} tokens, length is {self.length}"
            )

    def _prompt(self, filler: list[str], depth: float, key: int) -> str:
        at = round(depth * len(filler))
        hidden = f"The pass key is {key}. Remember it. {key} is the pass key. "
        return HEAD + "".join([*filler[:at], hidden, *filler[at:]]).rstrip() + TAIL

    def _item(self, i: int, n_sentences: int, depths: Sequence[float]) -> Item:
        rng = random.Random(f"passkey-{self.seed}-{i}")
        key = rng.randint(10000, 99999)
        start = rng.randrange(len(self._sentences)) if self.text is not None else 0
        n = len(self._sentences)
        filler = [self._sentences[(start + j) % n] for j in range(n_sentences)]
        return Item(tuple(Question(d, self._prompt(filler, d, key), (str(key),)) for d in depths))

    def item(self, i: int) -> Item:
        """One key at every depth of the same filler."""
        return self._item(i, self._n_sentences, self.depths)

    def easy_item(self, i: int) -> Item:
        """Three sentences of filler."""
        return self._item(i, 3, (0.0, 1.0))

    def is_right(self, answer: str, question: Question) -> bool:
        """The key stands in the answer."""
        return question.answers[0] in answer

    def config(self) -> dict[str, Any]:
        """Length, depths, seed, text."""
        text = str(self.text) if self.text is not None else None
        return {"name": self.name, "length": self.length, "depths": list(self.depths), "seed": self.seed, "text": text}


def _sentences(text: str) -> list[str]:
    parts = text.replace("\n", " ").split(". ")
    return [part.strip(" .") + ". " for part in parts if part.strip(" .")]
