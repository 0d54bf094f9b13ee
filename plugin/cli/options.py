"""Options that several subcommands share, and how their values are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ropebend.errors import RopebendError, UsageError

if TYPE_CHECKING:
    from ropebend.tasks.kv import Sample

ModelPath = Annotated[Path, typer.Argument(help="GGUF model file.", show_default=False)]
Factors = Annotated[
    Path | None, typer.Option("--factors", help="Use the scales of this factors.json instead of those in the GGUF.")
]
Task = Annotated[str, typer.Option(help="What to measure: kv (key-value retrieval).")]
Keys = Annotated[int, typer.Option(min=1, help="Key-value pairs per JSON object.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Take samples from this file of the published format (.jsonl, .jsonl.gz)."),
]
Depths = Annotated[str, typer.Option(help="Depths of the asked pair: 0 is the first, 1 the last.")]
Protocol = Annotated[
    str,
    typer.Option(
        help="shared: ask for the pair that stands at each depth (one prefill per JSON); "
        "published: move one pair to each depth, as in the paper's script."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="CPU threads (0: all this process may use).")]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=32, help="Tokens per llama_decode call.")]
GpuLayers = Annotated[int, typer.Option("--n-gpu-layers", "-ngl", help="Layers to put on the GPU (-1: all).")]
FlashAttn = Annotated[bool, typer.Option("--flash-attn/--no-flash-attn", help="Use flash attention.")]


def check_writable(path: Path) -> None:
    """Raise RopebendError now if the result could not be written after hours of work."""
    folder = path.parent if path.parent.exists() else next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is read-only"
        raise RopebendError(f"{path}: cannot be written: {reason}")


def check_task(task: str, protocol: str) -> None:
    """Raise UsageError for a task or protocol that does not exist."""
    from ropebend.tasks import kv

    if task != "kv":
        raise UsageError(f"--task: expected kv, got {task!r}")
    if protocol not in kv.PROTOCOLS:
        raise UsageError(f"--protocol: expected one of {', '.join(kv.PROTOCOLS)}, got {protocol!r}")


def numbers(text: str, option: str, low: float = 0.0, high: float = float("inf")) -> list[float]:
    """Comma-separated numbers in [low, high].  Raises UsageError naming the option."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option}: expected numbers separated by commas, got {text!r}") from None
    if not all(low <= v <= high for v in values):
        raise UsageError(f"{option}: expected numbers in [{low:g}, {high:g}], got {text!r}")
    return values


def kv_samples(data: Path | None, keys: int, n: int, seed: int, stream: str) -> list[Sample]:
    """n samples, from the file if one is given, else generated.

    stream: "search" or "eval"; the same seed gives them different items, so that what was searched on is not judged on.
    """
    from ropebend.tasks import kv

    return kv.read_published(data, n) if data is not None else kv.generate(keys, n, f"{stream}-{seed}")
