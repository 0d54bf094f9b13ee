"""`ropebend factors`: the ready factors that come with ropebend, and which of them fit a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ropebend.factors import AUTO, fitting, ready
from ropebend.shell import command


def factors(
    model: Annotated[Path | None, typer.Argument(help="Those that fit this GGUF.", show_default="list all")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the ready factors for public models, with what they were found to do on items that no search has seen."""
    found = ready() if model is None else [fitting(model)]
    if json_output:
        print(json.dumps([{"file": str(one.path), "model": one.model, "n_ctx": one.n_ctx, "figures": one.figures,
                           "tensors": one.tensors} for one in found], indent=2, ensure_ascii=False))  # fmt: skip
        return
    for one in found:
        print(f"{one.model}\n  up to {one.n_ctx:,} tokens: {one.figures}\n  {one.path}")
    if model is not None:
        print(f"\nwrite them:  {command('ropebend', 'add-scales', model, AUTO)}")
        print(f"or serve:    {command('ropebend', 'serve', model, '--factors', AUTO)}")
    else:
        print("\nropebend factors MODEL.gguf says which fit")
        print("serve, eval and chat take --factors auto, add-scales takes auto")
