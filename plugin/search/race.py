"""Racing over one ordered list of items: ever fewer candidates on ever more of them, compared only at equal numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ropebend.search.optimisers import Scored
from ropebend.search.space import Candidate


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
