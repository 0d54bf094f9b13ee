"""RULER's thirteen tasks (Hsieh et al., 2024, arXiv 2404.06654): prompts, answer prefixes, lengths and metrics.

Templates and settings are facts of NVIDIA/RULER (Apache-2.0, commit c3f5e3b); the code is our own, and what is drawn at
random differs.  As there, `length` is all a sequence may take: the prompt, its answer prefix and the published room for
the answer.  Two protocols, never mixed in one table:

shared     (single and multi-key needles) every item is asked at each depth: where the haystack is made of needles or
           holds several, for the one that stands there, so that one prefill serves all depths; a single needle is moved
           metric: the first value that the model says
published  as RULER's generator draws them: one question an item, its needles anywhere
           metric: the share of the answers that stand in the published number of tokens (questions: any of them)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError, UsageError
from ropebend.tasks.length import FilledTask
from ropebend.tasks.ruler.file import RulerFile, is_ruler_file
from ropebend.tasks.ruler.needles import KINDS, Needles, NeedlesAnywhere
from ropebend.tasks.ruler.questions import FILES, Questions
from ropebend.tasks.ruler.variables import VariableTracking
from ropebend.tasks.ruler.words import CommonWords, FrequentWords
from ropebend.tasks.task import RetrievalTask

__all__ = ["NAMES", "TASKS", "RulerFile", "from_file", "is_ruler_file", "suite"]

_BY_DEPTH = ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3")

#: By RULER's names, in its order.
TASKS: dict[str, Callable[..., RetrievalTask]] = {
    **{name: partial(Needles if name in _BY_DEPTH else NeedlesAnywhere, name) for name in KINDS},
    "vt": VariableTracking,
    "cwe": CommonWords,
    "fwe": FrequentWords,
    "qa_1": partial(Questions, "qa_1"),
    "qa_2": partial(Questions, "qa_2"),
}
NAMES = tuple(TASKS)


def from_file(name: str, path: str | Path) -> RulerFile:
    """The prompts of one of RULER's own jsonl files, judged as the task `name` is.

    Raises RopebendError for a file that cannot be read or is none of RULER's, naming the line.
    """
    words: dict[str, type[FilledTask]] = {"vt": VariableTracking, "cwe": CommonWords, "fwe": FrequentWords}
    kind = NeedlesAnywhere if name in KINDS else words.get(name, Questions)
    return RulerFile(name, path, all_answers=kind.all_answers, max_answer_tokens=kind.reserved)


def suite(options: Mapping[str, Any]) -> tuple[dict[str, RetrievalTask], dict[str, str]]:
    """The whole suite under the published protocol, and for tasks that lack their texts the reason why.

    options: length (tokens), seed, text (essays), data (a folder with squad.json and hotpotqa.json, as RULER's script
    names them).  Raises UsageError where nothing is left, RopebendError where the folder is none or a file of it cannot
    be read.
    """
    made: dict[str, RetrievalTask] = {}
    missing: dict[str, str] = {}
    folder = Path(options["data"]) if options.get("data") is not None else None
    if folder is not None and not folder.is_dir():
        raise RopebendError(f"{folder}: ruler:all expects a folder with squad.json and hotpotqa.json")
    for name in NAMES:
        given: dict[str, Any] = {k: options[k] for k in ("length", "seed") if k in options}
        kind = KINDS.get(name)
        if name in _BY_DEPTH:
            given["protocol"] = "published"
        if kind is not None and kind.haystack == "essay":
            if options.get("text") is None:
                missing[name] = "needs essays: --text FILE"
                continue
            given["text"] = options["text"]
        if name.startswith("qa_"):
            file = folder / FILES[name] if folder is not None else None
            if file is None or not file.exists():
                missing[name] = f"needs a folder with {FILES[name]}: --data FOLDER"
                continue
            given["data"] = file
        made[f"ruler:{name}"] = TASKS[name](**given)
    if not made:
        raise UsageError("ruler:all: nothing to measure")
    return made, missing
