"""Runs one step of the scheduler on a llama.cpp context and hands the outputs to the writers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend.context import Batch, Context
from ropebend.errors import RopebendError
from ropebend.plan import Plan
from ropebend.server.engine.scheduler import Chunk, Step, Task
from ropebend.server.engine.writer import EmbeddingWriter, TextWriter


@dataclass
class StepStats:
    """Sums over the steps: tokens, and where the seconds went.

    prompt_tokens      computed, not those taken from the cache
    prompt_seconds     their part of decode_seconds, which is shared out by tokens
    generated_seconds  the rest of it
    seconds            of all steps, from the plan to the last text
    decode_seconds     of them inside llama_decode and waiting for its outputs
    sample_seconds     of them choosing tokens, by llama.cpp's samplers or, if greedy, the largest logit
    busy_slots         sequences in a step, summed
    """

    steps: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generated_seconds: float = 0.0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    busy_slots: int = 0


class Runner:
    """plans: by the key of a step."""

    def __init__(self, context: Context, plans: dict[str, Plan | None]):
        self.stats = StepStats()
        self._context = context
        self._plans = plans
        self._batch = Batch(context.n_batch)
        self._n_embd = int(lib.llama_model_n_embd(context.model.handle))
        self._embedding = False

    def run(self, step: Step) -> tuple[list[Task], list[tuple[Task, RopebendError]]]:
        """Decode and deliver.  Returns the tasks that have ended, and those that failed by themselves.

        RopebendError if the decode failed: then every task of the step has.
        """
        context, batch = self._context, self._batch
        if step.key not in self._plans:
            raise RopebendError(f"no plan {step.key!r}")
        context.switch_plan(self._plans[step.key])
        embedding = step.chunks[0].task.alone
        if embedding is not self._embedding:
            lib.llama_set_embeddings(context.handle, embedding)
            self._embedding = embedding
        n = self._fill(step.chunks)
        started = time.perf_counter()
        context.run(batch, n)
        lib.llama_synchronize(context.handle)
        decoded = time.perf_counter()
        self._count(step.chunks, decoded - started)
        return self._deliver(step.chunks)

    def _fill(self, chunks: list[Chunk]) -> int:
        b, n = self._batch, 0
        for c in chunks:
            assert c.task.seq is not None
            end = n + c.n
            if c.n == 1:
                b.token[n], b.pos[n], b.seq[n, 0] = c.task.tokens[c.start], c.start, c.task.seq.id
                b.want[n] = c.task.all_rows or c.is_last
            else:
                b.token[n:end] = c.task.tokens[c.start : c.start + c.n]
                b.pos[n:end] = np.arange(c.start, c.start + c.n)
                b.seq[n:end, 0] = c.task.seq.id
                b.want[n:end] = c.task.all_rows
                b.want[end - 1] = c.task.all_rows or c.is_last
            n = end
        return n

    def _count(self, chunks: list[Chunk], seconds: float) -> None:
        s = self.stats
        s.steps += 1
        s.busy_slots += len(chunks)
        s.decode_seconds += seconds
        n_prompt = sum(c.n for c in chunks if c.task.owner.n_generated == 0)
        s.prompt_tokens += n_prompt
        total = sum(c.n for c in chunks)
        s.prompt_seconds += seconds * n_prompt / total
        s.generated_seconds += seconds * (total - n_prompt) / total

    def _deliver(self, chunks: list[Chunk]) -> tuple[list[Task], list[tuple[Task, RopebendError]]]:
        ended: list[Task] = []
        failed: list[tuple[Task, RopebendError]] = []
        n_rows = sum(c.n if c.task.all_rows else c.is_last for c in chunks)
        rows = self._context.all_logits(n_rows) if n_rows else None
        position = row = 0
        for c in chunks:
            n = c.n if c.task.all_rows else int(c.is_last)
            position += c.n
            if n > 0:
                assert rows is not None
                try:
                    if not self._hand_over(c, rows[row : row + n], row, position - 1):
                        ended.append(c.task)
                except RopebendError as e:
                    failed.append((c.task, e))
                row += n
        return ended, failed

    def _hand_over(self, c: Chunk, rows: npt.NDArray[np.float32], first_row: int, last: int) -> bool:
        """Outputs of a chunk to its writer; False if the task has ended.

        first_row: of them among all outputs; last: place of the chunk's last token in the batch.
        """
        writer = c.task.owner
        if isinstance(writer, EmbeddingWriter):
            writer.states(c.start, self._states(first_row, len(rows)), c.is_last)
            return not c.is_last
        assert isinstance(writer, TextWriter)
        if c.task.all_rows and writer.n_generated == 0:
            writer.prompt_rows(c.start, rows)
        if not c.is_last:
            return True
        started = time.perf_counter()
        token = writer.sample(self._context.handle, last, rows[-1])
        self.stats.sample_seconds += time.perf_counter() - started
        before = writer.n_generated
        goes_on = writer.accept(token, rows[-1])
        self.stats.generated_tokens += writer.n_generated - before
        if goes_on:
            c.task.tokens.append(token)
        return goes_on

    def _states(self, first_row: int, n: int) -> npt.NDArray[np.float32]:
        pointer = lib.llama_get_embeddings(self._context.handle)
        if not pointer:
            raise RopebendError("llama.cpp gave no hidden states")
        return np.ctypeslib.as_array(pointer, shape=(first_row + n, self._n_embd))[first_row:]
