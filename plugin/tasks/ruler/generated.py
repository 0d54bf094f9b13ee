"""RULER's generated tasks whose answers stand at no depth; the score is the share of them found."""

from __future__ import annotations

from typing import Any

from ropebend.tasks.length import FilledTask


class GeneratedTask(FilledTask):
    """As long as the length in tokens allows, the same for the same seed."""

    exact = False
    all_answers = True
    depths = ()

    def __init__(self, *, length: int = 4096, seed: int | str = 1):
        super().__init__()
        self.length, self.seed = length, seed

    def config(self) -> dict[str, Any]:
        """Length, seed."""
        return {
            "name": self.name,
            **self.chat_config,
            "length": self.length,
            "protocol": "published",
            "seed": self.seed,
        }
