"""GBNF, the grammars of llama.cpp, as Lark that llguidance reads.

llguidance has a converter of its own (``gbnf_to_lark``), which makes words of characters.  llguidance takes the longest
word there is, so that ``root ::= name "x"`` with ``name ::= [a-z]+`` would never find its x.  Here every character is a
word: the grammar means what it means in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from ropebend.server.structured.parts import GrammarError

_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+|\#[^\r\n]*)
    |(?P<newline>\r\n?|\n)
    |(?P<defined>::=)
    |(?P<name>[A-Za-z0-9_-]+)
    |"(?P<text>(?:\\.|[^"\\])*)"
    |\[(?P<class>(?:\\.|[^\]\\])*)\]
    |(?P<token>!?<(?:\[\d+\]|[^<>\s]+)>)
    |(?P<times>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<sign>[().|])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|(.)", re.DOTALL)
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}

#: A count of repetitions, as in llama.cpp.
MAX_TIMES = 2000


def to_lark(source: str, specials: Mapping[str, int]) -> str:
    """The rules of `source` in Lark, `root` as `start`.

    specials: name of each control token → its id.  GrammarError with line and column if it is no GBNF.
    """
    return _Reader(source, specials).read()


def spell(text: str, specials: Mapping[str, int]) -> list[str]:
    """A text as a sequence of Lark's words, a character each; names of control tokens also as those tokens."""
    words: list[str] = []
    names = sorted((name for name in specials if name in text), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    for i, piece in enumerate(pieces):
        letters = [f"/{_point(c)}/" for c in piece]
        if i % 2:  # between the matches stand the names
            words.append(f"(<[{specials[piece]}]> | {' '.join(letters)})")
        else:
            words += letters
    return words


def _point(character: str) -> str:
    return f"\\x{{{ord(character):X}}}"


class _Reader:
    """Goes through the tokens once.  A group becomes a rule of its own, so that nothing nests."""

    def __init__(self, source: str, specials: Mapping[str, int]):
        self._source = source
        self._specials = specials
        self._rules: dict[str, str] = {}
        self._used: dict[str, int] = {}
        self._at = 0

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        line = self._source.count("\n", 0, at) + 1
        column = at - (self._source.rfind("\n", 0, at) + 1) + 1
        near = self._source[at : at + 20].split("\n")[0]
        raise GrammarError(f"line {line}, column {column}{f', at {near!r}' if near else ''}: {what}")

    def read(self) -> str:
        name, expected, nested = "", "name", 0
        items: list[str] = []  # of the rule or group being read
        outer: list[tuple[list[str], int]] = []  # those around the open groups, and where each group began
        while self._at < len(self._source):
            token = _TOKEN.match(self._source, self._at)
            if token is None:
                self._fail("expected a rule, a text in quotes, a class in brackets or ( ) | * + ? { }")
            kind, value = str(token.lastgroup), token[str(token.lastgroup)]
            if kind == "newline" and expected == "more" and not outer and items and items[-1] != "|":
                self._define(name, items)
                expected = "name"
            elif kind in ("blank", "newline"):
                pass
            elif expected == "name":
                if kind != "name":
                    self._fail("expected the name of a rule")
                name, items, expected = value, [], "defined"
            elif expected == "defined":
                if kind != "defined":
                    self._fail("expected ::=")
                expected = "more"
            elif value == "(":
                outer.append((items, self._at))
                items = []
            elif value == ")":
                if not outer:
                    self._fail("a ) without (")
                inner, items = items, outer.pop()[0]
                if len(inner) == 1 and inner[0] != "|":
                    items.append(f"({inner[0]})" if inner[0][-1] in "*+?}" else inner[0])
                else:
                    group = f"group_{nested}"
                    nested += 1
                    self._rules[group] = _body(inner)
                    items.append(group)
            elif kind == "times":
                if not items or items[-1] == "|":
                    self._fail(f"nothing before it to repeat with {value}")
                items[-1] = self._repeated(items[-1], value)
            else:
                items.append(self._item(kind, value))
            self._at = token.end()
        if outer:
            self._fail("a ( without )", outer[-1][1])
        if expected == "defined":
            self._fail("expected ::=")
        if expected == "more":
            self._define(name, items)
        return self._finished()

    def _define(self, name: str, items: list[str]) -> None:
        self._rules[f"rule_{name}"] = _body(items)

    def _item(self, kind: str, value: str) -> str:
        if kind == "name":
            self._used.setdefault(value, self._at)
            return f"rule_{value}"
        if kind == "text":
            words = spell("".join(self._characters(value)), self._specials)
            return f"({' '.join(words)})" if len(words) > 1 else words[0] if words else '""'
        if kind == "class":
            return self._class(value)
        if kind == "token":
            return self._token(value)
        if value == ".":
            return "/(?s:.)/"
        if value == "|":
            return "|"
        self._fail("expected a rule, a text in quotes, a class in brackets or ( ) | * + ? { }")

    def _characters(self, body: str) -> list[str]:
        out = []
        for m in _CHARACTER.finditer(body):
            code = m[1] or m[2] or m[3]
            if code:
                point = int(code, 16)
                if point > 0x10FFFF or 0xD800 <= point < 0xE000:
                    self._fail(f"{m[0]} is no character")
                out.append(chr(point))
            elif m[4] is not None and m[4] not in _ESCAPES:
                self._fail(f"the escape {m[0]} is not known")
            else:
                out.append(m[5] if m[4] is None else _ESCAPES[m[4]])
        return out

    def _class(self, body: str) -> str:
        negated = body.startswith("^")
        marks = [m.start() for m in _CHARACTER.finditer(body[negated:])]
        characters = self._characters(body[negated:])
        bare = [body[negated:][i] == "-" for i in marks]  # a - that was not escaped
        out, i = "", 0
        while i < len(characters):
            low = high = characters[i]
            if i + 2 < len(characters) and bare[i + 1]:
                high = characters[i + 2]
                i += 2
            if low > high:
                self._fail(f"the range {low}-{high} goes backwards")
            out += _point(low) if low == high else f"{_point(low)}-{_point(high)}"
            i += 1
        if not out:
            self._fail("a class without characters")
        return f"/[{'^' if negated else ''}{out}]/"

    def _token(self, value: str) -> str:
        name = value.removeprefix("!")
        if not name.startswith("<["):
            if name not in self._specials:
                self._fail(f"this model has no control token {name}")
            name = f"<[{self._specials[name]}]>"
        return name.replace("<[", "<[^") if value.startswith("!") else name

    def _repeated(self, item: str, times: str) -> str:
        if times[0] == "{":
            counts = [int(n) for n in re.findall(r"\d+", times)]
            if max(counts) > MAX_TIMES:
                self._fail(f"expected at most {MAX_TIMES} repetitions")
            if counts != sorted(counts):
                self._fail("more repetitions at least than at most")
            if counts[-1] == 0 and not times.rstrip("} ").endswith(","):
                return '""'
            least, most = counts[0], "" if "," in times else str(counts[0])
            times = f"{{{least},{counts[1] if len(counts) > 1 else most}}}"
        if item[-1] in "*+?}":  # Lark takes one such sign
            group = f"again_{len(self._rules)}"
            self._rules[group] = item
            item = group
        return item + times

    def _finished(self) -> str:
        if "rule_root" not in self._rules:
            raise GrammarError("there is no rule called root")
        for name, at in self._used.items():
            if f"rule_{name}" not in self._rules:
                self._fail(f"there is no rule called {name}", at)
        # rules of characters alone would be words if their names were in capitals
        names = {name: f"r{i}" for i, name in enumerate(self._rules)}
        names["rule_root"] = "start"
        words = re.compile("|".join(("/(?:[^/])*/", r'""', r"(?:rule|group|again)_[\w-]+")))
        out = ["%llguidance {}"]
        for name, body in self._rules.items():
            out.append(f"{names[name]}: {words.sub(lambda m: names.get(m[0], m[0]), body)}")
        return "\n".join(out)


def _body(items: list[str]) -> str:
    """The alternatives of a rule, of which one may be empty."""
    out, empty = [], True
    for item in [*items, "|"]:
        if item == "|" and empty:
            out.append('""')
        out.append(item)
        empty = item == "|"
    return " ".join(out[:-1])
