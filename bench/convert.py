#!/usr/bin/env python3
"""Time and memory of add_scales against cp and gguf-py's gguf_new_metadata: python bench/convert.py --folder /a/disk.

Writes a model of --gib GiB into the folder and needs as much again.  The rounds are interleaved; ratios are taken
within a round.  Cold: the model's pages are dropped from the cache before each run; warm: all of it is read before.
Before each run everything is on the disk, so that nobody waits for another's writing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

N_LAYER = 32
TENSOR = 64 << 20  # bytes


def write_model(path: Path, size: int) -> None:
    """A GGUF with the vocabulary and the number of tensors of an 8 B model, full of random bytes."""
    import gguf

    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(N_LAYER)
    w.add_context_length(8192)
    w.add_array("tokenizer.ggml.tokens", [f"token-{i}" for i in range(128_000)])
    w.add_array("tokenizer.ggml.merges", [f"to ken-{i}" for i in range(280_000)])
    n = size // TENSOR
    for i in range(n):
        w.add_tensor_info(f"blk.{i}.weight", (TENSOR,), np.dtype(np.uint8), TENSOR, gguf.GGMLQuantizationType.I8)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    w.close()
    rng = np.random.default_rng(0)
    with open(path, "ab") as f:
        f.write(bytes(-f.tell() % 32))
        for _ in range(n):
            f.write(rng.bytes(TENSOR))
        f.flush()
        os.fsync(f.fileno())


def timed(command: list[str]) -> tuple[float, float]:
    """Wall time in seconds and peak resident memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(command)}: {error.decode()}")
    return wall, usage.ru_maxrss / 1024


def prepare(model: Path, cold: bool) -> None:
    os.sync()
    with open(model, "rb") as f:
        if cold:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while f.read(1 << 24):
                pass


def main(
    folder: Annotated[Path, typer.Option(help="Where to write; decides which file system is measured.")] = Path("."),
    gib: Annotated[int, typer.Option(help="Size of the model.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds, each once cold and once warm.")] = 5,
    peer_rounds: Annotated[int, typer.Option(help="Rounds in which gguf_new_metadata takes part.")] = 2,
) -> None:
    """Print a table of medians, ratios to cp and peak memory."""
    work = folder / "ropebend-bench"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        model, out, factors = work / "model.gguf", work / "out.gguf", work / "factors.json"
        # In a process of its own: a child's peak memory begins with that of its parent.
        writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(model, gib << 30))
        writer.start()
        writer.join()
        ours = [sys.executable, "-m", "ropebend.convert.add_scales"]
        factors.write_text(json.dumps([1.5] * N_LAYER))
        commands = {
            "cp --reflink=never": ["cp", "--reflink=never", str(model), str(out)],
            "add_scales": [*ours, str(model), str(factors), "-o", str(out)],
            "add_scales --no-verify": [*ours, str(model), str(factors), "-o", str(out), "--no-verify"],
            "gguf_new_metadata": [
                *(sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", "--general-name", "x"),
                *(str(model), str(out)),
            ],
        }
        names = list(commands)
        results: dict[tuple[bool, str], list[tuple[float, float, float]]] = {}
        for i in range(rounds):
            for cold in (True, False):
                walls: dict[str, tuple[float, float]] = {}
                for name in names[i % len(names) :] + names[: i % len(names)]:
                    if name == "gguf_new_metadata" and i >= peer_rounds:
                        continue
                    out.unlink(missing_ok=True)
                    prepare(model, cold)
                    walls[name] = timed(commands[name])
                for name, (wall, memory) in walls.items():
                    ratio = wall / walls[names[0]][0]
                    results.setdefault((cold, name), []).append((wall, ratio, memory))
        print(f"{model.stat().st_size:,} bytes, {rounds} rounds, medians [quartiles]")
        for (cold, name), rows in sorted(results.items(), key=lambda r: (not r[0][0], names.index(r[0][1]))):
            wall, ratio, memory = np.array(rows).T
            low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            print(
                f"{'cold' if cold else 'warm'}  {name:24} {np.median(wall):7.2f} s   "
                f"{middle:5.2f} × cp [{low:.2f}–{high:.2f}]   peak {memory.max():5.0f} MiB"
            )
        out.unlink()
        timed(commands["add_scales"])
        edits = []
        for i in range(10):
            factors.write_text(json.dumps([1.5 + 0.1 * (i + 1)] * N_LAYER))
            edits.append(timed([*ours, str(out), str(factors), "--in-place"])[0])
        empty = [timed([*ours, "--help"])[0] for _ in range(10)]
        print(f"other factors --in-place: {np.median(edits):.2f} s, of which Python's start {np.median(empty):.2f} s")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    typer.run(main)
