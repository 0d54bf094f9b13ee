"""The files that RULER's own generator writes: one JSON object a line, made for one tokeniser and one length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.tasks.json_lines import read_json_lines
from ropebend.tasks.task import NO_DEPTH, Item, Question, RetrievalTask
from ropebend.tasks.text import read_text


def is_ruler_file(path: str | Path) -> bool:
    """True if the file's first line is one of RULER's.  Raises RopebendError for a file that cannot be read."""
    try:
        first = json.loads(read_text(path).lstrip().split("\n", 1)[0])
    except ValueError:
        return False
    return isinstance(first, dict) and "input" in first and "outputs" in first


def _parse(data: dict[str, Any]) -> Question:
    outputs = data["outputs"]
    if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) for o in outputs):
        raise ValueError("outputs is no list of texts")
    prefix = str(data.get("answer_prefix", ""))
    space = "" if prefix.endswith(" ") else " "
    return Question(NO_DEPTH, str(data["input"]), tuple(outputs), prefix, space + outputs[0] if prefix else None)


class RulerFile(RetrievalTask):
    """The prompts of a file, in order, as they stand there.  Raises RopebendError naming the line.

    all_answers, max_answer_tokens  as in `RetrievalTask`: the file does not say them
    """

    exact = False
    depths = ()

    def __init__(self, name: str, data: str | Path, *, all_answers: bool, max_answer_tokens: int):
        self.name, self.data = f"ruler:{name}", data
        self.all_answers, self.max_answer_tokens = all_answers, max_answer_tokens
        self._questions = read_json_lines(data, _parse, "an object with input, outputs [text, …] and answer_prefix")
        if not self._questions:
            raise RopebendError(f"{data}: expected prompts, the file is empty")
        self.n_items = len(self._questions)

    def item(self, i: int) -> Item:
        """Line i."""
        return Item((self._questions[i],))

    def easy_item(self, i: int) -> Item:
        """The shortest prompts of the file: nothing shorter is known of it."""
        by_length = sorted(self._questions, key=lambda q: len(q.prompt))
        return Item((by_length[i % len(by_length)],))

    def config(self) -> dict[str, Any]:
        """The file."""
        return {"name": self.name, **self.chat_config, "protocol": "published", "data": str(self.data)}
