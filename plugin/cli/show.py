"""`ropebend show`: the numbers of a factors file or model, as a table with a curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ropebend.errors import FileError
from ropebend.scaling import LayerScaling


def show(
    file: Annotated[Path, typer.Argument(help="GGUF model or factors.json.", show_default=False)],
    json_output: Annotated[bool, typer.Option("--json", help="Print factors.json; null without scales.")] = False,
) -> None:
    """Print the numbers per layer that a GGUF or a factors.json carries, for every length, and what the model is."""
    if is_gguf(file):
        from ropebend.cli.info import Sheet

        with Sheet.open(file) as sheet:
            scaling = sheet.scaling
            if not json_output:
                print(sheet.text())
    else:
        scaling = LayerScaling.load(file)
        if not json_output:
            print(f"{file}: scales for {scaling.n_layer} layers of {scaling.architecture or 'any architecture'}")
    if json_output:
        print(json.dumps(scaling.to_json() if scaling is not None else None, indent=2, ensure_ascii=False))
    elif scaling is not None:
        print(render_all(scaling))


def is_gguf(file: Path) -> bool:
    """True if the file begins as a GGUF does.  FileError if it cannot be read."""
    try:
        with open(file, "rb") as f:
            return f.read(4) == b"GGUF"
    except OSError as e:
        raise FileError(f"{file}: {e.strerror}") from None


def render_all(scaling: LayerScaling) -> str:
    """Method, every plan's table, and where it came from."""
    rope = scaling.rope
    trained = f", original context {rope.original_context}" if rope.original_context else ""
    lines = [f"method {rope.method}, factor {rope.factor:g}{trained}; a scale of 2 halves llama.cpp's freq_scale"]
    bounds = [(p.up_to, p.scaling) for p in scaling.shorter]
    for up_to, part in [*bounds, (None, scaling.longest)]:
        lines.append("")
        if scaling.has_plans:
            beyond = f"beyond, meant for up to {scaling.up_to} tokens" if scaling.up_to else "beyond"
            if not scaling.shorter:
                beyond = f"meant for up to {scaling.up_to} tokens"
            lines.append(f"up to {up_to} tokens:" if up_to else f"{beyond}:")
        if part is None:
            lines.append("  unscaled, bit for bit the model as it is")
            continue
        lines.append(render(part))
        lines += [f"{key}: {part.provenance[key]}" for key in ("task", "n_ctx", "scores") if key in part.provenance]
    return "\n".join(lines)


def render(scaling: LayerScaling, width: int = 40) -> str:
    """A line per layer: number, scale, attention factor where there are any, and a bar that ends at the scale."""
    scales, factors = scaling.layer_scale, scaling.layer_attn_factor
    both = set(factors) != {1.0}
    low, high = min(1.0, *scales), max(1.0, *scales)
    span = (high - low) or 1.0
    lines = ["layer   scale" + ("  attention" if both else "")]
    for i, (s, a) in enumerate(zip(scales, factors, strict=True)):
        lines.append(f"{i:5d} {s:7.3f}{f'  {a:9.3f}' if both else ''}  {'█' * round((s - low) / span * width)}▏")
    return "\n".join(lines)
