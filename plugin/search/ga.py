"""The search core: a constrained genetic algorithm over cubic Bézier curves (arXiv 2503.04355), ask/tell, no I/O.

    ga = GeneticSearch(n_layer=6, seed=1)
    while ga.n_evaluated < budget:
        candidates = ga.ask()
        ga.tell([measure(c.scales) for c in candidates])
    ga.best.scales

All the work is in `_breed` (how the next generation is made) and `_seeds` (where the first ones come from: a search
that starts at random does worse than the best uniform scale, so it starts from that one).  Fitness is maximised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ropebend.bezier import layer_scales
from ropebend.errors import RopebendError

# Scales are rounded to 0.01 (LongRoPE's grid), and a rounded set of scales is measured only once.
MAX_SCALE = 6.0
N_GENE = 6  # y0, x1, y1, x2, y2, y3


@dataclass(frozen=True)
class Candidate:
    """One set of scales to measure, and the curve it came from."""

    scales: tuple[float, ...]
    control_points: tuple[tuple[float, float], ...]
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Scored:
    """A measured candidate."""

    candidate: Candidate
    fitness: float

    @property
    def scales(self) -> tuple[float, ...]:
        """The layer scales, float [n_layer]."""
        return self.candidate.scales


class GeneticSearch:
    """Searches the scale per layer.

    n_layer          number of blocks
    seed             of every random draw: the same seed and the same fitness values give the same run
    population       survivors kept and offspring made per generation
    elites           best survivors that are always kept and breed most
    uniform_scales   the uniform scales that are tried first
    max_scale        upper bound of scales and of y; y reaches down to -max_scale / 2, because profiles that are flat
                     and then rise need y under the floor of 1 (much wider ranges get lost on plateaus)
    """

    def __init__(
        self,
        n_layer: int,
        *,
        seed: int = 0,
        population: int = 16,
        elites: int = 4,
        uniform_scales: Sequence[float] = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0),
        max_scale: float = MAX_SCALE,
    ):
        if population < 2 or not 1 <= elites <= population:
            raise RopebendError(
                f"population {population}, elites {elites}: expected 1 <= elites <= population, 2 or more"
            )
        self.n_layer = n_layer
        self.population = population
        self.elites = elites
        self.uniform_scales = tuple(uniform_scales)
        self.max_scale = max_scale
        self.generation = 0
        self.memo: dict[tuple[float, ...], float] = {}
        self._rng = np.random.default_rng(seed)
        self._pool: list[tuple[npt.NDArray[np.float64], Scored]] = []  # survivors, best first
        self._asked: list[tuple[npt.NDArray[np.float64], Candidate]] = []

    # ---- ask and tell

    def ask(self) -> list[Candidate]:
        """The next generation: candidates whose scales were never measured.  Tell all of them before asking again."""
        if self._asked:
            raise RuntimeError("tell the fitness of the candidates asked before")
        for _ in range(20):  # a generation may consist of known scales only; then breed again
            seen = set(self.memo)
            for genome, origin in self._seeds() if self.generation < 2 else self._breed():
                candidate = self._express(genome, origin)
                if candidate.scales not in seen:
                    seen.add(candidate.scales)
                    self._asked.append((genome, candidate))
            self.generation += 1
            if self._asked:
                break
        return [candidate for _, candidate in self._asked]

    def tell(self, fitness: Sequence[float]) -> None:
        """Fitness of the candidates of the last `ask`, in order; a shorter list tells only of the first ones."""
        for (genome, candidate), value in zip(self._asked, fitness, strict=False):
            self.memo[candidate.scales] = float(value)
            self._pool.append((genome, Scored(candidate, float(value))))
        self._asked = []
        self._pool.sort(key=lambda item: -item[1].fitness)  # stable: among equals the older one stays ahead
        # the seeds of the first generations all compete; later only the survivors are kept
        if self.generation > 2:
            del self._pool[self.population :]

    @property
    def n_evaluated(self) -> int:
        """Different sets of scales measured so far."""
        return len(self.memo)

    @property
    def best(self) -> Scored:
        """The best measured so far.  Raises RopebendError before the first `tell`."""
        if not self._pool:
            raise RopebendError("nothing has been measured yet")
        return self._pool[0][1]

    def top(self, n: int) -> list[Scored]:
        """The n best survivors, best first."""
        return [scored for _, scored in self._pool[:n]]

    # ---- genomes

    def _express(self, genome: npt.NDArray[np.float64], origin: str) -> Candidate:
        last = self.n_layer - 1
        y0, x1, y1, x2, y2, y3 = (round(float(g), 4) for g in genome)
        points = ((0.0, y0), (x1, y1), (x2, y2), (float(last), y3))
        scales = np.minimum(layer_scales(points, self.n_layer), self.max_scale)
        return Candidate(tuple(round(float(s), 2) for s in scales), points, origin)

    def _genome(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """A cubic in depth through four control values at evenly spaced x."""
        third = (self.n_layer - 1) / 3
        return self._bounded(np.array([values[0], third, values[1], 2 * third, values[2], values[3]]))

    def _bounded(self, genome: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        last = self.n_layer - 1
        bottom, top = -self.max_scale / 2, self.max_scale
        low = np.array([bottom, 0, bottom, 0, bottom, bottom])
        high = np.array([top, last, top, last, top, top])
        return np.clip(genome, low, high)

    def _bump(self, base: float, height: float, layer: int) -> npt.NDArray[np.float64]:
        """A parabola that stands at base + height in one layer and falls back to the base next to it, where it may."""
        last = max(self.n_layer - 1, 1)
        t0, c = layer / last, abs(height) * last * last
        sign = np.sign(height)
        c = min(c, 2 / 3 * self.max_scale + abs(height)) * sign  # steeper ones would leave the range of y
        top = base + height

        def q(t: float) -> float:
            return float(top - c * (t - t0) ** 2)

        return self._genome([q(0), q(0) + 2 * c * t0 / 3, q(1) + 2 * c * (1 - t0) / 3, q(1)])

    def _seeds(self) -> list[tuple[npt.NDArray[np.float64], str]]:
        if self.generation == 0:
            seeds = [(self._genome([1.0] * 4), "ones")]
            seeds += [(self._genome([s] * 4), f"uniform {s:g}") for s in self.uniform_scales]
            return seeds
        # around the best uniform scale: its neighbours, ramps up and down, one layer at a time above or below it
        base = self.best.scales[0]
        rise = max(base - 1.0, 0.5)
        seeds = [(self._genome([base * k] * 4), f"uniform {base * k:g}") for k in (0.94, 0.97, 1.03, 1.06)]
        for low, high in ((1.0, base + rise), (base, base + rise), (1.0, base)):
            mid = [low + (high - low) * i / 3 for i in range(4)]
            seeds += [(self._genome(mid), "ramp up"), (self._genome(mid[::-1]), "ramp down")]
        layers = np.unique(np.linspace(0, self.n_layer - 1, min(self.n_layer, 8)).round().astype(int))
        for layer in layers:
            seeds.append((self._bump(1.0, rise, int(layer)), f"bump at {layer}"))
            if base > 1.0:
                seeds.append((self._bump(base, -rise, int(layer)), f"dip at {layer}"))
        return seeds

    # ---- variation

    def _breed(self) -> list[tuple[npt.NDArray[np.float64], str]]:
        """Half crossovers, half mutants, and one newcomer; steps shrink slowly as generations pass."""
        rng = self._rng
        step = max(0.25, 0.93 ** (self.generation - 2))
        parents = [genome for genome, _ in self._pool[: self.population]]
        out = []
        for i in range(self.population):
            if i == self.population - 1:
                out.append((self._newcomer(), "random"))
            elif i % 2 == 0:
                out.append((self._mutant(parents[self._pick(len(parents))], step), "mutant"))
            else:
                a, b = parents[self._pick(len(parents))], parents[self._pick(len(parents))]
                mix = rng.uniform(-0.25, 1.25, N_GENE)  # blend crossover (BLX-0.25)
                child = self._bounded(a + mix * (b - a))
                out.append((self._mutant(child, step) if rng.random() < 0.3 else child, "crossover"))
        return out

    def _pick(self, n: int) -> int:
        """Index of a parent: a tournament of two, half of the time among the elites only."""
        pool = min(self.elites, n) if self._rng.random() < 0.5 else n
        return int(min(self._rng.integers(pool), self._rng.integers(pool)))

    def _mutant(self, parent: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.float64]:
        rng = self._rng
        spread = np.array([0.5, 0.2 * (self.n_layer - 1), 1.0, 0.2 * (self.n_layer - 1), 1.0, 0.5]) * step
        chosen = rng.random(N_GENE) < 0.5
        if not chosen.any():
            chosen[rng.integers(N_GENE)] = True
        return self._bounded(parent + chosen * rng.normal(0.0, 1.0, N_GENE) * spread)

    def _newcomer(self) -> npt.NDArray[np.float64]:
        rng = self._rng
        last = self.n_layer - 1
        y = rng.uniform(-self.max_scale / 4, self.max_scale * 0.75, 4)
        x = np.sort(rng.uniform(0, last, 2))
        return self._bounded(np.array([y[0], x[0], y[1], x[1], y[2], y[3]]))
