"""Parts of a text, or a whole grammar, as Lark that llguidance reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from ropebend.server.structured import gbnf, schemas
from ropebend.server.structured.parts import Choice, Grammar, GrammarError, Json, Part, Regex, Seq, Text, Until
from ropebend.server.structured.repeats import check_lark, check_regex
from ropebend.server.structured.schemas import Settled

#: Between the parts of JSON, as llama.cpp has it: a blank, or a line break or two and an indentation.  Without an end
#: to it a small model writes blanks until the context is full.
_WHITE = r" |\n{1,2}[ \t]{0,20}"

#: What begins a grammar in Lark, as in llama.cpp.
LARK = "%llguidance"


@dataclass(frozen=True)
class Written:
    """A grammar in Lark, and the schemas in it."""

    source: str
    schemas: tuple[tuple[Json, Settled], ...] = ()


def written(part: Part | Grammar, specials: Mapping[str, int]) -> Written:
    """specials: name of each control token → its id.  GrammarError if it cannot be written."""
    if isinstance(part, Grammar):
        if "\0" in part.text:
            raise GrammarError("a NUL character, which no grammar can hold")
        if not part.text.lstrip().startswith(LARK):
            return Written(gbnf.to_lark(part.text, specials))
        check_lark(part.text)
        return Written(part.text)
    writer = _Writer(specials)
    start = writer.item(part)
    return Written("\n".join([f"{LARK} {{}}", f"start: {start}", *writer.rules]), tuple(writer.schemas))


def json_rule(schema: dict[str, Any], part: Json) -> str:
    """The right side of the rule for JSON that follows a settled schema."""
    options = {
        "whitespace_pattern": _WHITE,
        "json_allow_general_unicode_escapes": True,
        "lenient": not part.strict,
    }
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


class _Writer:
    """Every part that is more than a word becomes a rule."""

    def __init__(self, specials: Mapping[str, int]):
        self.rules: list[str] = []
        self.schemas: list[tuple[Json, Settled]] = []
        self._specials = specials

    def _rule(self, body: str) -> str:
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def item(self, part: Part) -> str:
        if isinstance(part, Text):
            return self._text(part.text)
        if isinstance(part, Json):
            return self._json(part)
        if isinstance(part, Regex):
            if "\0" in part.pattern:
                raise GrammarError("a NUL character, which no regular expression can hold")
            check_regex(part.pattern)
            return f"/{regex_to_lark(part.pattern, '')}/"
        if isinstance(part, Until):
            check_regex(part.pattern)
            pattern = f"/{regex_to_lark(part.pattern, '')}/"
            if part.end in self._specials:
                return self._rule(f"{pattern} <[{self._specials[part.end]}]>")
            name = f"part_{len(self.rules)}"
            self.rules.append(f"{name}[lazy]: {pattern} {json.dumps(part.end, ensure_ascii=False)}")
            return name
        if isinstance(part, Seq):
            return self._rule(" ".join(map(self.item, part.parts)) or '""')
        if isinstance(part, Choice):
            return self._rule(" | ".join(map(self.item, part.parts)))
        item = self.item(part.part)
        if not part.between or part.most == 1:
            return self._rule(f"{item}{_times(part.least, part.most)}")
        more = self._rule(f"{self._text(part.between)} {item}")
        most = None if part.most is None else part.most - 1
        times = _times(max(part.least - 1, 0), most)
        return self._rule(f"{item} {more}{times}" + (' | ""' if part.least == 0 else ""))

    def _text(self, text: str) -> str:
        words = gbnf.spell(text, self._specials)
        return self._rule(" ".join(words) or '""')

    def _json(self, part: Json) -> str:
        settled = schemas.settled(part)
        self.schemas.append((part, settled))
        return self._rule(json_rule(settled.root, part))


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"
