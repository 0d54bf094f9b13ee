"""What the engine gives back: the events of a submission, in the order in which they happen, and what runs now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ropebend.errors import RopebendError


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log-probability under the plain distribution (temperature 1, no filters).

    piece    its bytes (of a control token its name)
    logprob  None for the first token of an echoed prompt, which nothing predicts
    offset   characters of the text before it
    top      bytes and log-probability of the likeliest tokens, best first
    id, top_ids  the same as token ids
    """

    piece: bytes
    logprob: float | None
    offset: int
    top: tuple[tuple[bytes, float], ...]
    id: int = -1
    top_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Timing:
    """How long one text took so far; milliseconds.

    n_cached     prompt tokens that were taken from another sequence
    n_prompt     prompt tokens that were computed
    prompt_ms    until the last of them, from the step in which the first was
    n_generated  tokens generated
    generated_ms from the prompt's end to the last of them.  The first costs no decode: it comes with the prompt's end
    """

    n_cached: int = 0
    n_prompt: int = 0
    prompt_ms: float = 0.0
    n_generated: int = 0
    generated_ms: float = 0.0


@dataclass(frozen=True)
class Piece:
    """More text of generation `index`, whole characters only.

    ids     tokens since the last piece
    timing  if the request asks for it
    """

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()
    timing: Timing | None = None


@dataclass(frozen=True)
class Progress:
    """How many of the `n_prompt` prompt tokens of generation `index` are there, those from the cache included.

    n_cached  of them taken from another sequence
    n_done    how many are there
    ms        since the prompt was begun, milliseconds
    """

    index: int
    n_prompt: int
    n_cached: int
    n_done: int
    ms: float
    timing: Timing


@dataclass(frozen=True)
class Embedding:
    """The vector of request `index`; without pooling one for each token: [n, n_embd]."""

    index: int
    vectors: tuple[tuple[float, ...], ...]

    @property
    def vector(self) -> tuple[float, ...]:
        """The only one."""
        return self.vectors[0]


@dataclass(frozen=True)
class Finished:
    """Request `index` ended.

    reason    "stop": the model, a stop string or its constraint ended it, or it was embedded; "length": max_tokens did
    n_tokens  tokens generated, without the one that ended it
    n_cached  prompt tokens whose keys and values were taken from another sequence instead of computed
    stopped_by  the stop string that ended it, or ""
    """

    index: int
    reason: Literal["stop", "length"]
    n_tokens: int
    n_cached: int = 0
    stopped_by: str = ""
    timing: Timing = field(default=Timing(), compare=False)


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
Event = Piece | Progress | Embedding | Finished | Ending


@dataclass(frozen=True)
class Slot:
    """A request that is being computed, at one moment.

    n_computed  tokens with keys and values
    n_cached    of them taken from another sequence
    plan        hash of its plan, "" is unscaled
    """

    arrival: int
    n_prompt: int
    n_computed: int
    n_generated: int
    n_cached: int
    plan: str
