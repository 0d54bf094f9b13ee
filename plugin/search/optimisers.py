"""The optimisers: ask for candidates, tell their scores.  Pure: no I/O, and the same seed gives the same run.

    optimiser = make_optimiser("ga", space, seed=1, uniform_scales=(1.25, 1.5, 2.0))
    while optimiser.n_evaluated < budget:
        candidates = optimiser.ask()
        optimiser.tell([score(c) for c in candidates])
    optimiser.best.candidate.scales

All start alike: with all ones, some uniform scales and those to start from, if any; then with ramps and single-layer
bumps around the best uniform one, because a search that starts at random does worse than it.  Scores are maximised, and
no candidate is asked for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cmaes
import numpy as np

from ropebend.errors import RopebendError
from ropebend.search.space import Candidate, Genes, Key, Space

Genome = tuple[Genes, str]


@dataclass(frozen=True)
class Scored:
    """A measured candidate."""

    candidate: Candidate
    score: float


# ---- ask and tell, and how every search starts


class Optimiser:
    """Asks for one generation after another; subclasses say how the next one is made.

    population      candidates per generation
    uniform_scales  tried first
    start           scales per layer tried first, too, and then stretched: what another search has found
    """

    name: str

    def __init__(
        self, space: Space, *, seed: int = 0, population: int = 16, uniform_scales: Sequence[float] = (),
        start: Sequence[float] | None = None,
    ):  # fmt: skip
        if population < 2:
            raise RopebendError(f"population: expected 2 or more, got {population}")
        self.space, self.population = space, population
        self.uniform_scales, self.start = tuple(uniform_scales), start
        self.generation = 0
        self.n_repeated = 0  # genomes drawn that stood for a candidate asked for before
        self.rng = np.random.default_rng(seed)
        self.scores: dict[Key, float] = {}
        self._ranked: list[tuple[Genes, Scored]] = []  # best first; among equals the older one stays ahead
        self._asked: list[tuple[Genes, Candidate]] = []

    @property
    def n_evaluated(self) -> int:
        """Different candidates whose scores were told."""
        return len(self.scores)

    @property
    def best(self) -> Scored:
        """The best so far.  Raises RopebendError before the first `tell`."""
        if not self._ranked:
            raise RopebendError("nothing has been measured yet")
        return self._ranked[0][1]

    def top(self, n: int) -> list[Scored]:
        """The n best so far, best first."""
        return [scored for _, scored in self._ranked[:n]]

    def ask(self) -> list[Candidate]:
        """The next generation: candidates never asked for before; empty when the space is exhausted."""
        if self._asked:
            raise RuntimeError("tell the scores of the candidates asked before")
        for _ in range(20):  # a generation may hold known candidates only; then make another
            genomes = self._seeds() if self.generation < 2 else self.next_generation()
            seen = set(self.scores)
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
            self._ranked.append((genes, Scored(candidate, float(score))))
        self._ranked.sort(key=lambda item: -item[1].score)
        news, self._asked = self._asked[: len(scores)], []
        self.told(news)

    def next_generation(self) -> list[Genome]:
        """Genomes of the third generation and on; known ones among them cost nothing."""
        raise NotImplementedError

    def told(self, news: list[tuple[Genes, Candidate]]) -> None:
        """Called when scores have come in."""

    def _seeds(self) -> list[Genome]:
        space, start = self.space, self.start
        if self.generation == 0:
            first = [(space.uniform(s), "ones" if s == 1 else f"uniform {s:g}") for s in (1.0, *self.uniform_scales)]
            return first if start is None else [*first, (space.near(start), "start")]
        base = next(s.candidate.scales[0] for _, s in self._ranked if len(set(s.candidate.scales)) == 1)
        rise = max(base - 1.0, 0.5)
        seeds: list[Genome] = [(space.uniform(base * k), f"uniform {base * k:g}") for k in (0.94, 0.97, 1.03, 1.06)]
        for low, high in ((1.0, base + rise), (base, base + rise), (1.0, base)):
            seeds += [(space.ramp(low, high), "ramp up"), (space.ramp(high, low), "ramp down")]
        for layer in np.unique(np.linspace(0, space.n_layer - 1, min(space.n_layer, 8)).round().astype(int)):
            for level, height, origin in ((1.0, rise, "bump"), (base, -rise, "dip")):
                genes = space.bump(level, height, int(layer))
                if genes is not None and (origin == "bump" or base > 1.0):
                    seeds.append((genes, f"{origin} at {layer}"))
        if start is not None:
            for k in (0.7, 1.4, 2.0):
                seeds.append((space.near([1 + k * (s - 1) for s in start]), f"start stretched {k:g} times"))
        return seeds


# ---- the genetic algorithm


@dataclass(frozen=True)
class Genetics:
    """What the paper leaves open about its genetic algorithm; values found on needle unless a source is named.

    elites          best survivors; every other tournament is among them alone
    tournament      contestants for each place as a parent (Goldberg and Deb, 1991, who show that two press the least)
    blend           how far a child may lie outside its parents (BLX-alpha; Eshelman and Schaffer, 1993, take 0.5)
    p_mutate_child  of the crossovers that are also mutated (LongRoPE's mutation probability: 0.3)
    p_gene          of a gene to change in a mutant
    shrink, floor   the mutation step falls by this factor a generation, down to this share of the space's spread
    """

    elites: int = 4
    tournament: int = 2
    blend: float = 0.25
    p_mutate_child: float = 0.3
    p_gene: float = 0.5
    shrink: float = 0.93
    floor: float = 0.25


class GeneticSearch(Optimiser):
    """Half mutants, half crossovers, the last one a newcomer; survivors are the best of all so far."""

    name = "ga"
    genetics = Genetics()

    def next_generation(self) -> list[Genome]:
        """Steps shrink slowly as generations pass."""
        rng, space, g = self.rng, self.space, self.genetics
        step = max(g.floor, g.shrink ** (self.generation - 2))
        # the seeds of the first generations all compete; later only the survivors do
        parents = [genes for genes, _ in self._ranked[: self.population]]
        out: list[Genome] = []
        for i in range(self.population):
            if i == self.population - 1:
                out.append((space.newcomer(rng), "random"))
            elif i % 2 == 0:
                out.append((self._mutant(parents[self._pick(len(parents))], step), "mutant"))
            else:
                a, b = parents[self._pick(len(parents))], parents[self._pick(len(parents))]
                mix = rng.uniform(-g.blend, 1 + g.blend, space.n_genes)
                child = space.bounded(a + mix * (b - a))
                mutated = rng.random() < g.p_mutate_child
                out.append((self._mutant(child, step) if mutated else child, "crossover"))
        return out

    def _pick(self, n: int) -> int:
        """Index of a parent: the best of a tournament, half of the time among the elites only."""
        pool = min(self.genetics.elites, n) if self.rng.random() < 0.5 else n
        return min(int(self.rng.integers(pool)) for _ in range(self.genetics.tournament))

    def _mutant(self, parent: Genes, step: float) -> Genes:
        rng, n = self.rng, self.space.n_genes
        chosen = rng.random(n) < self.genetics.p_gene
        if not chosen.any():
            chosen[rng.integers(n)] = True
        return self.space.bounded(parent + chosen * rng.normal(0.0, 1.0, n) * self.space.spread * step)


# ---- controls and others


class RandomSearch(Optimiser):
    """Draws from the whole space: what any cleverer search has to beat at equal budget."""

    name = "random"

    def next_generation(self) -> list[Genome]:
        """Newcomers only."""
        return [(self.space.newcomer(self.rng), "random") for _ in range(self.population)]


class CMAES(Optimiser):
    """CMA-ES (Hansen 2001, the package `cmaes`), started from the best seed, in genes divided by their spread."""

    name = "cma"

    def __init__(self, space: Space, *, seed: int = 0, **more: Any):
        super().__init__(space, seed=seed, **more)
        self._seed = seed
        self._cma: cmaes.CMA | None = None
        self._sampled: list[Genes] = []

    def next_generation(self) -> list[Genome]:
        """A full population of samples; `told` hands the scores back, those of known candidates too."""
        spread = self.space.spread
        if self._cma is None or self._cma.should_stop():
            bounds = np.stack([self.space.low / spread, self.space.high / spread], axis=1)
            start = self._ranked[0][0] / spread
            # cmaes wants two dimensions at least: a second one without meaning for a single gene
            if len(start) == 1:
                start, bounds = np.append(start, 0.0), np.vstack([bounds, [-1.0, 1.0]])
            self._cma = cmaes.CMA(
                start, 0.7, bounds=bounds, seed=(self._seed + self.generation) % 2**32, population_size=self.population
            )
        self._sampled = [self._cma.ask() for _ in range(self._cma.population_size)]
        return [(self.space.bounded(x[: self.space.n_genes] * spread), "cma-es") for x in self._sampled]

    def told(self, news: list[tuple[Genes, Candidate]]) -> None:
        """Pass the scores on (cmaes minimises)."""
        if self._cma is None or not self._sampled:
            return
        spread = self.space.spread
        candidates = [self.space.express(self.space.bounded(x[: self.space.n_genes] * spread)) for x in self._sampled]
        if all(c.key in self.scores for c in candidates):  # not after an interrupted generation
            self._cma.tell([(x, -self.scores[c.key]) for x, c in zip(self._sampled, candidates, strict=True)])
        self._sampled = []


# ---- by name


OPTIMISERS: dict[str, type[Optimiser]] = {o.name: o for o in (GeneticSearch, CMAES, RandomSearch)}


def make_optimiser(name: str, space: Space, **more: Any) -> Optimiser:
    """The optimiser called `name`; more: see `Optimiser`.  Raises RopebendError if there is none."""
    if name not in OPTIMISERS:
        raise RopebendError(f"optimiser: expected one of {', '.join(OPTIMISERS)}, got {name!r}")
    return OPTIMISERS[name](space, **more)


# ---- the choice among the best


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
