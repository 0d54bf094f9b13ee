"""LongEval's line retrieval (Li et al., "How Long Can Open-Source LLMs Truly Promise on Context Length?", 2023).

shared     the record stays as it is and the line that stands at each depth is asked; one prefill serves all depths
           metric: the first number that the model says
published  one line drawn at random per record, as LongChat's generator does, or its own files
           metric: the last number of the first 100 tokens of the answer
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.tasks.json_lines import read_json_lines
from ropebend.tasks.length import FilledTask
from ropebend.tasks.task import DEPTHS, NO_DEPTH, Item, Question
from ropebend.tasks.words import adjective_noun

HEAD = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of "
    "a certain line index. Now the record start:\n\n"
)


@dataclass(frozen=True)
class Line:
    """One line of a record: its index, two words, and its content."""

    index: str
    content: int


def prompt(lines: Sequence[Line], index: str) -> str:
    """LongChat's prompt."""
    record = "".join(f"line {line.index}: REGISTER_CONTENT is <{line.content}>\n" for line in lines)
    return (
        f"{HEAD}{record}\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {index}? "
        "I need the number."
    )


def read_published(path: str | Path) -> list[Question]:
    """The questions of one of LongChat's files (200_lines.jsonl …).  Raises RopebendError naming the line."""
    return read_json_lines(path, _parse, "an object with prompt, expected_number and random_idx [index, place]")


def _parse(data: dict[str, Any]) -> Question:
    index, _ = data["random_idx"]
    return Question(NO_DEPTH, str(data["prompt"]), (str(int(data["expected_number"])),), asked=str(index))


class LongEvalLines(FilledTask):
    """Line retrieval on generated records, or on those of one of LongChat's files.

    lines     per record; or
    length    tokens that the prompt may have, which decides the number of lines; 4,096 if nothing is said
    depths    of the questions (shared): 0 is the first line, 1 the last
    protocol  "shared" or "published", see above in this module; of a file always the latter
    data      one of LongChat's files, JSON lines, plain or gzip

    Raises UsageError for options that contradict each other, RopebendError for a file that cannot be read.
    """

    name = "longeval"

    def __init__(
        self,
        *,
        lines: int | None = None,
        length: int | None = None,
        depths: Sequence[float] = DEPTHS,
        protocol: str = "shared",
        seed: int | str = 1,
        data: str | Path | None = None,
    ):
        super().__init__()
        self.check_protocol(protocol)
        self.check_size("lines", lines, length, data)
        self.protocol, self.seed, self.data = protocol if data is None else "published", seed, data
        self.depths = tuple(depths) if self.protocol == "shared" else ()
        if self.protocol == "shared":
            self.value_form, self.max_answer_tokens = re.compile(r"\d+(?=\D)"), None
        self._questions = read_published(data) if data is not None else None
        if self._questions is not None:
            self.n_items, self.n_units = len(self._questions), 1
        elif lines is not None:
            self.n_units = lines
        else:
            self.length = 4096 if length is None else length

    def build(self, i: int, n: int) -> Item:
        """The questions about record number i, with n lines unless it comes from a file."""
        if self._questions is not None:
            return Item((self._questions[i],))
        rng = random.Random(f"longeval-{self.seed}-{i}")
        place = rng.random()
        return _ask(rng, n, {d: d for d in self.depths} if self.protocol == "shared" else {NO_DEPTH: place})

    def easy_item(self, i: int) -> Item:
        """Three lines."""
        return _ask(random.Random(f"longeval-easy-{i}"), 3, {0.0: 0.0, 1.0: 1.0})

    def is_right(self, answer: str, question: Question) -> bool:
        """The first (shared) or the last (published) number is the content."""
        numbers = re.findall(r"\d+", answer)
        return bool(numbers) and numbers[0 if self.protocol == "shared" else -1] == question.answers[0]

    def is_settled(self, answer: str, question: Question) -> bool:
        """Shared: a number has ended.  Published: never before the answer has."""
        return self._first_value(answer, question) is not None

    def config(self) -> dict[str, Any]:
        """Lines or length, protocol, depths, seed or file."""
        if self.data is not None:
            return {"name": self.name, **self.chat_config, "protocol": self.protocol, "data": str(self.data)}
        size = {"lines": self.n_units} if self.length is None else {"length": self.length}
        depths = {"depths": list(self.depths)} if self.protocol == "shared" else {}
        return {"name": self.name, **self.chat_config, **size, "protocol": self.protocol, **depths, "seed": self.seed}


def _ask(rng: random.Random, n: int, places: dict[float, float]) -> Item:
    lines: dict[str, Line] = {}
    while len(lines) < n:  # an index stands for one line
        index = adjective_noun(rng)
        lines.setdefault(index, Line(index, rng.randint(1, 50000)))
    record = list(lines.values())
    out = []
    for depth, place in places.items():
        line = record[round(place * (n - 1))]
        out.append(Question(depth, prompt(record, line.index), (str(line.content),), asked=line.index))
    return Item(tuple(out))
