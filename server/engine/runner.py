"""Runs a step of the scheduler on a llama.cpp context and hands the outputs to their owners."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import llama_cpp.llama_cpp as lib
import numpy as np

from ropebend.context import Batch, Context
from ropebend.errors import RopebendError
from ropebend.scaling.plan import Plan
from ropebend.server.engine.outputs import Outputs, Rows
from ropebend.server.engine.scheduler import Chunk, Entry, Step


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
    longest            tokens of the longest text so far
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
    longest: int = 0


class Runner:
    """plans: by the key of a step; a plan may be added while it runs."""

    def __init__(self, context: Context, plans: dict[str, Plan | None]):
        self.stats = StepStats()
        self._context = context
        self._plans = plans
        self._batch = Batch(context.n_batch)
        self._n_embd = int(lib.llama_model_n_embd(context.model.handle))
        self._embedding = False

    def run(self, step: Step) -> list[tuple[Entry, Outputs]]:
        """Decode.  Returns the outputs of the entries that have some, valid until the next decode.

        RopebendError if the decode failed: then every entry of the step has.
        """
        context, batch = self._context, self._batch
        if step.key not in self._plans:
            raise RopebendError(f"no plan {step.key!r}")
        context.switch_plan(self._plans[step.key])
        embedding = step.chunks[0].entry.alone
        if embedding is not self._embedding:
            lib.llama_set_embeddings(context.handle, embedding)
            self._embedding = embedding
        n = self._fill(step.chunks)
        started = time.perf_counter()
        context.run(batch, n)
        lib.llama_synchronize(context.handle)
        self._count(step.chunks, time.perf_counter() - started)
        return self._outputs(step.chunks)

    def deliver(self, outputs: list[tuple[Entry, Outputs]]) -> tuple[list[Entry], list[tuple[Entry, RopebendError]]]:
        """Hand the outputs to their owners.  Returns the entries that have ended, and those that failed."""
        ended: list[Entry] = []
        failed: list[tuple[Entry, RopebendError]] = []
        for entry, out in outputs:
            owner, stats = entry.owner, self.stats
            stats.generated_tokens -= owner.n_generated
            stats.sample_seconds -= owner.sample_seconds
            try:
                if not owner.deliver(out):
                    ended.append(entry)
            except RopebendError as e:
                failed.append((entry, e))
            stats.generated_tokens += owner.n_generated
            stats.sample_seconds += owner.sample_seconds
        return ended, failed

    def _fill(self, chunks: list[Chunk]) -> int:
        b, n = self._batch, 0
        for c in chunks:
            assert c.entry.seq is not None
            end = n + c.n
            if c.n == 1:
                b.token[n], b.pos[n], b.seq[n, 0] = c.entry.tokens[c.start], c.start, c.entry.seq.id
                b.want[n] = c.entry.all_rows or c.is_last
            else:
                b.token[n:end] = c.entry.tokens[c.start : c.start + c.n]
                b.pos[n:end] = np.arange(c.start, c.start + c.n)
                b.seq[n:end, 0] = c.entry.seq.id
                b.want[n:end] = c.entry.all_rows
                b.want[end - 1] = c.entry.all_rows or c.is_last
            n = end
        return n

    def _count(self, chunks: list[Chunk], seconds: float) -> None:
        s = self.stats
        s.steps += 1
        s.busy_slots += len(chunks)
        s.longest = max(s.longest, *(c.start + c.n for c in chunks))
        s.decode_seconds += seconds
        n_prompt = sum(c.n for c in chunks if c.entry.owner.n_generated == 0)
        s.prompt_tokens += n_prompt
        total = sum(c.n for c in chunks)
        s.prompt_seconds += seconds * n_prompt / total
        s.generated_seconds += seconds * (total - n_prompt) / total

    def _outputs(self, chunks: list[Chunk]) -> list[tuple[Entry, Outputs]]:
        n_rows = sum(c.n if c.entry.all_rows else c.is_last for c in chunks)
        rows = self._context.all_logits(n_rows) if n_rows else np.empty((0, 0), np.float32)
        out: list[tuple[Entry, Outputs]] = []
        place, row = -1, 0
        for c in chunks:
            n = c.n if c.entry.all_rows else int(c.is_last)
            place += c.n
            if n > 0:
                states = partial(self._states, row, n)
                logits = rows[row : row + n]
                outputs = Outputs(c.entry.tokens, c.start, c.is_last, logits, states, self._context.handle, place)
                out.append((c.entry, outputs))
                row += n
        return out

    def _states(self, first_row: int, n: int) -> Rows:
        pointer = lib.llama_get_embeddings(self._context.handle)
        if not pointer:
            raise RopebendError("llama.cpp gave no hidden states")
        return np.ctypeslib.as_array(pointer, shape=(first_row + n, self._n_embd))[first_row:]
