"""How much context fills a length in tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ropebend.choices import PROTOCOLS
from ropebend.errors import RopebendError, UsageError
from ropebend.tasks.task import Item, Question, RetrievalTask, Tokenize


class FilledTask(RetrievalTask):
    """Prompts with as much context as `length` tokens allow, and never more.

    A subclass says what item i looks like with n units of context (pairs, lines, sentences, documents).

    length     in tokens, of prompt, answer prefix and room for the answer; None: `n_units` is fixed
    n_units    units of every item where there is no length
    reserved   tokens of the answer's room
    min_units  fewer make no item
    """

    length: int | None = None
    n_units: int | None = None
    reserved: int = 0
    min_units: int = 1

    @staticmethod
    def check_size(units: str, n_units: int | None, length: int | None, data: object = None) -> None:
        """Raise UsageError for a number of `units` ("--keys") that cannot be, or stands beside the length or a file."""
        if n_units is not None and length is not None:
            raise UsageError(f"{units} and --length contradict each other: give one of them")
        if n_units is not None and n_units < 1:
            raise UsageError(f"{units}: expected at least 1, got {n_units}")
        for option, given in ((units, n_units), ("--length", length)):
            if data is not None and given is not None:
                raise UsageError(f"{option} has no effect on --data: each line of the file has a size of its own")

    @staticmethod
    def check_protocol(protocol: str) -> None:
        """Raise UsageError for a protocol that there is not."""
        if protocol not in PROTOCOLS:
            raise UsageError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")

    def __init__(self) -> None:
        self._tokenize: Tokenize | None = None
        self._filled: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokeniser, which belongs to a process: `prepare` comes anew where this is unpickled."""
        return {**self.__dict__, "_tokenize": None, "_filled": {}}

    def prepare(self, tokenize: Tokenize) -> None:
        """Keep the tokeniser, and see that a prompt can be made at all.  Raises RopebendError as `units` does."""
        self._tokenize, self._filled = tokenize, {}
        if self.length is not None:
            self.units(0)

    @property
    def max_prompt_tokens(self) -> int | None:
        """The length, less the answer's room; None without a length."""
        return None if self.length is None else self.length - self.reserved

    def build(self, i: int, n: int) -> Item:
        """Item i with n units of context."""
        raise NotImplementedError

    def item(self, i: int) -> Item:
        """Item i, as long as the length allows.  Raises RopebendError if it is too short for any."""
        return self.build(i, self.units(i))

    def units(self, i: int) -> int:
        """How many units of context item i holds.

        Raises RopebendError if the length is too short for any, RuntimeError if there is a length and `prepare` was not
        called.
        """
        if self.length is None:
            assert self.n_units is not None
            return self.n_units
        if i not in self._filled:
            limit, least = self.length - self.reserved, self.min_units
            # the items before are a good guess: they differ in what was drawn only
            guess = next(reversed(self._filled.values()), 0)
            n = fill(lambda n: self._count(self.build(i, n).questions[:1]), limit, least, guess)
            while n >= least and self._count(self.build(i, n).questions) > limit:
                n -= 1
            if n < least:
                shortest = self._count(self.build(i, least).questions) + self.reserved
                room = f", with {self.reserved} for the answer" if self.reserved else ""
                raise RopebendError(
                    f"{self.name}: the shortest prompt takes {shortest} tokens{room}; the length is {self.length}"
                )
            self._filled[i] = n
        return self._filled[i]

    def _count(self, questions: Sequence[Question]) -> int:
        """Tokens of the longest prompt."""
        if self._tokenize is None:
            raise RuntimeError(f"{self.name}: a length in tokens needs the model's tokeniser: call prepare() first")
        return max(len(self._tokenize(q.prompt, q.prefix)) for q in questions)


def fill(count: Callable[[int], int], limit: int, least: int, guess: int = 0) -> int:
    """The largest n >= least with count(n) <= limit, least - 1 if there is none.

    count grows nearly linearly and is dear, so n is guessed along the line through what is known.
    """
    low, at_low = least, count(least)
    if at_low > limit:
        return least - 1
    high, at_high = 0, 0  # none known yet
    per_unit = float(max(at_low, 1))
    n = max(guess, low + max(1, int((limit - at_low) / per_unit)))
    for step in range(1, 10_000):
        at = count(n)
        if at <= limit:
            per_unit = (at - at_low) / (n - low) or per_unit
            low, at_low = n, at
        else:
            high, at_high = n, at
        if high == low + 1:
            break
        if not high:
            n = low + max(1, int((limit - at_low) / per_unit))
        elif step % 4 == 0:
            n = (low + high) // 2
        else:
            n = low + int((limit - at_low) * (high - low) / (at_high - at_low))
            n = min(max(n, low + 1), high - 1)
    return low
