"""The JSON that an evaluation writes: figures and every answer, after each item, so that a kill loses one at most."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ropebend.evaluate.evaluation import Evaluation, Row
from ropebend.files import write_json
from ropebend.scaling import LayerScaling
from ropebend.tasks.task import RetrievalTask, Task

FORMAT = "ropebend-eval/1"


class ResultFile:
    """One result file and what its figures depend on: model, task, scales, how llama.cpp runs, versions."""

    def __init__(self, path: Path, depends_on: dict[str, Any]):
        self.path = path
        text = json.dumps(depends_on, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def read(self, task: Task) -> tuple[list[Row], dict[str, Any]]:
        """Rows that an earlier call with the same dependencies has left, and its report; none if there was none."""
        try:
            report = json.loads(self.path.read_text(encoding="utf-8"))
            if report["format"] != FORMAT or report["key"] != self.key:
                return [], {}
            logprob = report["logprob"]
            if not isinstance(task, RetrievalTask):
                return [Row((p,), (p,)) for p in logprob], report
            parts = zip(report["correct"], logprob, report["answers"], strict=True)
            return [Row(tuple(map(float, v)), tuple(p), (), tuple(t)) for v, p, t in parts], report
        except (OSError, ValueError, KeyError, TypeError):
            return [], {}

    def write(self, result: Evaluation, scaling: LayerScaling | None, **about: Any) -> None:
        """Write the report whole or not at all.  Raises FileError naming the file."""
        carried = scaling.to_json() if scaling is not None else None
        write_json(self.path, {"format": FORMAT, **about, "key": self.key, "scaling": carried, **result.to_json()})


def label(task: Task) -> str:
    """A task and its size for a file's name: "kv-75", "passkey-4096".  Other sizes then do not overwrite each other."""
    config = task.config()
    sizes = [str(config[k]) for k in ("keys", "length", "documents", "lines") if isinstance(config.get(k), int)]
    protocol = [config["protocol"]] if config.get("protocol") == "published" else []
    name = "".join(c if c.isalnum() or c in "_.-" else "-" for c in Path(str(config["name"])).stem)
    return "-".join([name, *sizes, *protocol])
