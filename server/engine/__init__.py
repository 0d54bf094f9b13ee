"""The engine: one thread that owns the model and works on all requests at once.  It knows no HTTP.

What its users need is here: `Engine` takes lists of `Generation` or `Embed` and answers with events.
"""

from ropebend.server.engine.engine import Engine
from ropebend.server.engine.events import (
    Cancelled,
    Completed,
    Embedding,
    Event,
    Failed,
    Finished,
    Piece,
    Progress,
    Timing,
    TokenLogprob,
)
from ropebend.server.engine.loading import EngineOptions, Facts
from ropebend.server.engine.requests import Embed, Generation, Request, Submission, Unavailable
from ropebend.server.engine.sampling import Sampling

__all__ = [
    "Cancelled",
    "Completed",
    "Embed",
    "Embedding",
    "Engine",
    "EngineOptions",
    "Event",
    "Facts",
    "Failed",
    "Finished",
    "Generation",
    "Piece",
    "Progress",
    "Request",
    "Sampling",
    "Submission",
    "Timing",
    "TokenLogprob",
    "Unavailable",
]
