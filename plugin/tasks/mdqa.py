"""Multi-document question answering as published by Liu et al., "Lost in the Middle" (2023): prompt, metric, data."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.tasks.json_lines import read_json_lines
from ropebend.tasks.length import FilledTask
from ropebend.tasks.task import DEPTHS, Item, Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Document:
    """A search result."""

    title: str
    text: str


@dataclass(frozen=True)
class Record:
    """One line of a published file: the gold document and the others that came with it."""

    question: str
    answers: tuple[str, ...]
    gold: Document
    others: tuple[Document, ...]


def prompt(question: str, documents: Sequence[Document]) -> str:
    """The published prompt."""
    results = "\n".join(f"Document [{i}](Title: {d.title}) {d.text}" for i, d in enumerate(documents, 1))
    return (
        "Write a high-quality answer for the given question using only the provided search results "
        f"(some of which might be irrelevant).\n\n{results}\n\nQuestion: {question}\nAnswer:"
    )


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and double spaces (SQuAD's normalisation, which the authors use)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def read_published(path: str | Path) -> list[Record]:
    """Records of a file in the published format.  Raises RopebendError naming the line."""
    return read_json_lines(path, _parse, "an object with question, answers and ctxs [{title, text, isgold}, …]")


def _parse(data: dict[str, Any]) -> Record:
    gold = [c for c in data["ctxs"] if c.get("isgold")]
    if len(gold) != 1:
        raise ValueError(f"{len(gold)} gold documents")
    documents = tuple(Document(str(c["title"]), str(c["text"])) for c in data["ctxs"] if not c.get("isgold"))
    answers = tuple(str(a) for a in data["answers"])
    if not answers:
        raise ValueError("no answers")
    return Record(str(data["question"]), answers, Document(str(gold[0]["title"]), str(gold[0]["text"])), documents)


class MultiDocumentQA(FilledTask):
    """Questions of a published file (arXiv 2307.03172), with the gold document at each depth among `documents`.

    data       a file of the authors' format, JSON lines, plain or gzip
    documents  20 if nothing is said; or
    length     tokens that the prompt may have, which decides the number of documents
    depths     0: the gold document stands first, 1: last

    Where a line brings too few documents (the oracle file brings the gold one only), those of other lines that do not
    hold an answer make up the rest; which ones is decided by the seed.

    Raises UsageError for options that contradict each other, RopebendError for a file that cannot be read or has too
    few lines to make up the documents; so does `build` where too few of them hold no answer.
    """

    name = "mdqa"
    exact = False

    def __init__(
        self,
        *,
        data: str | Path,
        documents: int | None = None,
        length: int | None = None,
        depths: Sequence[float] = DEPTHS,
        seed: int | str = 1,
    ):
        super().__init__()
        self.check_size("--documents", documents, length)
        self.data, self.depths, self.seed = data, tuple(depths), seed
        self.length, self.n_units = length, (documents or 20) if length is None else None
        self._records = read_published(data)
        self.n_items = len(self._records)
        n = self.n_units or 1
        if n > 1 and len(self._records) < n and len(self._records[0].others) < n - 1:
            raise RopebendError(f"{data}: too few lines to make up {n} documents")

    def _distractors(self, i: int, n: int) -> list[Document]:
        record = self._records[i]
        rng = random.Random(f"mdqa-{self.seed}-{i}")
        found = list(record.others[:n])
        taken = set(found)
        answers = [normalised(a) for a in record.answers]
        tries = 0
        while len(found) < n:
            other = rng.choice(self._records).gold
            tries += 1
            if tries > 100 * (n + 1):
                raise RopebendError(
                    f"{self.data}: too few documents without the answer to question {i + 1} to make up {n + 1}"
                )
            if other in taken or any(a in normalised(other.text) for a in answers):
                continue
            found.append(other)
            taken.add(other)
        return found

    def build(self, i: int, n: int) -> Item:
        """Question i, with its gold document at every depth among n."""
        record, others = self._records[i], self._distractors(i, n - 1)
        out = []
        for depth in self.depths:
            at = round(depth * len(others))
            documents = [*others[:at], record.gold, *others[at:]]
            out.append(Question(depth, prompt(record.question, documents), record.answers))
        return Item(tuple(out))

    def easy_item(self, i: int) -> Item:
        """The gold document alone."""
        record = self._records[i % len(self._records)]
        return Item((Question(0.0, prompt(record.question, [record.gold]), record.answers),))

    def is_right(self, answer: str, question: Question) -> bool:
        """Published metric (best_subspan_em): the first line, normalised, holds one of the answers, normalised."""
        said = normalised(answer.strip().split("\n")[0])
        return any(normalised(a) in said for a in question.answers)

    def is_settled(self, answer: str, question: Question) -> bool:
        """It is right, or its first line has ended."""
        return "\n" in answer.lstrip() or self.is_right(answer, question)

    def config(self) -> dict[str, Any]:
        """File, documents or length, depths, seed."""
        size = {"documents": self.n_units} if self.length is None else {"length": self.length}
        return {
            "name": self.name,
            **self.chat_config,
            "data": str(self.data),
            **size,
            "depths": list(self.depths),
            "seed": self.seed,
        }
