"""What the engine takes: texts to generate or to embed, submitted as a list."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ropebend.errors import RopebendError
from ropebend.server.engine.events import Event
from ropebend.server.engine.sampling import Sampling


class Unavailable(RopebendError):
    """The engine takes nothing now: still loading, stopping, or stopped."""


class QueueFull(Unavailable):
    """As many submissions are waiting as the queue holds."""


@dataclass(frozen=True)
class Generation:
    """One text to generate.  len(prompt) >= 1 and len(prompt) + max_tokens <= n_ctx, which nobody checks here.

    prompt        tokens
    stop          texts that end it and are not part of it
    max_tokens    0: only compute the prompt
    n_logprobs    None: no log-probabilities; else how many of the likeliest tokens to report at each place
    echo          the answer begins with the prompt, with its log-probabilities if they are asked for
    text          what `prompt` is the tokens of; None if it never was a text
    scaled        False: run under the model's own rope, whatever scales are in effect
    control       control tokens that appear in the text, by their names
    after_filters  the log-probabilities are those of the filtered distribution that was sampled from
    progress, timings  tell how far the prompt is after each step; how long it took with each piece
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    n_logprobs: int | None = None
    echo: bool = False
    text: str | None = None
    scaled: bool = True
    control: Collection[str] = ()
    after_filters: bool = False
    progress: bool = False
    timings: bool = False

    @property
    def n_max(self) -> int:
        """Tokens it may reach."""
        return len(self.prompt) + self.max_tokens


Pooling = Literal["none", "mean", "cls", "last"]


@dataclass(frozen=True)
class Embed:
    """One text to embed.  1 <= len(prompt) <= n_ctx, which nobody checks here.

    prompt   tokens
    pooling  "mean" over the hidden states of all tokens, the first one ("cls") or the "last" one; "none": all of them,
             as they are
    norm     what becomes 1: the p-norm of the vector; -1: nothing; 0: as whole numbers up to 32760
             (llama.cpp's ``common_embd_normalize``)
    scaled   False: run under the model's own rope, whatever scales are in effect
    """

    prompt: Sequence[int]
    pooling: Pooling = "mean"
    norm: int = 2
    scaled: bool = True

    @property
    def n_max(self) -> int:
        """Tokens it reaches."""
        return len(self.prompt)


Request = Generation | Embed


@dataclass(eq=False)  # two submissions are never the same one
class Submission:
    """A list of requests that were submitted together; it fails or is cancelled as a whole.

    stream  True: a `Piece` for each token, as it comes; False: one for each generation, at its end
    """

    requests: Sequence[Request]
    on_event: Callable[[Event], None]
    stream: bool
    _wake: Callable[[], None] = field(repr=False)
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop within one decode step; nothing happens if it has ended.  Any thread may call this."""
        self.cancelled = True
        self._wake()
