"""A search on the bundled model that takes a second or two, for tests of what goes on around it."""

from importlib import resources
from typing import Any

from ropebend.runtime import Runtime
from ropebend.search import SearchSpec, TaskSpec

NEEDLE = str(resources.files("ropebend.models.needle") / "needle-Q8_0.gguf")
ONE = Runtime(n_threads=1)
KV = TaskSpec(name="kv", options={"keys": 6, "depths": [0.0, 1.0]})


def spec(**changes: Any) -> SearchSpec:
    """The paper's method, unless the changes say otherwise."""
    small = {"model": NEEDLE, "tasks": (KV,), "controls": ("uniform",), "budget": "16", "screen": 1, "runtime": ONE}
    small |= {"genome": "bezier", "optimiser": "ga", "numbers": "scale"}
    return SearchSpec(**{**small, "finals": ((3, 2),), "test": 2, "population": 6, **changes})
