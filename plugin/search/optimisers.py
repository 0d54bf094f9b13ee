"""The optimisers: ask for candidates, tell their scores.  Pure: no I/O, and the same seed gives the same run.

    optimiser = make_optimiser("cma", space, seed=1, uniform_scales=(1.25, 1.5, 2.0))
    while optimiser.n_evaluated < budget:
        candidates = optimiser.ask()
        optimiser.tell([score(c) for c in candidates])
    optimiser.best.candidate.scales

All start alike: with all ones, uniform values of each number that moves, and those to start from, if any.  A second
generation then tries shapes around the best uniform one, because a search that starts at random does worse than it.
Scores are maximised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cmaes
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


# ---- ask and tell, and how every search starts


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
    def n_evaluated(self) -> int:
        """Different candidates whose scores were told."""
        return len(self.scores)

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
        """The value of the best candidate so far whose layers are all alike and only this number is not 1."""
        others = [n for n in self.space.numbers if n != number]
        for _, scored in self._ranked:
            c = scored.candidate
            if c.is_uniform and all(c.number(n)[0] == 1.0 for n in others):
                return c.number(number)[0]
        return 1.0

    def _stretched_start(self) -> list[Genome]:
        if self.start is None:
            return []
        out: list[Genome] = []
        for k in (0.7, 1.4, 2.0):
            scales, attn = (tuple(1 + k * (v - 1) for v in self.start.number(name)) for name in ("scale", "attn"))
            stretched = Candidate(scales, self.start.factor, attn)
            out.append((self.space.near(stretched), f"start stretched {k:g} times"))
        return out


class _Shapes(Optimiser):
    """Starts from ramps and single-layer bumps around the best uniform values."""

    def second_generation(self) -> list[Genome]:
        """Finer uniform values, ramps, bumps and dips of each number that moves, the others at 1."""
        out: list[Genome] = []
        for curve in self.space.curves:
            number = curve.number.name
            base = self.best_uniform(number)
            rise = max(base - 1.0, curve.number.step)
            shapes = [(curve.uniform(base * k), f"uniform {number} {base * k:g}") for k in (0.94, 0.97, 1.03, 1.06)]
            for low, high in ((1.0, base + rise), (base, base + rise), (1.0, base)):
                shapes += [(curve.ramp(low, high), "ramp up"), (curve.ramp(high, low), "ramp down")]
            for layer in np.unique(np.linspace(0, curve.n_layer - 1, min(curve.n_layer, 8)).round().astype(int)):
                for level, height, origin in ((1.0, rise, "bump"), (base, -rise, "dip")):
                    genes = curve.bump(level, height, int(layer))
                    if genes is not None and (origin == "bump" or base > 1.0):
                        shapes.append((genes, f"{origin} at {layer}"))
            out += [(self.space.genome({number: genes}), origin) for genes, origin in shapes]
        return [*out, *self._stretched_start()]


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


class GeneticSearch(_Shapes):
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


class RandomSearch(_Shapes):
    """Draws from the whole space: what any cleverer search has to beat at equal budget."""

    name = "random"

    def next_generation(self) -> list[Genome]:
        """Newcomers only."""
        return [(self.space.newcomer(self.rng), "random") for _ in range(self.population)]


@dataclass(frozen=True)
class Adaptation:
    """How CMA-ES is set up here; values found on needle and SmolLM2.

    bearable  a uniform step that costs less than this in score is one that the model bears
    sigma     first standard deviation, in such steps
    smallest  step that is tried whatever the model bears
    """

    bearable: float = 0.03
    sigma: float = 0.7
    smallest: float = 0.02


class CMAES(Optimiser):
    """CMA-ES (Hansen 2001, the package `cmaes`) with steps learnt from the model and fresh items for each generation.

    The first two generations are a sweep: uniform values of each number, then thirds of the layers in both directions,
    from which it learns where to begin and how large a step this model bears: a model inside its trained window breaks
    at scales that one beyond it needs.  Then each generation is measured on items of its own: CMA-ES needs to know only
    how the candidates of one generation rank, and what fits a few items by chance does not survive the next ones.  What
    it ends in is the centre of its distribution, a mean over all it has learnt, not the luckiest candidate.
    """

    name = "cma"
    setting = Adaptation()

    def __init__(self, space: Space, *, seed: int = 0, **more: Any):
        super().__init__(space, seed=seed, **more)
        self._seed = seed
        self._cma: cmaes.CMA | None = None
        self._steps = space.spread
        self._sampled: list[Genes] = []
        self._centres: list[Scored] = []

    @staticmethod
    def usual_population(space: Space) -> int:
        """Hansen's default, 4 + 3 ln n."""
        return 4 + int(3 * math.log(space.n_genes))

    def items(self, screen: int, n_items: int) -> list[int]:
        """The first ones for the sweep, then the next ones for each generation, round and round."""
        if self.generation < 2:
            return super().items(screen, n_items)
        first = (self.generation - 1) * screen
        return sorted({(first + i) % max(n_items, 1) for i in range(screen)})

    def top(self, n: int) -> list[Scored]:
        """The centres, newest first, then the best of the sweep, whose scores are of other items."""
        if not self._centres:
            return super().top(n)
        half = self._centres[len(self._centres) // 2]
        out = list({s.candidate.key: s for s in (self._centres[-1], half, self._middle())}.values())
        return [*out, *super().top(n)][:n]

    def second_generation(self) -> list[Genome]:
        """Thirds of the layers, each number in both directions by the largest step that the model bears."""
        out: list[Genome] = []
        for curve in self.space.curves:
            number, base = curve.number.name, self.best_uniform(curve.number.name)
            if curve.n_genes == 1:
                finer = (base * k for k in (0.94, 0.97, 1.03, 1.06))
                out += [(self.space.uniform(**{number: v}), f"uniform {number} {v:g}") for v in finer]
                continue
            step, thirds = self._bearable(number), np.array_split(np.arange(curve.n_layer), 3)
            for k, layers in enumerate(thirds):
                for sign in (1, -1):
                    values = np.full(curve.n_layer, base)
                    values[layers] = np.clip(base + sign * step, curve.number.low, curve.number.high)
                    if len(layers) and values[layers[0]] != base:
                        origin = f"{number} {values[layers[0]]:g} in third {k + 1}"
                        out.append((self.space.genome({number: curve.near(values.tolist())}), origin))
        both = {c.number.name: c.uniform(self.best_uniform(c.number.name)) for c in self.space.curves}
        return [*out, (self.space.genome(both), "uniform"), *self._stretched_start()]

    def next_generation(self) -> list[Genome]:
        """A full population of samples, and the centre."""
        if self._cma is None or self._cma.should_stop():
            self._begin()
        assert self._cma is not None
        self._sampled = [self._cma.ask() for _ in range(self._cma.population_size)]
        return [(self._genes(x), "cma-es") for x in self._sampled]

    def told(self, news: list[tuple[Genes, Candidate]]) -> None:
        """Pass the scores on (cmaes minimises)."""
        if self._cma is None or not self._sampled:
            return
        candidates = [self.space.express(self._genes(x)) for x in self._sampled]
        told = {candidate.key for _, candidate in news}
        if all(c.key in told for c in candidates):  # not after an interrupted generation
            scores = [self.scores[c.key] for c in candidates]
            self._cma.tell([(x, -score) for x, score in zip(self._sampled, scores, strict=True)])
            centre = self.space.express(self._genes(self._cma.mean), f"centre {len(self._centres) + 1}")
            self._centres.append(Scored(centre, float(np.mean(scores))))
        self._sampled = []

    @property
    def ranks(self) -> bool:
        """In the sweep."""
        return self._cma is None

    def _known(self) -> set[Key]:
        return super()._known() if self.ranks else set()  # on fresh items nothing is known

    def _genes(self, x: Genes) -> Genes:
        return self.space.bounded(x[: self.space.n_genes] * self._steps)

    def _middle(self) -> Scored:
        """The mean of the last centres: what is left of their noise is less than one's."""
        last = self._centres[-max(1, len(self._centres) // 4) :]
        means = {name: np.mean([s.candidate.number(name) for s in last], axis=0) for name in ("scale", "attn")}
        wanted = Candidate(tuple(means["scale"]), last[-1].candidate.factor, tuple(means["attn"]))
        middle = self.space.express(self.space.near(wanted), f"mean of {len(last)} centres")
        return Scored(middle, float(np.mean([s.score for s in last])))

    def _bearable(self, number: str) -> float:
        """The largest uniform step of this number, either way, that does not cost much."""
        others = [n for n in self.space.numbers if n != number]
        uniform = [
            (s.candidate.number(number)[0], s.score)
            for _, s in self._ranked
            if s.candidate.is_uniform and all(s.candidate.number(n)[0] == 1.0 for n in others)
        ]
        ones = next((score for value, score in uniform if value == 1.0), -math.inf)
        steps = [abs(value - 1.0) for value, score in uniform if score >= ones - self.setting.bearable]
        curve = self.space.curve(number)
        assert curve is not None
        return min(max([self.setting.smallest, *steps]), curve.number.step)

    def _begin(self) -> None:
        """From the best so far, by steps that the model bears."""
        space, at = self.space, 0
        steps = space.spread.copy()
        for curve in space.curves:
            of_curve = steps[at : at + curve.n_genes]
            of_curve[curve.is_value] = self._bearable(curve.number.name)
            at += curve.n_genes
        self._steps = steps
        bounds = np.stack([space.low / steps, space.high / steps], axis=1)
        start = self._ranked[0][0] / steps
        # cmaes wants two dimensions at least: a second one without meaning for a single gene
        if len(start) == 1:
            start, bounds = np.append(start, 0.0), np.vstack([bounds, [-1.0, 1.0]])
        self._cma = cmaes.CMA(
            start, self.setting.sigma, bounds=bounds, seed=(self._seed + self.generation) % 2**32,
            population_size=self.population,
        )  # fmt: skip


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
