"""Needles in a haystack: eight of RULER's tasks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ropebend.errors import RopebendError, UsageError
from ropebend.tasks.kv import UUID, uuid4
from ropebend.tasks.length import FilledTask
from ropebend.tasks.task import DEPTHS, NO_DEPTH, Item, Question
from ropebend.tasks.text import read_text
from ropebend.tasks.words import adjective_noun

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ANSWER_TOKENS = 128
PLACES = 40  # RULER puts needles into essays at 40 depths, evenly spaced from 0 to 1
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")

_FORMS = {"numbers": re.compile(r"\d{7}"), "uuids": UUID}


@dataclass(frozen=True)
class Kind:
    """haystack; what keys and values are; how many needles, values of each, and keys asked for at once."""

    haystack: Literal["noise", "essay", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_asked: int = 1


KINDS = {
    "niah_single_1": Kind("noise"),
    "niah_single_2": Kind("essay"),
    "niah_single_3": Kind("essay", values="uuids"),
    "niah_multikey_1": Kind("essay", n_keys=4),
    "niah_multikey_2": Kind("needles"),
    "niah_multikey_3": Kind("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Kind("essay", n_values=4),
    "niah_multiquery": Kind("essay", n_keys=4, n_asked=4),
}


@dataclass(frozen=True)
class Needle:
    """A key with one of its values."""

    key: str
    value: str

    def text(self, kind: Kind) -> str:
        """The sentence that hides it."""
        return f"One of the special magic {kind.values} for {self.key} is: {self.value}."


def prompt(kind: Kind, context: str, query: str) -> tuple[str, str]:
    """Prompt and answer prefix; one answer is asked for in the singular."""
    if kind.n_asked * kind.n_values == 1:
        what = kind.values[:-1]
        return (
            f"A special magic {what} is hidden within the following text. Make sure to memorize it. I will quiz you "
            f"about the {what} afterwards.\n{context}\n"
            f"What is the special magic {what} for {query} mentioned in the provided text?",
            f" The special magic {what} for {query} mentioned in the provided text is",
        )
    return (
        f"Some special magic {kind.values} are hidden within the following text. Make sure to memorize it. I will quiz "
        f"you about the {kind.values} afterwards.\n{context}\n"
        f"What are all the special magic {kind.values} for {query} mentioned in the provided text?",
        f" The special magic {kind.values} for {query} mentioned in the provided text are",
    )


def listed(words: Sequence[str]) -> str:
    """A, b, and c."""
    return ", ".join(words[:-1]) + ", and " + words[-1] if len(words) > 1 else words[0]


def read_essays(path: str | Path) -> list[str]:
    """The words of a text, or of RULER's PaulGrahamEssays.json ({"text": …}).  Raises RopebendError."""
    text = read_text(path)
    if str(path).removesuffix(".gz").endswith(".json"):
        try:
            text = str(json.loads(text)["text"])
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise RopebendError(
                f'{path}: expected {{"text": …}} as in RULER\'s essays ({type(e).__name__}: {e})'
            ) from None
    return text.split()


