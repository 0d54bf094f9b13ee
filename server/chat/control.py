"""Control tokens in what users write stay text: who wrote `<|im_end|>`, the template or a message?

Before rendering, control tokens in the messages are marked with characters that occur nowhere in them.  In the rendered
text the marks show which occurrences of a control token the template wrote; they are taken out again.  Only around the
others the text is tokenised in parts, so a prompt without any has the same tokens as without this.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A piece of a prompt.

    special  control tokens in it are the template's; False: they are text
    cuts     where in the text those begin, if they are text
    """

    text: str
    special: bool
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A rendered chat, in pieces."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(part.text for part in self.parts)

    def starts_with(self, token: str) -> bool:
        """Whether the template begins with this control token, as BOS."""
        return bool(token) and self.text.startswith(token) and self.parts[0].special

    def tokens(
        self, tokenize: Callable[[str, bool, bool], Sequence[int]], control: Set[int], *, add_special: bool
    ) -> list[int]:
        """Its tokens.

        tokenize     (text, add_special, parse_special) to tokens
        control      ids of the control tokens
        add_special  put BOS first if the model wants it
        """
        out: list[int] = []
        for i, part in enumerate(self.parts):
            first = add_special and i == 0
            tokens = tokenize(part.text, first, part.special)
            # some tokenisers (RWKV's) read control tokens anyway, but not across the end of a text
            if part.cuts and not control.isdisjoint(tokens):
                ends = [0, *(cut + 1 for cut in part.cuts), len(part.text)]
                texts = [part.text[a:b] for a, b in itertools.pairwise(ends)]
                tokens = [t for j, text in enumerate(texts) for t in tokenize(text, first and j == 0, False)]
            out += tokens
        return out


class ControlTokens:
    """The control tokens of a vocabulary, by their text."""

    def __init__(self, texts: Collection[str]):
        self._texts = frozenset(t for t in texts if len(t) > 1)
        #: Lengths of the tokens that begin with a character, longest first: Gemma has thousands of tokens.
        self._lengths: dict[str, list[int]] = {}
        for first, length in sorted({(t[0], len(t)) for t in self._texts}, reverse=True):
            self._lengths.setdefault(first, []).append(length)
        self._first = re.compile(f"[{re.escape(''.join(self._lengths))}]") if self._texts else None
        self._heads = {t[:n] for t in self._texts for n in range(1, len(t))}
        self._longest_half = max(map(len, self._heads), default=0)
        self._tails = {t[n:] for t in self._texts for n in range(1, len(t))}

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of the control tokens in a text."""
        at = 0
        while self._first is not None and (found := self._first.search(text, at)) is not None:
            at = found.start()
            for length in self._lengths[found[0]]:
                if text[at : at + length] in self._texts:
                    yield at, at + length
                    at += length
                    break
            else:
                at += 1

    def _marked_text(self, text: str, marks: tuple[str, str, str]) -> str:
        begin, end, half = marks
        out: list[str] = []
        at = 0
        for a, b in self.find(text):
            out += [text[at:a], begin, text[a:b], end]
            at = b
        out.append(text[at:])
        # what may be half of a control token, the rest coming from elsewhere
        n = self._longest_half
        if any(text[-i:] in self._heads for i in range(1, min(n, len(text)) + 1)):
            out.append(half)
        if any(text[:i] in self._tails for i in range(1, min(n, len(text)) + 1)):
            out.insert(0, half)
        return "".join(out)

    def render(self, value: Any, render: Callable[[Any], str]) -> Prompt:
        """The prompt that `render` makes of `value` (messages, tools, …: what JSON holds), with its parts."""
        if self._first is None:
            return Prompt((Part(render(value), True),))
        marks = _unused(value)
        marked = _walk(value, lambda text: self._marked_text(text, marks))
        if marked == value:
            return Prompt((Part(render(value), True),))
        return self._parted(render(marked), marks)

    def _parted(self, text: str, marks: tuple[str, str, str]) -> Prompt:
        at: dict[str, set[int]] = {mark: set() for mark in marks}
        pieces: list[str] = []
        n = 0
        # a template may have had them escaped in JSON
        names = {form: mark for mark in marks for form in (mark, f"\\u{ord(mark):04x}")}
        for piece in re.split(f"({'|'.join(map(re.escape, names))})", text):
            if piece in names:
                at[names[piece]].add(n)
            else:
                pieces.append(piece)
                n += len(piece)
        plain = "".join(pieces)
        begin, end, half = (at[mark] for mark in marks)
        inside = sorted(begin | end | half)
        parts: list[Part] = []
        done = template = 0  # what is in parts, and the end of the template's last control token
        forged: list[int] = []  # where, since then

        def close(end: int) -> None:
            parts.append(Part(plain[done:template], True))
            parts.append(Part(plain[template:end], False, tuple(a - template for a in forged)))

        for a, b in self.find(plain):
            if (a in begin and b in end) or bisect.bisect_right(inside, a) < bisect.bisect_left(inside, b):
                forged.append(a)
                continue
            if forged:
                close(a)
                done, forged = a, []
            template = b
        if forged:
            close(len(plain))
            done = len(plain)
        parts.append(Part(plain[done:], True))
        return Prompt(tuple(part for part in parts if part.text))


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    """The value with all its strings changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_walk(k, change): _walk(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_walk(v, change) for v in value]
    return value


def _unused(value: Any) -> tuple[str, str, str]:
    """Three characters for private use that are in none of the strings."""
    used: set[str] = set()

    def look(text: str) -> str:
        used.update(re.findall("[\ue000-\uf8ff]", text))
        # so that the escaped form is not in there either
        used.update(chr(int(x, 16)) for x in re.findall(r"\\u([ef][0-9a-f]{3})", text))
        return text

    _walk(value, look)
    free = (c for c in map(chr, range(0xE000, 0xF900)) if c not in used)
    return next(free), next(free), next(free)
