"""What all optimisers share: ask for candidates, tell their scores.

    optimiser = CMAES(space, seed=1, uniform_scales=(1.25, 1.5, 2.0))
    while optimiser.n_evaluated < budget:
        candidates = optimiser.ask()
        optimiser.tell([score(c) for c in candidates])
    optimiser.best.candidate.scales

All start alike: with all ones, then uniform values of each number that moves, or what to start from and each of its
numbers a little up and down.  A second generation tries shapes around the best of them, because a search that starts at
random does worse.  Scores are maximised.  Pure: no I/O, and the same seed gives the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ropebend.errors import RopebendError
from ropebend.search.curves import Curve, Genes
from ropebend.search.space import ATTN_GRID, Candidate, Key, Space, Values

Genome = tuple[Genes, str]

#: What each number of a start is multiplied by, to learn which way and how far it may move.
SHIFTS = {"scale": (0.8, 0.9, 1.1, 1.25), "attn": (0.9, 0.95, 1.06, 1.12)}


@dataclass(frozen=True)
class Scored:
    """A measured candidate.  score: of the objective; comparable at equal numbers of items only."""

    candidate: Candidate
    score: float


class Optimiser:
    """Asks for one generation after another; subclasses say how the next one is made.

    population      candidates per generation; None: what suits the number of genes
    uniform_scales  tried first
    start           tried instead: what another search has found, or the best that every layer alike does
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
        self.n_evaluated = 0  # scores told
        self.n_repeated = 0  # genomes drawn that stood for a candidate asked for before
        self.rng = np.random.default_rng(seed)
        self.scores: dict[Key, float] = {}
        # what it begins from, by number: genes, fitted once
        ones = Candidate((1.0,) * space.n_layer)
        self._origin = {c.number.name: genes_of(c, (start or ones).number(c.number.name)) for c in space.curves}
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
        out: list[Genome] = [(self.space.uniform(), "ones")]
        if self.start is not None:
            out.append((self.space.genome(self._origin), "start"))
        return out + [level for curve in self.space.curves for level in self._levels(curve)]

    def _levels(self, curve: Curve) -> list[Genome]:
        """One number moved as a whole from where the search begins."""
        number = curve.number.name
        if self.start is None:
            grid = {"scale": self.uniform_scales, "attn": ATTN_GRID}[number]
            return [(self.moved(curve, (v,) * curve.n_layer), f"uniform {number} {v:g}") for v in grid]
        return [
            (self.moved(curve, [v * k for v in self.start.number(number)]), f"start, {number} × {k:g}")
            for k in SHIFTS[number]
        ]

    def moved(self, curve: Curve, values: Sequence[float]) -> Genes:
        """The genome of where the search begins, with other values of one number."""
        return self.space.genome({**self._origin, curve.number.name: genes_of(curve, values)})

    def known_levels(self, curve: Curve) -> list[tuple[Values, float]]:
        """Values per layer and score of what was told of one number moved as a whole, the beginning first."""
        number = curve.number.name
        begin = self.space.express(self.space.genome(self._origin))
        others = (self.space.express(genes) for genes, _ in self._levels(curve))
        known = [(c.number(number), self.scores[c.key]) for c in others if c.key in self.scores]
        return [(begin.number(number), self.scores.get(begin.key, -math.inf)), *known]

    def best_level(self, curve: Curve) -> Values:
        """The best of them."""
        return max(self.known_levels(curve), key=lambda level: level[1])[0]

    def thirds(self, step: Callable[[Curve], float]) -> list[Genome]:
        """Thirds of the layers, each number in both directions by a step, from its best level."""
        out: list[Genome] = []
        for curve in self.space.curves:
            number, base = curve.number, np.array(self.best_level(curve))
            if curve.n_genes == 1:
                finer = [(base * k, f"uniform {number.name} {base[0] * k:g}") for k in (0.94, 0.97, 1.03, 1.06)]
                out += [(self.moved(curve, values.tolist()), origin) for values, origin in finer]
                continue
            by = step(curve)
            for k, layers in enumerate(np.array_split(np.arange(curve.n_layer), 3)):
                for sign in (1, -1):
                    values = base.copy()
                    values[layers] = np.clip(values[layers] + sign * by, number.low, number.high)
                    if (values != base).any():
                        origin = f"{number.name} {values[layers[0]]:g} in third {k + 1}"
                        out.append((self.moved(curve, values.tolist()), origin))
        return out

    def ramps(self, curve: Curve, low: float, high: float) -> list[tuple[list[float], str]]:
        """Genes of one number that rises or falls evenly over the layers."""
        return [(curve.ramp(low, high), "ramp up"), (curve.ramp(high, low), "ramp down")]

    def bumps(self, curve: Curve, base: float, height: float, origin: str) -> list[tuple[list[float], str]]:
        """Genes of one number that differs from the base near one layer, at up to eight of them."""
        layers = np.unique(np.linspace(0, curve.n_layer - 1, min(curve.n_layer, 8)).round().astype(int))
        made = [(curve.bump(base, height, int(layer)), f"{origin} at {layer}") for layer in layers]
        return [(genes, name) for genes, name in made if genes is not None]

    def _stretched_start(self) -> list[Genome]:
        if self.start is None:
            return []
        out: list[Genome] = []
        for k in (0.7, 1.4, 2.0):
            scales, attn = (tuple(1 + k * (v - 1) for v in self.start.number(name)) for name in ("scale", "attn"))
            stretched = Candidate(scales, self.start.factor, attn)
            out.append((self.space.near(stretched), f"start stretched {k:g} times"))
        return out


def genes_of(curve: Curve, values: Sequence[float]) -> list[float]:
    """Genes of these values, exactly where they are all alike."""
    return curve.uniform(values[0]) if len(set(values)) == 1 else curve.near(values)
