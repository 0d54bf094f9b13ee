"""The optimisers by name, and the race that chooses among the best of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ropebend.errors import RopebendError
from ropebend.search.cma import CMAES
from ropebend.search.genetic import GeneticSearch, RandomSearch
from ropebend.search.optimiser import Optimiser, Scored
from ropebend.search.space import Candidate, Space

OPTIMISERS: dict[str, type[Optimiser]] = {o.name: o for o in (GeneticSearch, CMAES, RandomSearch)}


def make_optimiser(name: str, space: Space, **more: Any) -> Optimiser:
    """The optimiser called `name`; more: see `Optimiser`.  Raises RopebendError if there is none."""
    if name not in OPTIMISERS:
        raise RopebendError(f"optimiser: expected one of {', '.join(OPTIMISERS)}, got {name!r}")
    return OPTIMISERS[name](space, **more)


def race(
    entrants: Sequence[Scored],
    stages: Sequence[tuple[int, int]],
    score: Callable[[Sequence[Candidate], int], Sequence[float]],
) -> list[Scored]:
    """The finalists with their scores on the last stage's items, best first; among equals the earlier one stays ahead.

    entrants  best first, by what is known so far
    stages    (n_candidates, n_items) in turn: so many of the best are scored on so many items
    score     scores of candidates on the first n_items
    """
    ranked = list(entrants)
    for n_candidates, n_items in stages:
        candidates = [s.candidate for s in ranked[:n_candidates]]
        ranked = [Scored(c, x) for c, x in zip(candidates, score(candidates, n_items), strict=True)]
        ranked.sort(key=lambda s: -s.score)
    return ranked
