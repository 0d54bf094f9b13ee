"""Passkey retrieval (Mohtashami and Jaggi, "Landmark Attention", 2023): a number hidden in running text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.tasks.length import FilledTask
from ropebend.tasks.task import DEPTHS, Item, Question
from ropebend.tasks.text import read_text

HEAD = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
TAIL = "\nWhat is the pass key?"
PREFIX = " The pass key is"


class Passkey(FilledTask):
    """Prompts of at most `length` tokens, with the pass key at each depth of the filler (arXiv 2305.16300).

    depths  0: the key stands before all of the filler, 1: behind it
    text    a file to take the filler from, sentence by sentence, from another place for each item; default: the
            published filler

    Raises RopebendError for a text that cannot be read or holds no sentence.
    """

    name = "passkey"
    value_form = re.compile(r"\d{5}(?!\d)")
    max_answer_tokens = None

    def __init__(
        self,
        *,
        length: int = 4096,
        depths: Sequence[float] = DEPTHS,
        seed: int | str = 1,
        text: str | Path | None = None,
    ):
        super().__init__()
        self.length, self.depths, self.seed, self.text = length, tuple(depths), seed, text
        self._sentences = _sentences(read_text(text)) if text is not None else _sentences(FILLER)
        if not self._sentences:
            raise RopebendError(f"{text}: expected sentences, there is nothing between the full stops")

    def _item(self, i: int, n: int, depths: Sequence[float]) -> Item:
        rng = random.Random(f"passkey-{self.seed}-{i}")
        key = rng.randint(10000, 99999)
        start = rng.randrange(len(self._sentences)) if self.text is not None else 0
        filler = [self._sentences[(start + j) % len(self._sentences)] for j in range(n)]
        hidden = f"The pass key is {key}. Remember it. {key} is the pass key. "
        out = []
        for depth in depths:
            at = round(depth * n)
            body = "".join([*filler[:at], hidden, *filler[at:]]).rstrip()
            out.append(Question(depth, HEAD + body + TAIL, (str(key),), PREFIX, f" {key}"))
        return Item(tuple(out))

    def build(self, i: int, n: int) -> Item:
        """One key at every depth of the same n sentences of filler."""
        return self._item(i, n, self.depths)

    def easy_item(self, i: int) -> Item:
        """Three sentences of filler."""
        return self._item(i, 3, (0.0, 1.0))

    def config(self) -> dict[str, Any]:
        """Length, depths, seed, text."""
        text = str(self.text) if self.text is not None else None
        return {
            "name": self.name,
            **self.chat_config,
            "length": self.length,
            "depths": list(self.depths),
            "seed": self.seed,
            "text": text,
        }


def _sentences(text: str) -> list[str]:
    parts = text.replace("\n", " ").split(". ")
    return [part.strip(" .") + ". " for part in parts if part.strip(" .")]