class NeedlesAnywhere(FilledTask):
    """Needles in a haystack as RULER's generator places them: anywhere.

    name    one of `KINDS`
    length  tokens of prompt, answer prefix and answer
    text    a file with essays, for the tasks that hide their needles in essays

    Raises UsageError where the text is missing or has no effect, RopebendError where it cannot be read.
    """

    all_answers = True
    reserved = ANSWER_TOKENS
    max_answer_tokens: int | None = ANSWER_TOKENS
    depths: tuple[float, ...] = ()
    protocol = "published"

    def __init__(self, name: str, *, length: int = 4096, seed: int | str = 1, text: str | Path | None = None):
        super().__init__()
        self.name, self.kind = f"ruler:{name}", KINDS[name]
        self.length, self.seed, self.text = length, seed, text
        if self.kind.haystack == "essay" and text is None:
            raise UsageError(
                f"{self.name} hides its needles in essays: give a text with --text (ruler:niah_multikey_2 needs none)"
            )
        if self.kind.haystack != "essay" and text is not None:
            raise UsageError(f"--text has no effect: {self.name} has a haystack of its own")
        self._words = read_essays(text) if text is not None else []
        self.exact = self.kind.n_values * self.kind.n_asked == 1

    def build(self, i: int, n: int) -> Item:
        """Item i in a haystack of n words, sentences or needles."""
        rng = self._rng(i)
        needles = self._needles(rng, self.kind.n_keys)
        shuffled = rng.sample(needles, len(needles))
        places = sorted(rng.sample([k / (PLACES - 1) for k in range(PLACES)], len(needles)))
        context = self._context(i, n, shuffled, places)
        asked = rng.sample(sorted({needle.key for needle in needles}), self.kind.n_asked)
        return Item((self._question(NO_DEPTH, context, needles, asked),))

    def easy_item(self, i: int) -> Item:
        """The needles alone."""
        rng = random.Random(f"{self.name}-easy-{i}")
        needles = self._needles(rng, max(2, self.kind.n_keys))
        context = "\n".join(needle.text(self.kind) for needle in needles)
        keys = list(dict.fromkeys(needle.key for needle in needles))
        return Item((self._question(0.0 if self.depths else NO_DEPTH, context, needles, keys[: self.kind.n_asked]),))

    def config(self) -> dict[str, Any]:
        """Length, protocol, depths, seed, text."""
        depths = {"depths": list(self.depths)} if self.protocol == "shared" else {}
        text = {"text": str(self.text)} if self.text is not None else {}
        settings = {"length": self.length, "protocol": self.protocol, **depths, "seed": self.seed, **text}
        return {"name": self.name, **self.chat_config, **settings}

    def _rng(self, i: int, part: str = "") -> random.Random:
        return random.Random(f"{self.name}-{self.seed}-{i}{part}")

    def _value(self, rng: random.Random) -> str:
        return uuid4(rng) if self.kind.values == "uuids" else str(rng.randint(10**6, 10**7 - 1))

    def _needles(self, rng: random.Random, n: int) -> list[Needle]:
        keys: dict[str, None] = {}
        while len(keys) < n:
            keys[uuid4(rng) if self.kind.keys == "uuids" else adjective_noun(rng)] = None
        return [Needle(key, self._value(rng)) for key in keys for _ in range(self.kind.n_values)]

    def _context(self, i: int, n: int, needles: Sequence[Needle], places: Sequence[float]) -> str:
        """n words, sentences or needles, with `needles` among them: `places` in rising order, 0 first, 1 last."""
        texts = [needle.text(self.kind) for needle in needles]
        if self.kind.haystack == "needles":
            hay = [needle.text(self.kind) for needle in self._needles(self._rng(i, "-hay"), n)]
        elif self.kind.haystack == "noise":
            hay = [NOISE] * n
        else:
            words = (self._words * -(-n // len(self._words)))[:n]
            hay = SENTENCE_END.split(" ".join(words))
        last = len(hay)
        for place, text in reversed(list(zip(places, texts, strict=True))):
            hay.insert(round(place * last), text)
        return (" " if self.kind.haystack == "essay" else "\n").join(hay)

    def _question(self, depth: float, context: str, needles: Sequence[Needle], asked: Sequence[str]) -> Question:
        text, prefix = prompt(self.kind, context, listed(asked))
        values = [needle.value for key in asked for needle in needles if needle.key == key]
        return Question(depth, text, tuple(values), prefix, f" {listed(values)}", asked=asked[0])


class Needles(NeedlesAnywhere):
    """Single and multi-key needles, of which one is asked for: by depth (protocol "shared"), or anywhere.

    depths  of the needles that are asked for (shared): 0 first in the haystack, 1 last

    Raises as `NeedlesAnywhere`, and UsageError for a protocol that there is not.
    """

    def __init__(
        self,
        name: str,
        *,
        length: int = 4096,
        depths: Sequence[float] = DEPTHS,
        protocol: str = "shared",
        seed: int | str = 1,
        text: str | Path | None = None,
    ):
        super().__init__(name, length=length, seed=seed, text=text)
        self.check_protocol(protocol)
        self.protocol = protocol
        if protocol == "shared":
            self.depths, self.all_answers = tuple(depths), False
            self.value_form, self.max_answer_tokens = _FORMS[self.kind.values], None

    def build(self, i: int, n: int) -> Item:
        """Item i in a haystack of n words, sentences or needles."""
        if self.protocol == "published":
            return super().build(i, n)
        if self.kind.haystack == "needles":  # each of them can be asked for
            hay = self._needles(self._rng(i, "-hay"), n)
            context = "\n".join(needle.text(self.kind) for needle in hay)
            at = {d: hay[round(d * (n - 1))] for d in self.depths}
            return Item(tuple(self._question(d, context, hay, [at[d].key]) for d in self.depths))
        needles = self._needles(self._rng(i), max(self.kind.n_keys, len(self.depths)))
        if self.kind.n_keys > 1:  # one at every depth, the others anywhere
            more = self._rng(i, "-places")
            places = {*self.depths} | {more.random() for _ in range(len(needles) - len({*self.depths}))}
            at_place = dict(zip(sorted(places), needles, strict=False))
            context = self._context(i, n, list(at_place.values()), list(at_place))
            return Item(tuple(self._question(d, context, needles, [at_place[d].key]) for d in self.depths))
        needle = needles[0]
        return Item(
            tuple(self._question(d, self._context(i, n, [needle], [d]), [needle], [needle.key]) for d in self.depths)
        )
