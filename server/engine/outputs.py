"""What a decode computed, on its way to whoever asked for it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outputs:
    """What one decode computed of a sequence; the arrays are llama.cpp's memory and valid until the next one.

    tokens   the whole sequence, to which its owner appends the next token
    start    position of the first token that was decoded
    is_last  no token is left to decode: the next one can be chosen
    logits   [n, n_vocab]: of every decoded token if all were wanted, else of the last one
    states   gives the hidden states of the same tokens, [n, n_embd], if the step is one for embeddings
    context  ``llama_context *``
    place    of the last decoded token in the batch
    """

    tokens: array[int]
    start: int
    is_last: bool
    logits: Rows
    states: Callable[[], Rows]
    context: Any
    place: int


class Owner(Protocol):
    """Who gets the outputs of a sequence.

    n_generated     tokens chosen so far
    sample_seconds  that choosing them took
    """

    n_generated: int
    sample_seconds: float

    def deliver(self, outputs: Outputs) -> bool:
        """Take outputs; False if the sequence has ended with them.  RopebendError if it has failed."""
