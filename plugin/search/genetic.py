"""The genetic algorithm of the paper, and random draws, which start alike."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ropebend.search.curves import Genes
from ropebend.search.optimiser import Genome, Optimiser


class _Shapes(Optimiser):
    """Starts from ramps and single-layer bumps around the best uniform values."""

    def second_generation(self) -> list[Genome]:
        """Finer uniform values, ramps, bumps and dips of each number that moves, the others at 1; around a start its
        thirds of the layers."""
        if self.start is not None:
            return [*self.thirds(lambda curve: curve.number.step / 2), *self._stretched_start()]
        out: list[Genome] = []
        for curve in self.space.curves:
            number = curve.number.name
            base = self.best_level(curve)[0]
            rise = max(base - 1.0, curve.number.step)
            shapes = [(curve.uniform(base * k), f"uniform {number} {base * k:g}") for k in (0.94, 0.97, 1.03, 1.06)]
            for low, high in ((1.0, base + rise), (base, base + rise), (1.0, base)):
                shapes += self.ramps(curve, low, high)
            dips = self.bumps(curve, base, -rise, "dip") if base > 1.0 else []
            for bump, dip in itertools.zip_longest(self.bumps(curve, 1.0, rise, "bump"), dips):
                shapes += [shape for shape in (bump, dip) if shape is not None]
            out += [(self.space.genome({number: genes}), origin) for genes, origin in shapes]
        return out


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


class RandomSearch(_Shapes):
    """Draws from the whole space: what any cleverer search has to beat at equal budget."""

    name = "random"

    def next_generation(self) -> list[Genome]:
        """Newcomers only."""
        return [(self.space.newcomer(self.rng), "random") for _ in range(self.population)]
