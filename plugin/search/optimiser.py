"""What all optimisers share: ask for candidates, tell their scores.

    optimiser = CMAES(space, seed=1, uniform_scales=(1.25, 1.5, 2.0))
    while optimiser.n_evaluated < budget:
        candidates = optimiser.ask()
        optimiser.tell([score(c) for c in candidates])
    optimiser.best.candidate.scales

All start alike: with all ones, uniform values of each number that moves, and those to start from, if any.  A second
generation then tries shapes around the best uniform one, because a search that starts at random does worse than it.
Scores are maximised.  Pure: no I/O, and the same seed gives the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ropebend.errors import RopebendError
from ropebend.search.curves import Genes
from ropebend.search.space import ATTN_GRID, Candidate, Key, Space

Genome = tuple[Genes, str]


@dataclass(frozen=True)
class Scored:
    """A measured candidate."""

    candidate: Candidate
    score: float


class Optimiser:
    """Asks for one generation after another; subclasses say how the next one is made.

    population      candidates per generation; None: what suits the number of genes
    uniform_scales  tried first
    start           what another search has found: tried first, too, and then stretched
    """

    name: str

    def __init__(
        self, space: Space, *, seed: int = 0, population: int | None = None, uniform_scales: Sequence[float] = (),
        start: Candidate | None = None,
    ):  # fmt: skip
        if population is not None and population < 2:
            raise RopebendError(f"population: expected 2 or more, got {population}")
        self.space, self.population = space, population or self.usual_population(space)
        self.uniform_scales, self.start = tuple(uniform_scales), start
        self.generation = 0
        self.n_evaluated = 0  # candidates whose scores were told
        self.n_repeated = 0  # genomes drawn that stood for a candidate asked for before
        self.rng = np.random.default_rng(seed)
        self.scores: dict[Key, float] = {}
        self._ranked: list[tuple[Genes, Scored]] = []  # best first; among equals the older one stays ahead
        self._asked: list[tuple[Genes, Candidate]] = []

    @staticmethod
    def usual_population(space: Space) -> int:
        """Candidates per generation where nobody says how many."""
        return 16

    @property
    def ranks(self) -> bool:
        """True while scores are of the same items, so that candidates can be ranked over generations."""
        return True

    @property
    def best(self) -> Scored:
        """The best so far.  Raises RopebendError before the first `tell`."""
        if not self._ranked:
            raise RopebendError("nothing has been measured yet")
        return self.top(1)[0]

    def top(self, n: int) -> list[Scored]:
        """The n best so far, best first."""
        return [scored for _, scored in self._ranked[:n]]

    def items(self, screen: int, n_items: int) -> list[int]:
        """Which of the n_items items the candidates of the next `ask` are to be measured on, `screen` of them."""
        return [*range(screen)]

    def ask(self) -> list[Candidate]:
        """The next generation: candidates never asked for before; empty when the space is exhausted."""
        if self._asked:
            raise RuntimeError("tell the scores of the candidates asked before")
        for _ in range(20):  # a generation may hold known candidates only; then make another
            genomes = self._first() if self.generation == 0 else self._next()
            seen = self._known()
            for genes, origin in genomes:
                candidate = self.space.express(genes, origin)
                if candidate.key not in seen:
                    seen.add(candidate.key)
                    self._asked.append((genes, candidate))
                else:
                    self.n_repeated += 1
            self.generation += 1
            if self._asked:
                break
            self.told([])
        return [candidate for _, candidate in self._asked]

    def tell(self, scores: Sequence[float]) -> None:
        """Scores of the candidates of the last `ask`, in order; a shorter list tells only of the first ones."""
        for (genes, candidate), score in zip(self._asked, scores, strict=False):
            self.scores[candidate.key] = float(score)
            if self.ranks:
                self._ranked.append((genes, Scored(candidate, float(score))))
        self._ranked.sort(key=lambda item: -item[1].score)
        news, self._asked = self._asked[: len(scores)], []
        self.n_evaluated += len(news)
        self.told(news)

    def second_generation(self) -> list[Genome]:
        """Shapes around the best uniform values."""
        raise NotImplementedError

    def next_generation(self) -> list[Genome]:
        """Genomes of the third generation and on; known ones among them cost nothing."""
        raise NotImplementedError

    def told(self, news: list[tuple[Genes, Candidate]]) -> None:
        """Called when scores have come in."""

    def _known(self) -> set[Key]:
        return set(self.scores)

    def _next(self) -> list[Genome]:
        return self.second_generation() if self.generation == 1 else self.next_generation()

    def _first(self) -> list[Genome]:
        space = self.space
        out: list[Genome] = [(space.uniform(), "ones")]
        for number, grid in (("scale", self.uniform_scales), ("attn", ATTN_GRID)):
            if number in space.numbers:
                out += [(space.uniform(**{number: v}), f"uniform {number} {v:g}") for v in grid]
        return out if self.start is None else [*out, (space.near(self.start), "start")]

    def best_uniform(self, number: str) -> float:
        """The best value so far that is the same in all layers."""
        return next((value for value, _ in self.uniform(number)), 1.0)

    def uniform(self, number: str) -> list[tuple[float, float]]:
        """Values and scores of the candidates so far whose layers are all alike and only this number is not 1, best
        first.
        """
        others = [n for n in self.space.numbers if n != number]
        return [
            (scored.candidate.number(number)[0], scored.score)
            for _, scored in self._ranked
            if (c := scored.candidate).is_uniform and all(c.number(n)[0] == 1.0 for n in others)
        ]

    def _stretched_start(self) -> list[Genome]:
        if self.start is None:
            return []
        out: list[Genome] = []
        for k in (0.7, 1.4, 2.0):
            scales, attn = (tuple(1 + k * (v - 1) for v in self.start.number(name)) for name in ("scale", "attn"))
            stretched = Candidate(scales, self.start.factor, attn)
            out.append((self.space.near(stretched), f"start stretched {k:g} times"))
        return out
