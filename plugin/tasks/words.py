"""English words to make keys of: those that RULER and LongEval draw from (the package wonderwords)."""

from __future__ import annotations

import functools
import random

from wonderwords import Defaults, RandomWord


@functools.cache
def nouns() -> tuple[str, ...]:
    """Some 6,800 nouns."""
    return _words(Defaults.NOUNS)


@functools.cache
def adjectives() -> tuple[str, ...]:
    """Some 900 adjectives."""
    return _words(Defaults.ADJECTIVES)


@functools.cache
def all_words() -> tuple[str, ...]:
    """Nouns, adjectives and verbs, each once, sorted."""
    return tuple(sorted({*nouns(), *adjectives(), *_words(Defaults.VERBS)}))


def _words(kind: Defaults) -> tuple[str, ...]:
    # sorted, so that another order in another version draws the same
    words = RandomWord(enhanced_prefixes=False, word=kind).filter(include_categories=("word",))
    return tuple(sorted(set(words)))


def adjective_noun(rng: random.Random) -> str:
    """A key like "acrid-disposition", one of six million."""
    return f"{rng.choice(adjectives())}-{rng.choice(nouns())}"
