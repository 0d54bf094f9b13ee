"""What the engine takes and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ropebend.errors import RopebendError
from ropebend.server.engine.sampling import Sampling


class Unavailable(RopebendError):
    """The engine takes no job now: still loading, stopping, or stopped."""


class QueueFull(Unavailable):
    """As many jobs are waiting as the queue holds."""


# ---- what goes in


@dataclass(frozen=True)
class Generation:
    """One text to generate.  len(prompt) >= 1 and len(prompt) + max_tokens <= n_ctx.

    max_tokens    0: only compute the prompt
    n_logprobs    None: no log-probabilities; else how many of the likeliest tokens to report at each place
    echo          the answer begins with the prompt, with its log-probabilities if they are asked for
    text          what `prompt` is the tokens of; None if it never was a text
    scaled        False: run under the model's own rope, whatever scales are in effect
    show_control  control tokens appear in the text by their names
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    n_logprobs: int | None = None
    echo: bool = False
    text: str | None = None
    scaled: bool = True
    show_control: bool = False

    @property
    def n_max(self) -> int:
        """Tokens it may reach."""
        return len(self.prompt) + self.max_tokens


Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class Embed:
    """One text to embed.  1 <= len(prompt) <= n_ctx.

    pooling  "mean" over the hidden states of all tokens, the first one ("cls") or the "last" one
    """

    prompt: Sequence[int]
    pooling: Pooling = "mean"
    scaled: bool = True

    @property
    def n_max(self) -> int:
        """Tokens it reaches."""
        return len(self.prompt)


Request = Generation | Embed

# ---- what comes out


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
class Finish:
    """Request `index` ended.

    n_tokens  tokens generated, without the one that ended it
    n_cached  prompt tokens whose keys and values were taken from another sequence instead of computed
    """

    index: int
    reason: Literal["stop", "length"]
    n_tokens: int
    n_cached: int = 0


@dataclass(frozen=True)
class Done:
    """Every request of the job finished."""


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled by its caller."""


@dataclass(frozen=True)
class Failed:
    """The job ended early; the error's text is meant for the user."""

    error: RopebendError


Event = Piece | Embedding | Finish | Done | Cancelled | Failed


@dataclass(eq=False)  # two jobs are never the same job
class Job:
    """A submitted list of requests.

    stream  True: a `Piece` for each token, as it comes; False: one for each generation, at its end
    """

    requests: Sequence[Request]
    on_event: Callable[[Event], None]
    stream: bool
    _wake: Callable[[], None] = field(repr=False)
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop within one decode step; nothing happens if the job has ended.  Any thread may call this."""
        self.cancelled = True
        self._wake()
