"""Perplexity in windows, cut and scored as llama-perplexity does: the second half of each window, without overlap."""

from __future__ import annotations

import numpy as np

from ropebend.context import Batch, Context
from ropebend.evaluate.evaluation import Row
from ropebend.evaluate.evaluator import Evaluator
from ropebend.evaluate.logits import token_logprobs
from ropebend.model import Model
from ropebend.runtime import Runtime
from ropebend.tasks.task import TextTask


class PerplexityEvaluator(Evaluator):
    """Runs windows of a text as llama-perplexity does: the second half of each window counts.

    The longest of the first n_items windows decides the context; RopebendError if there is no room for it.
    """

    task: TextTask

    def __init__(self, model: Model, task: TextTask, n_items: int, runtime: Runtime):
        n_tokens = max(len(task.window(i)) for i in range(n_items))
        context = Context(model, n_ctx=n_tokens, scaling=None, **runtime.context)
        super().__init__(model, task, n_items, n_tokens, context)
        self._batch = Batch(context.n_batch)

    def n_to_compute(self, i: int) -> int:
        """Tokens of the window."""
        return len(self.task.window(i))

    def measure(self, i: int, *, full: bool = True) -> Row:
        """See `logprob`, which is both its value and its log-probability; full changes nothing."""
        logprob = self.logprob(i)
        return Row((logprob,), (logprob,))

    def logprob(self, i: int) -> float:
        """Mean log-probability per token (nats) of the second half of window i; its first token becomes BOS where the
        model adds one.  Raises RopebendError if llama.cpp cannot decode.
        """
        tokens = np.array(self.task.window(i), np.int32)
        bos = self.model.bos_token
        if self.model.adds_bos and bos >= 0:
            tokens[0] = bos
        first = len(tokens) // 2  # llama-perplexity: tokens first + 1 … n - 1 are predicted
        self.context.clear()
        b, total = self._batch, 0.0
        for start in range(0, len(tokens), b.n_tokens):
            part = tokens[start : start + b.n_tokens]
            n = len(part)
            b.token[:n] = part
            b.pos[:n] = np.arange(start, start + n)
            b.seq[:n, 0] = 0
            wanted = np.arange(start, start + n)
            wanted = wanted[(wanted >= first) & (wanted < len(tokens) - 1)]
            b.want[:n] = 0
            b.want[wanted - start] = 1
            self.context.run(b, n)
            self._computed(n, start)
            if len(wanted):
                total += float(token_logprobs(self.context.all_logits(len(wanted)), tokens[wanted + 1]).sum())
        return total / (len(tokens) - 1 - first)
