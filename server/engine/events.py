"""What the engine gives back: the events of a submission, in the order in which they happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ropebend.errors import RopebendError


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log-probability under the plain distribution (temperature 1, no filters).

    piece    its bytes (of a control token its name)
    logprob  None for the first token of an echoed prompt, which nothing predicts
    offset   characters of the text before it
    top      bytes and log-probability of the likeliest tokens, best first
    """

    piece: bytes
    logprob: float | None
    offset: int
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Piece:
    """More text of generation `index`, whole characters only."""

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """The vector of request `index`, of length 1."""

    index: int
    vector: tuple[float, ...]


@dataclass(frozen=True)
class Finished:
    """Request `index` ended.

    n_tokens  tokens generated, without the one that ended it
    n_cached  prompt tokens whose keys and values were taken from another sequence instead of computed
    """

    index: int
    reason: Literal["stop", "length"]
    n_tokens: int
    n_cached: int = 0


@dataclass(frozen=True)
class Completed:
    """Every request of the submission finished; its last event."""


@dataclass(frozen=True)
class Cancelled:
    """The submission was cancelled by its caller; its last event."""


@dataclass(frozen=True)
class Failed:
    """The submission ended early, its last event; the error's text is meant for the user."""

    error: RopebendError


Ending = Completed | Cancelled | Failed
Event = Piece | Embedding | Finished | Ending
