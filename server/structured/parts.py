"""What a text may be, in parts that can be put together: a call of a function is a text, JSON by a schema, a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ropebend.errors import RopebendError


class GrammarError(RopebendError):
    """A schema or a grammar cannot be used; the text says why and where, for whoever sent it."""


@dataclass(frozen=True)
class Text:
    """Exactly this text.  The names of control tokens in it are those tokens."""

    text: str


@dataclass(frozen=True, eq=False)
class Json:
    """JSON that follows a schema.

    strict  False: keywords that nothing can hold the model to are left out with a warning, not refused
    owner   whose schema it is, for errors: "the tool 'get_weather'"
    closed  objects that name their properties and do not speak of others have no others, as in other servers
    """

    schema: Mapping[str, Any] | bool = field(repr=False)  # may nest beyond what repr can follow
    strict: bool = True
    owner: str = ""
    closed: bool = True


@dataclass(frozen=True)
class Regex:
    """All of the text matches this regular expression of Rust's `regex` (no look-around)."""

    pattern: str


@dataclass(frozen=True)
class Until:
    """Any text up to the first `end`, and `end`.

    pattern  what the text is, as in `Regex`; it never holds `end`
    """

    end: str
    pattern: str = "(?s:.*)"


@dataclass(frozen=True)
class Seq:
    """One after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Choice:
    """One of several, at least one."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Several:
    """The part, any number of times from `least` to `most` (None: no end), with `between` between them."""

    part: Part
    least: int = 1
    most: int | None = None
    between: str = ""


@dataclass(frozen=True)
class Grammar:
    """A whole grammar, which nothing can stand beside: Lark if it begins with ``%llguidance``, else GBNF."""

    text: str


Part = Text | Json | Regex | Until | Seq | Choice | Several
