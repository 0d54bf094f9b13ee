"""How fast prompts are computed, learnt while they are."""

from __future__ import annotations

import time


class Pace:
    """Seconds per prompt token as a + b * position, by least squares over the batches so far: what stands before makes
    attention slower, so that the first batches alone would promise too much.
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self.seconds = 0.0
        self._last: float | None = None
        self._sums = [0.0] * 4  # of n * (x, x², y, x y) for x the middle position and y seconds per token

    def start(self) -> None:
        """A batch begins now."""
        self._last = time.monotonic()

    def add(self, n_tokens: int, position: int) -> None:
        """A batch ended that began where the last one ended."""
        now = time.monotonic()
        if self._last is not None and n_tokens:
            took, x = now - self._last, position + n_tokens / 2
            for i, value in enumerate((x, x * x, took / n_tokens, x * took / n_tokens)):
                self._sums[i] += n_tokens * value
            self.n_tokens += n_tokens
            self.seconds += took
        self._last = now

    def predict(self, n_tokens: int) -> float:
        """Seconds of a prompt of n tokens; 0 before anything was measured."""
        n = self.n_tokens
        if not n:
            return 0.0
        sx, sxx, sy, sxy = self._sums
        spread = n * sxx - sx * sx
        b = max(0.0, (n * sxy - sx * sy) / spread) if spread > 1e-9 * n * n else 0.0
        a = max(0.0, (sy - b * sx) / n)
        return a * n_tokens + b * n_tokens**2 / 2
