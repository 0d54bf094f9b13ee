"""What the command line says for requests that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Defaults:
    """What a request that does not say it gets.

    sampling   fields of `Sampling`; those that are not in it have OpenAI's values (`/completion`: llama-server's)
    seed       None: a new one each time
    verbose    answers hold `__verbose`, with the prompt as text
    n_predict  most tokens of a text; None: what the endpoint says; -1: until the context is full
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    n_predict: int | None = None
    verbose: bool = False
