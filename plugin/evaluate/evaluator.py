"""What evaluators of every kind of task have in common."""

from __future__ import annotations

from collections.abc import Callable

from ropebend.context import Context
from ropebend.evaluate.evaluation import Row
from ropebend.model import Closing, Model
from ropebend.scaling import LayerScaling
from ropebend.tasks.task import Task


class Evaluator(Closing):
    """Measures the first `n_items` items of a prepared task on one model, swapping scales without a new context.

    n_tokens    that a sequence may reach
    n_computed  prompt tokens that went through the model so far
    chat        whether prompts stand in the model's chat template
    lead_in     what this model says before an answer; None for texts
    easy        share of the task's easy questions that it answers right, 0 to 1; None where that was not tried
    on_tokens   is told how many prompt tokens a decode has computed, and the position of the first
    """

    lead_in: str | None = None
    chat: bool = False
    easy: float | None = None

    def __init__(self, model: Model, task: Task, n_items: int, n_tokens: int, context: Context):
        self.model, self.task, self.n_items, self.n_tokens, self.context = model, task, n_items, n_tokens, context
        self.n_computed = 0
        self.on_tokens: Callable[[int, int], None] | None = None

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def set_scaling(self, scaling: LayerScaling | None) -> None:
        """Use these scales from now on (None: unscaled), for sequences of up to `n_tokens`.

        Raises ScalesError if they do not fit the model, RopebendError if a rope node cannot be patched.
        """
        self.context.set_scaling(scaling, self.n_tokens)

    def n_to_compute(self, i: int) -> int:
        """Prompt tokens that item i takes, those that its questions share counted once."""
        raise NotImplementedError

    def _computed(self, n_tokens: int, position: int) -> None:
        self.n_computed += n_tokens
        if self.on_tokens is not None:
            self.on_tokens(n_tokens, position)

    def measure(self, i: int, *, full: bool = True) -> Row:
        """Item i under the scales that are set.  full=False: see `RetrievalEvaluator.answers`.

        Raises RopebendError if the item does not fit the context, or if llama.cpp cannot decode it.
        """
        raise NotImplementedError
