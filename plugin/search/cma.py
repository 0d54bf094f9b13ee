"""CMA-ES that learns its steps from the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cmaes
import numpy as np

from ropebend.search.curves import Curve, Genes
from ropebend.search.optimiser import Genome, Optimiser, Scored, genes_of
from ropebend.search.space import Candidate, Key, Space


@dataclass(frozen=True)
class Adaptation:
    """How CMA-ES is set up here; values found on needle and SmolLM2.

    bearable  a uniform step that costs less than this in score is one that the model bears
    sigma     first standard deviation, in such steps
    smallest  step that is tried whatever the model bears
    little    a model whose score where the search begins is below this has little to lose: there half a mutation step
              is taken, as what a few items say of uniform values would make it crawl
    leap      such a model may want much in a few layers, which thirds do not show: ramps and bumps of so many mutation
              steps are tried as well
    """

    bearable: float = 0.03
    sigma: float = 0.7
    smallest: float = 0.02
    little: float = 0.5
    leap: float = 2.0


class CMAES(Optimiser):
    """CMA-ES (Hansen 2001, the package `cmaes`) with steps learnt from the model and fresh items for each generation.

    The first two generations are a sweep: each number as a whole, then thirds of the layers in both directions, from
    which it learns where to begin and how large a step this model bears: a model inside its trained window breaks at
    scales that one beyond it needs.  Then each generation is measured on items of its own: CMA-ES needs to know only
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

    @property
    def best(self) -> Scored:
        """The newest centre, in the sweep the best so far.  Raises RopebendError before the first `tell`."""
        return self._centres[-1] if self._centres else super().best

    def top(self, n: int) -> list[Scored]:
        """The centres, newest first, then the best of the sweep, whose scores are of other items."""
        if not self._centres:
            return super().top(n)
        half = self._centres[len(self._centres) // 2]
        out: dict[Key, Scored] = {}
        for scored in (self._centres[-1], half, self._middle()):
            out.setdefault(scored.candidate.key, scored)
        return [*out.values(), *super().top(n)][:n]

    def second_generation(self) -> list[Genome]:
        """Thirds of the layers, each number in both directions by the largest step that the model bears, and the best
        levels of all numbers together."""
        best = {c.number.name: genes_of(c, self.best_level(c)) for c in self.space.curves}
        out = [*self.thirds(self._bearable), (self.space.genome(best), "levels"), *self._stretched_start()]
        curve = self.space.curve("scale")
        if curve is None or curve.n_genes == 1 or self.start is not None:
            return out
        if self.known_levels(curve)[0][1] < self.setting.little:
            top = 1.0 + self.setting.leap * curve.number.step
            shapes = [*self.ramps(curve, 1.0, top), *self.bumps(curve, 1.0, top - 1.0, "bump")]
            out += [(self.space.genome({**best, "scale": genes}), origin) for genes, origin in shapes]
        return out

    def next_generation(self) -> list[Genome]:
        """A full population of samples."""
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

    def _bearable(self, curve: Curve) -> float:
        """The largest step of this number as a whole, either way, that does not cost much."""
        (begin, score), *others = self.known_levels(curve)
        if score < self.setting.little:
            return curve.number.step / 2
        steps = [np.abs(np.subtract(v, begin)).max() for v, s in others if s >= score - self.setting.bearable]
        most = curve.number.step * max(1.0, float(np.mean(begin)))
        return float(min(max([self.setting.smallest, *steps]), most))

    def _begin(self) -> None:
        """From the best so far, by steps that the model bears."""
        space, at = self.space, 0
        steps = space.spread.copy()
        for curve in space.curves:
            of_curve = steps[at : at + curve.n_genes]
            of_curve[curve.is_value] = self._bearable(curve)
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
