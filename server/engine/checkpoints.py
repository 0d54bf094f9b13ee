"""Saved states of texts, for models whose cache keeps no more than the end of each: what it was at earlier places.

A checkpoint holds what cannot be taken from the cells of a longer text: a recurrent state, or the keys and values
within the sliding window.  llama-server calls it the same (``common_prompt_checkpoint``).
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

#: What llama.cpp wrote of a sequence.
State = npt.NDArray[np.uint8]

#: Places with fewer tokens before them are not saved: computing those again takes no longer.
FEWEST_TOKENS = 64

#: The next turn of a chat may differ from this one where the answer begins (BPE joins tokens, a template writes the
#: beginning of an answer another way), and a prompt asked again needs its last token.  As in llama-server.
BEFORE_THE_END = 4

#: For another question about the same document: this much before the end, as llama-server at its default --ubatch-size.
QUESTION = 512

#: In long prompts every so many tokens; llama-server's --checkpoint-min-step.
STEP = 8192


def places(n: int) -> set[int]:
    """After how many tokens of a prompt of `n` its state is worth saving."""
    return {n - BEFORE_THE_END, n - BEFORE_THE_END - QUESTION, *range(STEP, n, STEP)}


class Checkpoint:
    """The state after the first `n` tokens of a text; None: dropped."""

    __slots__ = ("n", "n_owners", "state")

    def __init__(self, n: int, state: State):
        self.n = n
        self.state: State | None = state
        self.n_owners = 0


class Checkpoints:
    """All checkpoints, within so many bytes: the longest unused are dropped.

    n_saved, n_restored  how often, since the start
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.n_bytes = 0
        self.n_saved = 0
        self.n_restored = 0
        self._by_use: OrderedDict[Checkpoint, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_use)

    def add(self, n: int, state: State) -> Checkpoint | None:
        """A new one, or None if it is larger than all may be."""
        if state.nbytes > self.limit:
            return None
        while self.n_bytes + state.nbytes > self.limit:
            self.drop(next(iter(self._by_use)))
        checkpoint = Checkpoint(n, state)
        self._by_use[checkpoint] = None
        self.n_bytes += state.nbytes
        self.n_saved += 1
        return checkpoint

    def touch(self, checkpoint: Checkpoint) -> None:
        """It was used."""
        self.n_restored += 1
        self._by_use.move_to_end(checkpoint)

    def drop(self, checkpoint: Checkpoint) -> None:
        """Free its state, whoever has it."""
        if checkpoint.state is not None:
            self.n_bytes -= checkpoint.state.nbytes
            checkpoint.state = None
            del self._by_use[checkpoint]


class Shelf:
    """The checkpoints of one sequence, by place; those that it began with belong to other sequences, too."""

    __slots__ = ("_all", "_of")

    def __init__(self, all_of_them: Checkpoints):
        self._all = all_of_them
        self._of: dict[int, Checkpoint] = {}

    def __contains__(self, n: int) -> bool:
        return self.best(n, n) is not None

    def add(self, checkpoint: Checkpoint) -> None:
        """Have one more, unless there is one at its place."""
        if checkpoint.n not in self:
            checkpoint.n_owners += 1
            self._of[checkpoint.n] = checkpoint

    def take_over(self, other: Shelf, n: int) -> None:
        """Have those of another sequence, too, that lie in the first `n` tokens."""
        for checkpoint in other._of.values():
            if checkpoint.n <= n and checkpoint.state is not None:
                self.add(checkpoint)

    def best(self, limit: int, least: int = 1) -> Checkpoint | None:
        """The last one in the tokens `least` to `limit`."""
        self._of = {n: checkpoint for n, checkpoint in self._of.items() if checkpoint.state is not None}
        fitting = [n for n in self._of if least <= n <= limit]
        return self._of[max(fitting)] if fitting else None

    def clear(self) -> None:
        """Have none any more; those that nobody else has are dropped."""
        for checkpoint in self._of.values():
            checkpoint.n_owners -= 1
            if not checkpoint.n_owners:
                self._all.drop(checkpoint)
        self._of.clear()
