"""Reading a text that comes in pieces, so that where it is cut never matters.

A parser is a generator that yields whenever it needs more text; `Reader`'s generators yield for it.  Each decides only
what more text could not change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: A step of parsing: yields to get more text, returns its result.
Reading = Generator[None, None, T]

SPACE = " \t\r\n"


class Stops:
    """Literals to look for.  None may be the beginning of another."""

    def __init__(self, literals: Iterable[str]):
        self.literals = tuple(dict.fromkeys(literals))
        for a in self.literals:
            if any(a != b and b.startswith(a) for b in self.literals):
                raise ValueError(f"{a!r} begins another stop")
        self._pattern = re.compile("|".join(map(re.escape, self.literals)) or "(?!)")
        self._beginnings = {a[:n] for a in self.literals for n in range(1, len(a))}
        self._longest = max(map(len, self.literals), default=1)

    def find(self, text: str, start: int, ended: bool) -> tuple[int, str]:
        """Where the first stop is, and which; else up to where there certainly begins none, and ""."""
        match = self._pattern.search(text, start)
        end = match.start() if match else len(text)
        if not ended:
            # a stop that may still become complete, and begins before that one
            for at in range(max(start, len(text) - self._longest + 1), end):
                if text[at:] in self._beginnings:
                    return at, ""
        return end, match[0] if match else ""


class Reader:
    """The text so far and a place in it, `at`, to which a parser may come back until `forget`."""

    def __init__(self) -> None:
        self._text = ""
        self._gone = 0  # characters forgotten
        self._here = 0
        self.ended = False

    def feed(self, text: str) -> None:
        self._text += text

    @property
    def at(self) -> int:
        """Characters read."""
        return self._gone + self._here

    @at.setter
    def at(self, place: int) -> None:
        self._here = place - self._gone

    def since(self, place: int) -> str:
        """The text from `place` to here."""
        return self._text[place - self._gone : self._here]

    def forget(self) -> None:
        """Drop what was read."""
        self._text = self._text[self._here :]
        self._gone += self._here
        self._here = 0

    def _more(self) -> Reading[bool]:
        """Wait for more text; False if there is none."""
        n = len(self._text)
        while len(self._text) == n:
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        while self._here == len(self._text):
            if not (yield from self._more()):
                return ""
        return self._text[self._here]

    def space(self) -> Reading[str]:
        """Skip white space and return it."""
        start = self.at
        while (yield from self.peek()) in SPACE and self._here < len(self._text):
            self._here += 1
        return self.since(start)

    def take(self, literal: str) -> Reading[bool]:
        """Skip this text if it comes next."""
        while len(got := self._text[self._here : self._here + len(literal)]) < len(literal):
            if not literal.startswith(got) or not (yield from self._more()):
                return False
        if got != literal:
            return False
        self._here += len(literal)
        return True

    def word(self) -> Reading[str]:
        """Letters, digits, ``_ . -``."""
        start = self.at
        while (c := (yield from self.peek())) and (c.isalnum() or c in "_.-"):
            self._here += 1
        return self.since(start)

    def take_any(self, literals: Iterable[str]) -> Reading[str]:
        """Skip the first of these that comes next; "" if none does."""
        for literal in literals:
            if (yield from self.take(literal)):
                return literal
        return ""

    def skip(self, literals: Sequence[str]) -> Reading[None]:
        """Skip white space and these, as often as they come."""
        while (yield from self.space()) or (yield from self.take_any(literals)):
            pass

    def close(self, literals: Iterable[str]) -> Reading[bool]:
        """Skip white space and one of these, also one that the end of the text cuts off; nothing if none comes."""
        start = self.at
        yield from self.space()
        place = self.at
        if (yield from self.take_any(literals)):
            return True
        if (yield from self.peek()) and self.ended:
            rest = self._text[place - self._gone :]
            if any(literal.startswith(rest) for literal in literals):
                self._here = len(self._text)
                return True
        self.at = start
        return False

    def until(self, stops: Stops, limit: int) -> Reading[tuple[str, str]]:
        """The text before the next stop, which is skipped too, and the stop.

        ("", "") if none comes within `limit` characters; text that ends before is skipped, else nothing.
        """
        while True:
            end, stop = stops.find(self._text, self._here, self.ended)
            if end - self._here > limit:
                return "", ""
            if not stop and self.ended:
                self._here = len(self._text)
                return "", ""
            if stop:
                text = self._text[self._here : end]
                self._here = end + len(stop)
                return text, stop
            yield from self._more()

    def flow(self, stops: Stops, emit: Callable[[str], object]) -> Reading[str]:
        """Emit the text before the next stop as it comes; the stop, skipped, or "" at the end."""
        while True:
            end, stop = stops.find(self._text, self._here, self.ended)
            if end > self._here:
                emit(self._text[self._here : end])
                self._here = end
            if stop:
                self._here += len(stop)
                return stop
            self.forget()
            if not (yield from self._more()) and self._here == len(self._text):
                return ""

    def value(self, emit: Callable[[str], object], keep: bool = False) -> Reading[bool]:
        """Emit the source of a JSON value as it comes; False if it is cut off.

        Only brackets and strings are looked at: what is no JSON otherwise passes.  keep: nothing is forgotten.
        """
        first = yield from self.peek()
        if first and first not in '{["':
            return (yield from self._scalar(emit))
        depth, quoted, escaped = 0, False, False
        while (yield from self.peek()):
            start = self._here
            for at in range(start, len(self._text)):
                c = self._text[at]
                if escaped:
                    escaped = False
                elif quoted:
                    escaped = c == "\\"
                    quoted = c != '"'
                elif c == '"':
                    quoted = True
                elif c in "{[":
                    depth += 1
                elif c in "}]":
                    depth -= 1
                if not (depth or quoted):
                    self._here = at + 1
                    emit(self._text[start : at + 1])
                    return True
            self._here = len(self._text)
            emit(self._text[start:])
            if not keep:
                self.forget()
        return False

    def _scalar(self, emit: Callable[[str], object]) -> Reading[bool]:
        start = self.at
        while (c := (yield from self.peek())) and c not in ",:]}" + SPACE:
            self._here += 1
        emit(self.since(start))
        return bool(c) and self.at > start

    def source(self) -> Reading[str | None]:
        """The source of a JSON value; None if it is cut off or none."""
        parts: list[str] = []
        whole = yield from self.value(parts.append, keep=True)
        return "".join(parts) if whole else None

    def string(self) -> Reading[str | None]:
        """A JSON string; None if there is none."""
        if (yield from self.peek()) != '"':
            return None
        source = yield from self.source()
        try:
            return None if source is None else json.loads(source, strict=False)
        except ValueError:
            return None
