#!/usr/bin/env python3
"""The doctor's checks on a folder of models, as a table: bench/architectures.py FOLDER [-o docs/architectures.md].

llama.cpp writes such a folder, a small random model for nearly every architecture it knows:
`cmake -DLLAMA_BUILD_TESTS=ON …`, then `test-llama-archs -o FOLDER`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import llama_cpp
import table
import typer

from ropebend import Context, LayerScaling, Model, RopebendError
from ropebend.doctor import examine


@dataclass
class Result:
    """What came of one model.  checks: what the doctor found, by name; refusal: why scales are refused, if they are."""

    file: str
    architecture: str
    checks: dict[str, dict[str, Any]]
    refusal: str | None
    crash: str | None = None

    @property
    def ok(self) -> bool:
        """It works, or is refused."""
        return self.refusal is not None or all(c["ok"] for c in self.checks.values())


def examine_here(path: Path, shift: bool) -> None:
    """Check one model in this process and print the result as JSON."""
    with Model(path) as model:
        refusal = None
        try:
            Context(model, n_ctx=64, scaling=LayerScaling.uniform(2.0, model.info.n_layer)).close()
        except RopebendError as e:
            refusal = str(e).removeprefix(f"{path}: ")
        found = [] if refusal else examine(model, n_threads=1, shift=shift, full=True)
        checks = {c.name: vars(c) for c in found}
        print(json.dumps({"architecture": model.info.architecture, "checks": checks, "refusal": refusal}))


def examine_model(path: Path) -> Result:
    """Check one model in a process of its own: llama.cpp may abort."""
    crash = None
    for options in ([], ["--no-shift"]):
        command = [sys.executable, __file__, str(path), "--one", *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return Result(path.stem, **json.loads(run.stdout.splitlines()[-1]), crash=crash)
        crash = "llama.cpp aborts in the K-shift, unscaled too" if run.returncode < 0 else run.stderr[-300:]
    failure = {"finding": "it does not run", "ok": False, "detail": crash or ""}
    return Result(path.stem, "?", {"runs": failure}, None, crash)


def row(r: Result) -> str:
    """One line of the table."""
    if r.refusal is not None:
        return f"| {r.architecture} | {r.file} | refused: {r.refusal} | | | |"
    if not r.ok:
        failed = next(c for c in r.checks.values() if not c["ok"])
        return f"| {r.architecture} | {r.file} | **FAILS**: {failed['finding']}: {failed['detail']} | | | |"
    details = {name: c["detail"] for name, c in r.checks.items()}
    if "flag logits" in details:
        flag = details["flag logits"] + (", after a K-shift too" if "flag logits shifted" in details else "")
    elif details["flag"].startswith("not compared"):
        flag = details["flag"]
    else:
        flag = details["flag"].removeprefix("equal in ").replace(" rope nodes; the flag reaches no others", " reached")
    worst = details["numpy"].partition("largest error ")[2].partition(" of what")[0]
    notes = [r.crash] if r.crash else []
    if details["alone attention factor"].startswith("not"):
        notes.append("attention factors without effect: a norm follows")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"| {r.architecture} | {r.file} | works{note} | {details['nodes']} | {worst} | {flag} |"


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of GGUF models.")],
    output: Annotated[Path | None, typer.Option("-o", help="Write the table here, too.")] = None,
    one: Annotated[bool, typer.Option("--one", hidden=True)] = False,
    shift: Annotated[bool, typer.Option(hidden=True)] = True,
) -> None:
    """Check every model and print the table; exit code 1 if one neither works nor is refused."""
    if one:
        return examine_here(folder, shift)
    paths = sorted(folder.glob("*.gguf"))
    if not paths:
        raise typer.BadParameter(f"no .gguf file in {folder}")
    results = []
    for i, path in enumerate(paths):
        print(f"\r\033[K{i + 1}/{len(paths)} {path.stem}", end="", file=sys.stderr, flush=True)
        results.append(examine_model(path))
    print("\r\033[K", end="", file=sys.stderr)
    refused = sum(r.refusal is not None for r in results)
    failed = sum(not r.ok for r in results)
    by_flag = sum(r.checks.get("flag logits", {}).get("detail") == "bit for bit" for r in results)
    shifted = sum("flag logits shifted" in r.checks for r in results if r.ok)
    lines = [
        f"{len(results)} models with llama-cpp-python {llama_cpp.__version__}: {len(results) - refused - failed} work, "
        f"{refused} are refused by name or by their graph, {failed} fail. In {by_flag} a uniform scale gives the "
        f"logits of `rope_freq_scale` bit for bit, in {shifted} after a K-shift, too.",
        "",
        "| architecture | model | verdict | rope nodes | error ÷ rounding, against numpy | scale 2 against the flag |",
        "|---|---|---|---|---|---|",
        *map(row, results),
    ]
    print("\n".join(lines))
    if output is not None:
        table.write(output, "architectures.py", lines)
    raise typer.Exit(failed > 0)


if __name__ == "__main__":
    typer.run(main)
