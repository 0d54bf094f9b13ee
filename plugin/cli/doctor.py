"""`ropebend doctor`: proof that the hook is active on a model."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from ropebend.cli import options as o


def doctor(
    model: o.ModelPath,
    threads: o.Threads = 0,
    n_gpu_layers: o.GpuLayers = 0,
    flash_attn: o.FlashAttn = "off",
    cache_type_k: Annotated[str, typer.Option(help="Type of the K cache (f16, f32, q8_0, q4_0 …).")] = "f16",
    full: Annotated[
        bool, typer.Option("--full", help="Also compare with llama.cpp's own flag, and try every method on top.")
    ] = False,
    details: Annotated[bool, typer.Option("--details", help="Figures for developers behind each finding.")] = False,
) -> None:
    """Check on this model that scales reach every layer's rotation and nothing else; exit code 1 if not."""
    import llama_cpp

    import ropebend
    from ropebend.doctor import examine, shift_obstacle
    from ropebend.model import Model
    from ropebend.runtime import cache_type

    print(
        f"ropebend {ropebend.__version__}, llama-cpp-python {llama_cpp.__version__}, Python {platform.python_version()}"
    )
    cache_type(cache_type_k)  # a wrong one is named before the model is loaded
    failed = 0
    with Model(model, n_gpu_layers=n_gpu_layers) as loaded:
        info = loaded.info
        print(f"{info.path}: {info.name} ({info.architecture}), {info.n_layer} layers, trained at {info.n_ctx_train}")
        print(f"scales in the file: {info.scaling or 'none'}\n", flush=True)
        for check in examine(loaded, n_threads=threads, flash_attn=flash_attn, type_k=cache_type_k, full=full):
            more = f": {check.detail}" if check.detail and (details or not check.ok) else ""
            print(f"{'ok  ' if check.ok else 'FAIL'} {check.finding}{more}", flush=True)
            failed += not check.ok
        obstacle = shift_obstacle(loaded, cache_type_k) if not failed else None
        if obstacle is not None:
            print(f"--   context shift not checked: {obstacle}")
    if failed:
        print(f"\n{failed} {'check' if failed == 1 else 'checks'} failed: do not trust scales on this model here")
        raise typer.Exit(1)
    print("\nscales work on this model" + ("" if full else "; --full checks more, --details shows figures"))
