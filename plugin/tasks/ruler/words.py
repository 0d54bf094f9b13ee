"""Word counts: RULER's common words (in a numbered list) and frequent words (coded, after a Zeta distribution)."""

from __future__ import annotations

import math
import random
import string

import numpy as np

from ropebend.tasks.ruler.generated import GeneratedTask
from ropebend.tasks.task import NO_DEPTH, Item, Question
from ropebend.tasks.words import adjective_noun, all_words

N_COMMON = 10
SHORT = 4096  # below this length RULER repeats its words less often
CWE_TOKENS, FWE_TOKENS = 120, 50
ZETA_OF_2 = math.pi**2 / 6  # as scipy's zeta(2.0), to the bit


def common_prompt(context: str) -> tuple[str, str]:
    """Prompt and answer prefix of common words."""
    return (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        f"appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?",
        " Answer: The top 10 words that appear most often in the list are:",
    )


def frequent_prompt(context: str) -> tuple[str, str]:
    """Prompt and answer prefix of frequent words."""
    return (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        f"appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?",
        " Answer: According to the coded text above, the three most frequently appeared words are:",
    )


def numbered(words: list[str]) -> str:
    """1. word 2. word …"""
    return " ".join(f"{k}. {word}" for k, word in enumerate(words, 1))


def word_list(rng: random.Random, n: int, often: int, seldom: int) -> tuple[str, list[str]]:
    """A numbered list of n words, ten of them `often` times and the rest `seldom` times; and those ten."""
    words = rng.sample(all_words(), min(n, len(all_words())))
    known = set(words)
    while len(words) < n:  # RULER goes on with a larger list of words
        word = adjective_noun(rng)
        if word not in known:
            known.add(word)
            words.append(word)
    common = words[:N_COMMON]
    shuffled = common * often + words[N_COMMON:] * seldom
    rng.shuffle(shuffled)
    return numbered(shuffled), common


class CommonWords(GeneratedTask):
    """The ten words of a list that stand there most often, after one solved example; score: the share found."""

    name = "ruler:cwe"
    reserved = CWE_TOKENS
    max_answer_tokens = CWE_TOKENS
    min_units = N_COMMON + 1

    def _make(self, rng: random.Random, n: int, length: int) -> Item:
        of_example, often, seldom = ((20, 3, 1), 6, 1) if length < SHORT else ((40, 10, 3), 30, 3)
        context, common = word_list(rng, *of_example)
        example = "".join(common_prompt(context)) + " " + numbered(common) + "\n"
        context, common = word_list(rng, n, often, seldom)
        text, prefix = common_prompt(context)
        return Item((Question(NO_DEPTH, example + text, tuple(common), prefix, " " + numbered(common)),))

    def build(self, i: int, n: int) -> Item:
        """Item i with n different words."""
        assert self.length is not None
        return self._make(random.Random(f"cwe-{self.seed}-{i}"), n, self.length)

    def easy_item(self, i: int) -> Item:
        """Twelve words."""
        return self._make(random.Random(f"cwe-easy-{i}"), N_COMMON + 2, 0)


class FrequentWords(GeneratedTask):
    """The three most frequent words of a coded text, whose frequencies fall with the square of their rank; score: the
    share found.
    """

    name = "ruler:fwe"
    reserved = FWE_TOKENS
    max_answer_tokens = FWE_TOKENS
    min_units = 60  # fewer, and the third word is as frequent as the fourth

    def _make(self, rng: random.Random, n: int, n_words: int) -> Item:
        coded: dict[str, None] = {}
        while len(coded) < n_words:
            coded["".join(rng.choices(string.ascii_lowercase, k=6))] = None
        vocabulary = ["...", *list(coded)[1:]]  # the most frequent one is noise
        counts = (n * np.arange(1, n_words + 1) ** -2.0 / ZETA_OF_2).astype(int)
        text = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        rng.shuffle(text)
        best = vocabulary[1:4]
        prompt, prefix = frequent_prompt(" ".join(text))
        return Item((Question(NO_DEPTH, prompt, tuple(best), prefix, f" {', '.join(best)}"),))

    def build(self, i: int, n: int) -> Item:
        """Item i with n words, noise among them."""
        assert self.length is not None
        n_words = max(5, (self.length - self.reserved) // 50)
        return self._make(random.Random(f"fwe-{self.seed}-{i}"), n, n_words)

    def easy_item(self, i: int) -> Item:
        """Sixty words."""
        return self._make(random.Random(f"fwe-easy-{i}"), self.min_units, 5)
