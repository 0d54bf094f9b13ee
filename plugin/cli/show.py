"""`ropebend show`: the scales of a model or factors file, as a table and a small curve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling
from ropebend.shell import command


def show(
    file: Annotated[Path, typer.Argument(help="GGUF model or factors.json.", show_default=False)],
    json_output: Annotated[bool, typer.Option("--json", help="Print factors.json instead.")] = False,
) -> None:
    """Print the per-layer scales that a GGUF or a factors file carries."""
    scaling, what = read_scaling(file)
    if json_output:
        import json

        print(json.dumps(scaling.to_json(), indent=2, ensure_ascii=False))
        return
    print(what)
    rope = scaling.rope
    trained = f", original context {rope.original_context}" if rope.original_context else ""
    print(f"method {rope.method}, factor {rope.factor:g}{trained}; a scale of 2 halves llama.cpp's freq_scale\n")
    print(render(scaling))
    for key in ("task", "n_ctx", "scores"):
        if key in scaling.provenance:
            print(f"{key}: {scaling.provenance[key]}")


def read_scaling(file: Path) -> tuple[LayerScaling, str]:
    """The scales in a file and a line that says whose they are.  Raises RopebendError if there are none."""
    try:
        with open(file, "rb") as f:
            is_gguf = f.read(4) == b"GGUF"
    except OSError as e:
        raise RopebendError(f"{file}: {e.strerror}") from None
    if not is_gguf:
        scaling = LayerScaling.load(file)
        return scaling, f"{file}: scales for {scaling.n_layer} layers of {scaling.architecture or 'any architecture'}"

    from ropebend.model_info import ModelInfo

    info = ModelInfo.read(file)
    if info.scaling is None:
        raise RopebendError(
            f"{file}: carries no layer scales; find some with `{command('ropebend', 'search', file)}` and write them "
            f"with `{command('ropebend', 'add-scales', file, 'factors.json')}`"
        )
    return (
        info.scaling,
        f"{file}: {info.name} ({info.architecture}), {info.n_layer} layers, trained at {info.n_ctx_train}",
    )


def render(scaling: LayerScaling, width: int = 40) -> str:
    """A line per layer: number, scale, and a bar from 1 to the largest scale."""
    scales = scaling.layer_scale
    low, high = min(1.0, *scales), max(*scales, 1.0) if len(scales) > 1 else max(scales[0], 1.0)
    span = (high - low) or 1.0
    lines = ["layer   scale"]
    for i, s in enumerate(scales):
        n = round((s - low) / span * width)
        lines.append(f"{i:5d} {s:7.3f}  {'█' * n}▏")
    return "\n".join(lines)
