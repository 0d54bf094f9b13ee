"""Engines without HTTP, and what they answer."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ropebend.server.engine.engine import Engine
from ropebend.server.engine.events import Completed, Event, Failed, Finished, Piece
from ropebend.server.engine.requests import Request

from ..conftest import engine_options, wait_for


class Answers:
    """Runs many jobs at once and gathers what came of them."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def ask(self, requests: Sequence[Request]) -> tuple[list[str], list[Finished]]:
        """Each request as a job of its own, all at once."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        for i, request in enumerate(requests):
            self.engine.submit([request], lambda event, i=i: events.put((i, event)))  # type: ignore[misc]
        texts, finishes, n_open = [""] * len(requests), [Finished(0, "stop", 0)] * len(requests), len(requests)
        while n_open:
            i, event = events.get(timeout=60)
            assert not isinstance(event, Failed), event
            if isinstance(event, Piece):
                texts[i] += event.text
            elif isinstance(event, Finished):
                finishes[i] = event
            n_open -= isinstance(event, Completed)
        return texts, finishes


@pytest.fixture
def started() -> Iterator[Callable[..., Engine]]:
    """Start engines, of which nothing may be left in the end."""
    engines: list[Engine] = []

    def make(path: Path, **options: Any) -> Engine:
        engine = Engine(engine_options(path, **options))
        engines.append(engine)
        engine.start()
        wait_for(lambda: engine.facts or engine.failure)
        assert engine.failure is None
        return engine

    yield make
    for engine in engines:
        pool = engine.scheduler.pool
        pool.clear_cached()
        assert pool.n_free == pool.n_cells
        assert pool.checkpoints.n_bytes == 0
        assert engine.stop(60)


@pytest.fixture
def load(started: Callable[..., Engine]) -> Callable[..., Answers]:
    return lambda path, **options: Answers(started(path, **options))
