"""What a search tells while it goes on, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ropebend.evaluate import Evaluation
from ropebend.model_info import ModelInfo
from ropebend.scaling import LayerScaling
from ropebend.search.cost import Cost
from ropebend.search.optimiser import Scored
from ropebend.search.spec import SearchSpec
from ropebend.tasks.task import Task

UNSCALED = "unscaled"  # what the model without scales is called among results
START = "start"  # what the search begins from, if there is something


@dataclass(frozen=True)
class Generation:
    """State of one search after a generation.

    number       of the generation
    n_evaluated  sets of scales measured so far
    best, mean   scores of the objective: the best so far, and the mean of this generation
    """

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
    n_evaluated  sets of scales measured
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
        """The winner.  Raises IndexError before there are finalists."""
        return self.ranked[0]


@dataclass(frozen=True)
class Outcome:
    """All searches (the main one last) and how their winners do on items never seen.

    spec   with its open numbers settled
    tasks  of the objective, then transfer
    found  by name of the search
    tests  name of the scales (`UNSCALED`, `START` if there are some, then the searches') -> an evaluation per task: the
           objective's, then transfer; empty if it was interrupted before
    seen   the same on the first items of the search itself, first task only; they flatter what was chosen by them
    layers what was found, to be saved: with the method they multiply, without provenance
    n_ctx  tokens that a sequence of the first task may reach
    n_tokens, seconds  prompt tokens computed and time taken, of all resumes together
    left   seconds that an interrupted one still takes
    """

    spec: SearchSpec
    info: ModelInfo
    tasks: tuple[Task, ...]
    found: dict[str, Found]
    tests: dict[str, list[Evaluation]]
    seen: dict[str, Evaluation]
    layers: LayerScaling
    n_ctx: int
    n_tokens: int
    seconds: float
    interrupted: bool
    left: float = 0.0

    @property
    def main(self) -> Found:
        """The search itself, not a control; where it was interrupted, the best of all that are at as many items."""
        own = self.found.get(self.spec.label)
        if own is not None and (not self.interrupted or len({f.n_items for f in self.found.values()}) > 1):
            return own
        return max(self.found.values(), key=lambda f: f.best.score)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    stage    "first items", a search's name, "finals: …", "methods" or "test"
    done     share of the whole run, 0 to 1
    seconds  that are left
    """

    stage: str
    done: float
    seconds: float


class Listener:
    """Hears how a run goes on, in the thread that runs it; does nothing by itself."""

    def note(self, text: str) -> None:
        """Something that the user ought to know, in words."""

    def foreseen(self, spec: SearchSpec, cost: Cost) -> None:
        """Items take long: what the first tokens of the first one promise, while it is measured."""

    def started(self, spec: SearchSpec, cost: Cost) -> None:
        """The first items are measured; spec: with numbers that fit its time."""

    def generation(self, state: Generation) -> None:
        """A generation is measured."""

    def stage(self, stage: str) -> None:
        """A stage begins: a search's name, "finals: …", "methods" or "test"."""

    def progress(self, progress: Progress) -> None:
        """An item is measured, or with one worker in this process a part of one."""
