"""Finding scales.  From Python:

    from ropebend.search import SearchSpec, TaskSpec, folder, verdict

    spec = SearchSpec(model="model.gguf", tasks=[TaskSpec(name="kv", options={"keys": 75})], budget="20m")
    run = Path("search")
    outcome = folder.run_in(run, folder.start(run, spec))  # factors.json, report.html, every measurement
    print(verdict(outcome), outcome.layers.layer_scale)

`run_search` does the same without a folder.

Pieces: `space` (what is searched), `optimisers` (ask and tell), `objective` (what is maximised), `worker`, `workers`
and `measure` (where, and only once), `run` (all of it), `outcome`, `verdict` and `report` (what came of it), `folder`
(what stays).
"""

from ropebend.search import folder
from ropebend.search.outcome import Listener, Outcome
from ropebend.search.run import run_search
from ropebend.search.spec import SearchSpec, TaskSpec
from ropebend.search.verdict import verdict

__all__ = ["Listener", "Outcome", "SearchSpec", "TaskSpec", "folder", "run_search", "verdict"]
