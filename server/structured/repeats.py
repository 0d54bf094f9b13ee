"""How often a regular expression repeats what it repeats.

llguidance bounds the work of a step by the expressions it makes, but not what one of them takes: of
``((a{1000}){1000})`` a step takes seconds and gigabytes.  Counts that do not nest are cheap, however large.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ropebend.server.structured.parts import GrammarError

#: Repetitions of repetitions: a step of a vocabulary of 49,152 tokens then takes 0.1 s at worst.
MAX_NESTED = 10_000

_COUNT = r"(?P<count>\{\s*\d*\s*(?:,\s*\d*\s*)?\})"
_REGEX = re.compile(rf"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|{_COUNT}|.", re.DOTALL)
_LARK = re.compile(
    rf"""(?://|\#)[^\n]*|"(?:\\.|[^"\\])*"|/(?P<regex>(?:\\.|[^/\\\n])+)/|{_COUNT}|(?P<old>~\s*\d+(?:\s*\.\.\s*\d+)?)
    |(?P<name>[A-Z_][\w-]*)|.""",
    re.DOTALL | re.VERBOSE,
)
_RULE = re.compile(r"^[?!]?([A-Za-z_][\w-]*)(?:\[[^\]\n]*\])?(?:\.\d+)?\s*:", re.MULTILINE)


def check_regex(pattern: str) -> None:
    """GrammarError if repetitions nest too deeply in a regular expression."""
    _check(_largest(_REGEX, pattern, lambda name: 1))


def check_lark(source: str) -> None:
    """GrammarError if they do in a terminal of a grammar in Lark, those that it is made of included."""
    heads = list(_RULE.finditer(source))
    ends = [h.start() for h in heads[1:]] + [len(source)]
    bodies = {h[1]: source[h.end() : end] for h, end in zip(heads, ends, strict=True)}
    known: dict[str, int] = {}

    def weight(name: str) -> int:
        if name not in known:
            known[name] = 1  # of one that refers to itself, which llguidance refuses
            known[name] = _largest(_LARK, bodies.get(name, ""), weight)
        return known[name]

    try:
        for name in bodies:
            if name == name.upper():
                _check(weight(name))
            for m in re.finditer(r"/((?:\\.|[^/\\\n])+)/", bodies[name]):
                check_regex(m[1])
    except RecursionError:
        raise GrammarError("a terminal is made of others in too long a chain") from None


def _check(largest: int) -> None:
    if largest > MAX_NESTED:
        raise GrammarError(f"repetitions of repetitions, {largest} in all: expected at most {MAX_NESTED}")


def _largest(tokens: re.Pattern[str], source: str, weight: Callable[[str], int]) -> int:
    """The largest product of counts that nest.  weight: the same of a terminal of this name."""
    outer: list[int] = []  # the largest so far around each open group
    most = last = 1  # so far, and of what a count would be about
    for m in tokens.finditer(source):
        groups = m.groupdict()
        count = groups["count"] or groups.get("old")
        if m[0] == "(":
            outer.append(most)
            most = last = 1
        elif m[0] == ")" and outer:
            last, most = most, max(outer.pop(), most)
        elif count:
            times = max(map(int, re.findall(r"\d+", count)), default=1)
            last = min(times, MAX_NESTED) if last == 1 else last * max(times, 1)
        elif groups.get("regex"):
            last = _largest(_REGEX, groups["regex"], weight)
        elif groups.get("name"):
            last = weight(groups["name"])
        elif m[0] not in "*+?":
            last = 1
        most = max(most, last)
    return max(most, *outer) if outer else most
