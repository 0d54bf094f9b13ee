"""What answers a request: the loaded engine, and the model names it goes by."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from ropebend.server.chat.chats import Chats
from ropebend.server.engine import Engine, Facts
from ropebend.server.openai import errors
from ropebend.server.openai.defaults import Defaults
from ropebend.server.openai.errors import ApiError

#: Added to a model id: the same weights without the layer scales.
BASE = ":base"


@dataclass(frozen=True)
class Names:
    """Model ids that are answered to, the first of which is shown.

    any_model  every other name means the model, too
    tags       words about it, for whoever lists models
    """

    ids: tuple[str, ...]
    any_model: bool = False
    tags: tuple[str, ...] = ()


def names_of(model: Path, aliases: Sequence[str] = (), any_model: bool = False, tags: Sequence[str] = ()) -> Names:
    """The names of a GGUF file: the aliases, without any the file's name in one word."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", model.stem)
    return Names(tuple(dict.fromkeys(aliases)) or ("-".join(stem.split()),), any_model, tuple(tags))


@dataclass(frozen=True)
class Serving:
    """A loaded engine.  off: endpoints that are switched off."""

    engine: Engine
    facts: Facts
    names: Names
    chats: Chats
    defaults: Defaults = field(default_factory=Defaults)
    off: Collection[str] = ()

    def max_tokens(self, asked: int | None, n_prompt: int, otherwise: int, *, scaled: bool) -> int:
        """Tokens that a text may get.

        asked: by the request; otherwise: if neither it nor the command line says how many.  -1: until the context is
        full, to which also what the command line says is limited, or, with plans by length, to the end of the prompt's.
        """
        room = max(self.facts.n_ctx - n_prompt, 0)
        if asked is None:
            given = self.defaults.n_predict
            asked = otherwise if given is None else -1 if given < 0 else min(given, room)
        return max(self.facts.room(scaled, n_prompt), 0) if asked == -1 else asked

    @property
    def model(self) -> str:
        """The model's id."""
        return self.names.ids[0]

    def model_ids(self) -> list[str]:
        """Every id there is, those without scales included."""
        ids = list(self.names.ids)
        return ids if self.facts.scaling is None else [*ids, *(name + BASE for name in ids)]

    def shown_ids(self) -> list[str]:
        """The first id, and what it is called without scales."""
        return [name for name in self.model_ids() if name.removesuffix(BASE) == self.model]

    def is_scaled(self, name: str | None) -> bool:
        """Whether the model of this name runs with the layer scales.  ApiError 404 if there is none of that name."""
        if not name:
            return True
        if name in self.model_ids():
            return name in self.names.ids
        if self.names.any_model:
            return not name.endswith(BASE)
        ids = " and ".join(map(repr, self.model_ids()))
        message = f"The model {name!r} does not exist; this server runs {ids}"
        if name.removesuffix(BASE) in self.names.ids:
            message += f" without layer scales: {BASE} is there where scales are in effect, to compare with"
        else:
            message += "; see --alias and --any-model"
        raise ApiError(404, message, param="model", code="model_not_found")


async def _serving(request: Request) -> Serving:
    state = request.app.state
    if state.engine.facts is None:
        raise errors.loading()
    return Serving(state.engine, state.engine.facts, state.names, state.chats, state.defaults, state.off)


#: Parameter of a route.  ApiError 503 while the engine is loading.
Served = Annotated[Serving, Depends(_serving)]
