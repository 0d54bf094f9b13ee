"""Variable tracking: a chain of assignments in noise, after one solved example, as RULER writes it."""

from __future__ import annotations

import random
import string
from itertools import pairwise

from ropebend.tasks.length import fill
from ropebend.tasks.ruler.generated import GeneratedTask
from ropebend.tasks.ruler.needles import NOISE
from ropebend.tasks.task import NO_DEPTH, Item, Question, Tokenize

HOPS = 4
ANSWER_TOKENS = 30
EXAMPLE_LENGTH = 500  # tokens of the example, its question and answer prefix among them
NAME_LETTERS, EXAMPLE_NAME_LETTERS = 5, 3


def prompt(context: str, value: str) -> tuple[str, str]:
    """Prompt and answer prefix (which ends in a space)."""
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        f"{context}\nQuestion: Find all variables that are assigned the value {value} in the text above.",
        f" Answer: According to the chain(s) of variable assignment in the text above, {HOPS + 1} variables are "
        f"assigned the value {value}, they are: ",
    )


def chain(rng: random.Random, n_noise: int, letters: int) -> tuple[str, str, list[str]]:
    """Context of n_noise lines of noise with a chain in it, its value, and the variables that have it."""
    names: dict[str, None] = {}
    while len(names) <= HOPS:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    variables, value = list(names), str(rng.randrange(10000, 99999))
    lines = [f"VAR {variables[0]} = {value}"]
    lines += [f"VAR {b} = VAR {a} " for a, b in pairwise(variables)]
    text = [NOISE] * n_noise
    for j, place in enumerate(sorted(rng.sample(range(n_noise), len(lines)))):
        text.insert(place + j, lines[j])
    return "\n".join(text), value, variables


class VariableTracking(GeneratedTask):
    """One chain of four hops; the score is the share of the five variables found."""

    name = "ruler:vt"
    reserved = ANSWER_TOKENS
    max_answer_tokens = ANSWER_TOKENS
    min_units = HOPS + 1

    def __init__(self, *, length: int = 4096, seed: int | str = 1):
        super().__init__(length=length, seed=seed)
        self._example_noise = self.min_units

    def prepare(self, tokenize: Tokenize) -> None:
        """Find how much noise the example has."""

        def count(n: int) -> int:
            context, value, _ = chain(random.Random(0), n, EXAMPLE_NAME_LETTERS)
            return len(tokenize("".join(prompt(context, value))))

        self._example_noise = max(self.min_units, fill(count, EXAMPLE_LENGTH, self.min_units))
        super().prepare(tokenize)

    def _make(self, rng: random.Random, n_example: int, n: int) -> Item:
        context, value, variables = chain(rng, n_example, EXAMPLE_NAME_LETTERS)
        example = "".join(prompt(context, value)) + " " + " ".join(variables) + "\n\n"
        context, value, variables = chain(rng, n, NAME_LETTERS)
        text, prefix = prompt(context, value)
        # two spaces before the first name, as in the example
        expected = " " + " ".join(variables)
        return Item((Question(NO_DEPTH, example + text, tuple(variables), prefix, expected, asked=value),))

    def build(self, i: int, n: int) -> Item:
        """Item i with n lines of noise."""
        return self._make(random.Random(f"vt-{self.seed}-{i}"), self._example_noise, n)

    def easy_item(self, i: int) -> Item:
        """The chain with as little noise as there can be."""
        return self._make(random.Random(f"vt-easy-{i}"), self.min_units, self.min_units)
