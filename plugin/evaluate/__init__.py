"""Running tasks on a model, fast and exactly.

with open_evaluator(model, task, None, Runtime()) as evaluator:
    evaluator.set_scaling(scaling)
    result = Evaluation.of(task, [evaluator.measure(i) for i in range(evaluator.n_items)])
print(result.in_words())
"""

from __future__ import annotations

from ropebend.errors import RopebendError
from ropebend.evaluate.evaluation import Comparison, Evaluation, RetrievalEvaluation, Row, TextEvaluation
from ropebend.evaluate.evaluator import Evaluator
from ropebend.evaluate.lead_in import choose_prompts
from ropebend.evaluate.perplexity import PerplexityEvaluator
from ropebend.evaluate.prompts import Prompts
from ropebend.evaluate.retrieval import Answer, RetrievalEvaluator, greedy_answer
from ropebend.model import Model
from ropebend.runtime import Runtime
from ropebend.tasks.task import RetrievalTask, Task, TextTask

__all__ = [
    "Answer", "Comparison", "Evaluation", "Evaluator", "PerplexityEvaluator", "Prompts", "RetrievalEvaluation",
    "RetrievalEvaluator", "Row", "TextEvaluation", "greedy_answer", "open_evaluator",
]  # fmt: skip

MAX_ITEMS = 500  # as many as the paper judges on


def open_evaluator(model: Model, task: Task, n_items: int | None, runtime: Runtime) -> Evaluator:
    """Prepare the task and make a context for its first n_items (None: 500, or all if there are fewer); unscaled.

    Raises RopebendError if the task has fewer, if a prompt of it cannot be made, or if the context cannot.
    """
    task.prepare(Prompts(model))
    if n_items is None:
        n_items = min(MAX_ITEMS, task.n_items or MAX_ITEMS)
    if task.n_items is not None and task.n_items < n_items:
        raise RopebendError(f"{task.name}: {n_items} items wanted, there are {task.n_items}")
    if n_items < 1:
        raise RopebendError("no samples to evaluate")
    if isinstance(task, RetrievalTask):
        prompts, lead_in = choose_prompts(model, task, runtime)
        if prompts.chat:
            task.prepare(prompts)  # the template counts into lengths
        return RetrievalEvaluator(model, task, n_items, runtime, prompts, lead_in)
    assert isinstance(task, TextTask)
    return PerplexityEvaluator(model, task, n_items, runtime)
