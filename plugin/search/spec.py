"""What decides a search, as it stands in config.json.  Same spec, model and versions: the same factors to the bit
(where the budget is not a time, and at fixed threads)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ropebend.choices import (
    CONTROLS,
    USUAL_CONTROLS,
    ExecutorName,
    GenomeName,
    NumbersName,
    OpenName,
    OptimiserName,
    SearchMethodName,
)
from ropebend.durations import read_duration
from ropebend.errors import UsageError
from ropebend.runtime import Runtime
from ropebend.scaling.rope_method import RopeMethod
from ropebend.search.objective import Objective, Term
from ropebend.search.space import Candidate
from ropebend.tasks import Task, make_task, option_types, read_option, split_name

UNIFORM_BUDGET = 48  # evaluations; one or two genes need no more
POOL = 64  # items from which each generation of an optimiser that wants fresh ones is given some
MIN_TEST = 10  # items that the winners must be judged on, or nothing can be said
PLACE = ("executor", "workers", "ray_address")  # fields that say where to measure: they do not change the result


_TOKENS = {"tok": 1, "ktok": 1_000, "Mtok": 1_000_000}


@dataclass(frozen=True)
class Budget:
    """An amount of "evaluations", "tokens" (prompt tokens computed) or "seconds".

    An evaluation is a set of scales measured; CMA-ES, whose generations have items of their own, may measure one again.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "300", "5Mtok", "20m".  Raises UsageError for anything else."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
        if match:
            amount, unit = float(match[1]), match[2]
            if unit == "" and amount >= 1 and amount == int(amount):
                return cls(amount, "evaluations")
            if (seconds := read_duration(text)) is not None:
                return cls(seconds, "seconds")
            if amount > 0 and unit in _TOKENS:
                return cls(amount * _TOKENS[unit], "tokens")
        raise UsageError(
            f"budget: expected evaluations (300), tokens (5Mtok, 200ktok) or time (90s, 20m, 2h), got {text!r}"
        )

    def share(self, n: int) -> Budget:
        """An equal part for each of n searches; of evaluations a whole number, at least one."""
        amount = self.amount / n
        return Budget(max(1.0, float(int(amount))) if self.unit == "evaluations" else amount, self.unit)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSpec(_Strict):
    """A task, its options, and its part in the objective.

    name     of the task, or a Python file, as `make_task` takes it
    options  by name, as `make_task` takes them
    weight   of its score in the sum, above 0
    keep     instead of a weight: what it may lose against the unscaled model (accuracy, 0 to 1, or the share by which
             the perplexity may rise)

    Making one raises pydantic's ValidationError for an unknown field or a value of another type, and checks no more;
    see `make`.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    weight: float = 1.0
    keep: float | None = None

    @classmethod
    def parse(cls, text: str) -> TaskSpec:
        """Read "perplexity:text=wiki.txt,length=1024,keep=0.02".

        Raises UsageError for a task that does not exist, for what is no value of its option, for a weight or keep out
        of range, and for both together.
        """
        name, rest = split_name(text)
        types = option_types(name) or {}
        values: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            kind = float if key in ("weight", "keep") else types.get(key, str)
            try:
                values[key] = read_option(value, kind, key)
            except ValueError:
                equals = ""
            if not equals:
                raise UsageError(f"task {text!r}: expected NAME:option=value,option=value …, got {part!r}")
        own = {k: values.pop(k) for k in ("weight", "keep") if k in values}
        for key, value in own.items():
            if not (math.isfinite(value) and value >= 0) or (key, value) == ("weight", 0.0):
                raise UsageError(f"task {text!r}: {key}: expected a number of 0 or more, got {value:g}")
        if len(own) == 2:
            raise UsageError(f"task {text!r}: weight has no effect beside keep; give one of them")
        return cls(name=name, options=values, **own)

    def make(self) -> Task:
        """The task itself.  Raises UsageError or RopebendError as `make_task` does."""
        return make_task(self.name, self.options)


class SearchPlan(NamedTuple):
    """One search of a run."""

    name: str
    genome: GenomeName
    optimiser: OptimiserName
    numbers: NumbersName


class SearchSpec(_Strict):
    """Everything that `ropebend search` can be told.

    Making one raises pydantic's ValidationError for an unknown field or a value of another type; whether the values go
    together is found out by `run_search`.  "The paper" is arXiv 2503.04355.

    model     path of the GGUF
    tasks     of the objective; the first one decides the verdict
    transfer  more tasks to judge the winners on
    budget    see `Budget.parse`; shared equally by the search and its controls (uniform takes 48 evaluations at most)
    screen    items on which every candidate is measured
    finals    (candidates, items) in turn: so many of the best are measured on so many items
    test      items on which the winners are judged; never seen before
    open      numbers that a budget in time may make smaller, so that all of the run fits it; None: they are settled
    genome    how layers share numbers: the kinds of `curves`
    optimiser "cma" (CMA-ES), "ga" (the paper's genetic algorithm) or "random"
    numbers   which ones move: the layer scales (the paper's method), their attention factors, or both
    min_scale smallest scale; the paper's is 1, where nothing is stretched
    depth_weights  of the depths in the first task's score; None: all alike
    worst     weight of the worst depth beside their mean, 0 to 1
    seed      of the search's draws; a task has one among its own options
    population  candidates per generation; None: what suits the optimiser
    method    what the scales multiply; "auto": beyond the trained length the best of linear, NTK and YaRN, which is
              also what the search starts from (see `stretches`), within it "none"
    factor, factor_range  the method's factor, 1 or more; the range (low, high) in which it moves, None: it stays
    start     scales per layer that every search tries first: what another search has found, say at half the length
    start_attn  the attention factors that go with them, None: 1
    controls  what the result is compared with, see `searches`
    executor  "local": `workers` processes (None: 1) that share the threads; "ray": actors of the cluster at
              `ray_address` (None: see `ray.init`), `workers` of them (None: as many as fit) with the threads each
    runtime   how llama.cpp runs
    """

    model: str
    tasks: tuple[TaskSpec, ...]
    transfer: tuple[TaskSpec, ...] = ()
    method: SearchMethodName = "none"
    factor: float = 1.0
    factor_range: tuple[float, float] | None = None
    genome: GenomeName = "knots"
    optimiser: OptimiserName = "cma"
    numbers: NumbersName = "both"
    min_scale: float = 1.0
    start: tuple[float, ...] | None = None
    start_attn: tuple[float, ...] | None = None
    controls: tuple[str, ...] = USUAL_CONTROLS
    budget: str = "400"
    population: int | None = None
    screen: int = 3
    finals: tuple[tuple[int, int], ...] = ((5, 12), (2, 24))
    test: int = 100
    open: tuple[OpenName, ...] | None = None
    depth_weights: tuple[float, ...] | None = None
    worst: float = 0.2
    seed: int = 1
    executor: ExecutorName = "local"
    workers: int | None = None
    ray_address: str | None = None
    runtime: Runtime = Runtime()

    @property
    def n_search(self) -> int:
        """Items that the search sees: the first ones."""
        pool = POOL if any(s.optimiser == "cma" for s in self.searches()) else 0
        return max([self.screen, pool, *(n for _, n in self.finals)])

    @property
    def rope(self) -> RopeMethod:
        """The extension method underneath; "none" as long as it is "auto"."""
        return RopeMethod(self.method if self.method != "auto" else "none", self.factor)

    @property
    def begin(self) -> Candidate | None:
        """What every search starts from, if there is something."""
        return Candidate(self.start, self.factor, self.start_attn) if self.start is not None else None

    @property
    def n_shares(self) -> int:
        """Searches among which the budget is shared out: all but a uniform one."""
        return sum(s.genome != "uniform" for s in self.searches()) or 1

    def objective(self) -> Objective:
        """The tasks with their parts.  Raises UsageError or RopebendError as `make_task` does."""
        weights = self.depth_weights
        return Objective(
            tuple(
                Term(t.make(), t.weight, t.keep, weights if i == 0 else None, self.worst)
                for i, t in enumerate(self.tasks)
            )
        )

    def searches(self) -> list[SearchPlan]:
        """Each search in order: cheap controls first, the search itself last.

        uniform  the best values that are the same in every layer, of the numbers that move
        attn     the best attention factor that is the same in every layer
        scales   the same search for the layer scales alone: the paper's method
        line     straight lines in depth;  free: every layer on its own;  random: random genomes at equal budget
        """
        known = {
            "uniform": SearchPlan("uniform", "uniform", "ga", self.numbers),
            "attn": SearchPlan("attn", "uniform", "ga", "attn"),
            "scales": SearchPlan("scales", self.genome, self.optimiser, "scale"),
            "line": SearchPlan("line", "line", self.optimiser, self.numbers),
            "free": SearchPlan("free", "free", self.optimiser, self.numbers),
            "random": SearchPlan("random", self.genome, "random", self.numbers),
        }
        own = SearchPlan(self.label, self.genome, self.optimiser, self.numbers)
        controls = [known[name] for name in CONTROLS if name in self.controls]
        if self.numbers != "both":
            controls = [c for c in controls if c.name not in ("attn", "scales")]
        return [*(c for c in controls if c[1:] != own[1:]), own]

    @property
    def label(self) -> str:
        """Name of the search itself in tables."""
        return f"{self.genome} {self.optimiser}"
