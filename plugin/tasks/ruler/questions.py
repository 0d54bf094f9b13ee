"""Question answering among documents: RULER's qa_1 (SQuAD 2.0) and qa_2 (HotpotQA)."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.tasks.length import FilledTask
from ropebend.tasks.task import NO_DEPTH, Item, Question
from ropebend.tasks.text import read_text

ANSWER_TOKENS = 32
TASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


@dataclass(frozen=True)
class Asked:
    """A question; indices of the documents that answer it, and of those to take first beside them."""

    query: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()


def prompt(documents: list[str], query: str) -> tuple[str, str]:
    """Prompt and answer prefix."""
    context = "\n\n".join(f"Document {k}:\n{document}" for k, document in enumerate(documents, 1))
    return (
        f"{TASK}\n\nThe following are given documents.\n\n{context}\n\n{TASK}\n\nQuestion: {query}",
        " Answer:",
    )


def read_squad(data: Any) -> tuple[list[Asked], list[str]]:
    """Questions that can be answered, and all paragraphs, of SQuAD 2.0 (dev-v2.0.json)."""
    paragraphs = [list(article["paragraphs"]) for article in data["data"]]
    documents = sorted({str(p["context"]) for article in paragraphs for p in article})
    number = {text: i for i, text in enumerate(documents)}
    asked = []
    for article in paragraphs:
        of_article = [number[p["context"]] for p in article]
        for p in article:
            gold = number[p["context"]]
            near = tuple(i for i in of_article if i != gold)
            asked += [
                Asked(str(qa["question"]), tuple(str(a["text"]) for a in qa["answers"]), (gold,), near)
                for qa in p["qas"]
                if not qa.get("is_impossible", False)
            ]
    return asked, documents


def read_hotpotqa(data: Any) -> tuple[list[Asked], list[str]]:
    """Questions and all documents of HotpotQA (hotpot_dev_distractor_v1.json)."""
    of_question = [[f"{title}\n{''.join(text)}" for title, text in d["context"]] for d in data]
    documents = sorted({text for texts in of_question for text in texts})
    number = {text: i for i, text in enumerate(documents)}
    asked = [
        Asked(str(d["question"]), (str(d["answer"]),), tuple(number[text] for text in texts))
        for d, texts in zip(data, of_question, strict=True)
    ]
    return asked, documents


READERS = {"qa_1": read_squad, "qa_2": read_hotpotqa}
FILES = {"qa_1": "squad.json", "qa_2": "hotpotqa.json"}  # as RULER's script saves them


class Questions(FilledTask):
    """Questions in the file's order, each among as many documents as the length allows, in random order.

    name    "qa_1" (SQuAD 2.0, arXiv 1806.03822) or "qa_2" (HotpotQA, arXiv 1809.09600)
    data    the JSON file of that data set
    length  tokens of prompt, answer prefix and answer

    Score: one of the answers is found.  Raises RopebendError for a file that cannot be read or holds no such questions.
    """

    exact = False
    reserved = ANSWER_TOKENS
    max_answer_tokens = ANSWER_TOKENS
    depths = ()

    def __init__(self, name: str, *, data: str | Path, length: int = 4096, seed: int | str = 1):
        super().__init__()
        self.name, self.data, self.length, self.seed = f"ruler:{name}", data, length, seed
        try:
            self._asked, self._documents = READERS[name](json.loads(read_text(data)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            wanted = "SQuAD 2.0 (dev-v2.0.json)" if name == "qa_1" else "HotpotQA (hotpot_dev_distractor_v1.json)"
            raise RopebendError(f"{data}: expected {wanted} ({type(e).__name__}: {e})") from None
        self._asked = [a for a in self._asked if a.answers]
        if not self._asked:
            raise RopebendError(f"{data}: no question that can be answered")
        self.n_items = len(self._asked)
        self.min_units = max(len(a.gold) for a in self._asked)

    def build(self, i: int, n: int) -> Item:
        """Question i among n documents."""
        asked, rng = self._asked[i], random.Random(f"{self.name}-{self.seed}-{i}")
        n_more = n - len(asked.gold)
        if n_more <= len(asked.near):
            more = rng.sample(asked.near, n_more)
        else:
            known = {*asked.gold, *asked.near}
            drawn = rng.sample(range(len(self._documents)), min(len(self._documents), n_more + len(known)))
            more = [*asked.near, *(k for k in drawn if k not in known)]
            while len(more) < n_more:  # a small set of documents is used again and again, as RULER does
                more += more or asked.gold
        chosen = [*asked.gold, *more[:n_more]]
        rng.shuffle(chosen)
        return self._ask(asked, chosen)

    def _ask(self, asked: Asked, chosen: list[int]) -> Item:
        text, prefix = prompt([self._documents[k] for k in chosen], asked.query)
        return Item((Question(NO_DEPTH, text, asked.answers, prefix, f" {asked.answers[0]}"),))

    def easy_item(self, i: int) -> Item:
        """The documents that hold the answer, alone."""
        asked = self._asked[i % len(self._asked)]
        return self._ask(asked, list(asked.gold))

    def config(self) -> dict[str, Any]:
        """File, length, seed."""
        source = {"data": str(self.data), "seed": self.seed}
        return {"name": self.name, **self.chat_config, "length": self.length, "protocol": "published", **source}
