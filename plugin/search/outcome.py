"""What a search tells while it goes on, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ropebend.evaluate import Evaluation
from ropebend.model_info import ModelInfo
from ropebend.scaling import LayerScaling
from ropebend.search.optimisers import Scored
from ropebend.search.spec import SearchSpec
from ropebend.tasks.task import Task


@dataclass(frozen=True)
class Cost:
    """What a run will take, extrapolated from the unscaled model's first item of each task.

    n_tokens   prompt tokens that must be computed for one candidate on one item of every task
    seconds    that takes all workers together; 0 if it was read from the log
    n_search   items (candidates times items) of the searches, None where the budget is not a number of evaluations
    n_late     items of the finals and the tests
    context    tokens that a sequence of the first task may reach
    """

    n_tokens: int
    seconds: float
    n_search: int | None
    n_late: int
    context: int

    @property
    def late_seconds(self) -> float:
        """What the finals and the tests take."""
        return self.n_late * self.seconds


@dataclass(frozen=True)
class Generation:
    """State of one search after a generation."""

    search: str
    number: int
    n_evaluated: int
    best: float
    mean: float


@dataclass
class Found:
    """What one search found.

    ranked      finalists, best first, at the most items they were measured on
    n_items     that number
    n_repeated  genomes that were drawn, too, but stood for scales measured before: they cost nothing
    history     one entry per generation
    """

    name: str
    ranked: list[Scored] = field(default_factory=list)
    n_items: int = 0
    n_evaluated: int = 0
    n_repeated: int = 0
    history: list[Generation] = field(default_factory=list)

    @property
    def best(self) -> Scored:
        """The winner."""
        return self.ranked[0]


@dataclass(frozen=True)
class Outcome:
    """All searches (the main one last) and, unless interrupted, how their winners do on items never seen.

    tests  name of the scales ("unscaled", "start" if there are some, then the searches') -> an evaluation per task: the
           objective's, then transfer
    """

    spec: SearchSpec
    info: ModelInfo
    tasks: tuple[Task, ...]
    found: dict[str, Found]
    tests: dict[str, list[Evaluation]]
    layers: LayerScaling
    n_ctx: int
    n_tokens: int
    seconds: float
    interrupted: bool

    @property
    def main(self) -> Found:
        """The search itself, not a control; where it was interrupted, the best of all that are at as many items."""
        own = self.found.get(self.spec.label)
        if own is not None and (not self.interrupted or len({f.n_items for f in self.found.values()}) > 1):
            return own
        return max(self.found.values(), key=lambda f: f.best.score)


class Listener:
    """Hears how a run goes on; does nothing by itself."""

    def note(self, text: str) -> None:
        """Something happened to the workers, in words."""

    def started(self, cost: Cost) -> None:
        """The model is loaded and one item was measured."""

    def generation(self, state: Generation) -> None:
        """A generation is measured."""

    def items(self, stage: str, n: int) -> None:
        """n more items were measured; stage: the search's name, "finals" or "test"."""

    def stage(self, stage: str, n_items: int) -> None:
        """A stage of so many items (candidates times items) begins."""
