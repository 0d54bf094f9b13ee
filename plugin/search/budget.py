"""How long a search may go on: evaluations, tokens or time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ropebend.errors import UsageError

_TIME = {"s": 1, "m": 60, "min": 60, "h": 3600}
_TOKENS = {"tok": 1, "ktok": 1_000, "Mtok": 1_000_000}


@dataclass(frozen=True)
class Budget:
    """An amount of "evaluations" (different sets of scales), "tokens" (prompt tokens computed) or "seconds"."""

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
            if amount > 0 and unit in _TIME:
                return cls(amount * _TIME[unit], "seconds")
            if amount > 0 and unit in _TOKENS:
                return cls(amount * _TOKENS[unit], "tokens")
        raise UsageError(
            f"budget: expected evaluations (300), tokens (5Mtok, 200ktok) or time (90s, 20m, 2h), got {text!r}"
        )

    def share(self, n: int) -> Budget:
        """An equal part for each of n searches."""
        amount = self.amount / n
        return Budget(max(1.0, float(int(amount))) if self.unit == "evaluations" else amount, self.unit)
