#!/usr/bin/env python3
"""The C core on older versions of llama.cpp: python bench/versions.py 0.3.36 0.3.24 … [-o docs/versions.md].

For each version of llama-cpp-python: fetch its source, build the llama.cpp in it (about 5 minutes on 2 cores), run the
layout probe, run tests/csrc/decode.c under the preload library against its own rope_freq_scale, and `ropebend doctor`
with that version's Python package.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Annotated

import table
import typer

from ropebend import LayerScaling, _native, preload

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from c_programs import compile_decode
from random_models import write_llama

SWITCHES = ["CURL", "OPENSSL", "BUILD_COMMON", "BUILD_TESTS", "BUILD_TOOLS", "BUILD_EXAMPLES", "BUILD_SERVER"]


def build(version: str, work: Path) -> tuple[Path, Path]:
    """llama.cpp's source and library folders for this version, made if they are not there."""
    source = work / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
    if not source.exists():
        wanted = f"llama-cpp-python=={version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(work)]
        subprocess.run([*command, wanted], check=True)
        with tarfile.open(work / f"llama_cpp_python-{version}.tar.gz") as tar:
            tar.extractall(work, filter="data")
    folder = work / f"b-{version}"
    if not list(folder.glob("bin/libllama.so*")):
        off = [f"-DLLAMA_{name}=OFF" for name in SWITCHES]
        make = ["cmake", "-S", source, "-B", folder, "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_TYPE=Release", *off]
        subprocess.run(make, check=True, stdout=sys.stderr)
        subprocess.run(["cmake", "--build", folder, "-j2", "--target", "llama"], check=True, stdout=sys.stderr)
    return source, folder / "bin"


def probe(libraries: Path) -> None:
    """Load these libraries, run the layout probe and print what it found, as JSON."""
    loaded = [ctypes.CDLL(str(libraries / f"lib{name}.so")) for name in ("ggml-base", "ggml", "llama")]
    addresses = {}
    for name in _native.API:
        found = [getattr(library, name) for library in loaded if hasattr(library, name)]
        if found:
            addresses[name] = ctypes.cast(found[0], ctypes.c_void_p).value
    try:
        print(json.dumps(_native.init(addresses)))
    except RuntimeError as e:
        print(json.dumps({"problem": str(e)}))


def row(version: str, work: Path) -> str:
    """One line of the table."""
    source, libraries = build(version, work)
    command = [sys.executable, __file__, "--probe", str(libraries)]
    layout = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if "problem" in layout:
        return f"| {version} | {layout['problem']} | | |"
    header = (source / "include" / "llama.h").read_text()
    more = () if "flash_attn_type" in header else ("-DNO_FLASH_ATTN_TYPE",)
    headers = work / f"include-{version}"
    headers.mkdir(exist_ok=True)
    for path in [*(source / "include").glob("*.h"), *(source / "ggml" / "include").glob("*.h")]:
        (headers / path.name).write_text(path.read_text())
    decode = compile_decode(work / f"decode-{version}", headers, libraries, *more)
    plain = write_llama(work / "plain.gguf")
    uniform = write_llama(work / "uniform.gguf", scaling=LayerScaling((2.0,) * 3))

    def logits(model: str, scaled: bool) -> str:
        env = preload.environment(os.environ) if scaled else None
        run = subprocess.run([decode, "256", model], capture_output=True, text=True, env=env, check=False)
        return run.stdout if run.returncode == 0 else run.stderr[-200:]

    by_flag, by_file = logits(f"{plain}@0.5", False), logits(str(uniform), True)
    ok = by_file == by_flag and by_flag.count("\n") == 2 and logits(str(plain), True) == logits(str(plain), False)
    same = "bit for bit, K-shift included" if ok else f"differs: {by_file[:80]}"
    where = ", ".join(f"{k} {v}" for k, v in layout.items())
    return f"| {version} | {where} | {same} | {doctor(source.parents[1], libraries, plain)} |"


def doctor(source: Path, libraries: Path, model: Path) -> str:
    """What `ropebend doctor` says under this version's Python package, on these libraries."""
    installed = libraries.parent / "python"
    shutil.copytree(source / "llama_cpp", installed / "llama_cpp", dirs_exist_ok=True)
    if not (installed / "llama_cpp" / "lib").exists():
        (installed / "llama_cpp" / "lib").symlink_to(libraries)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "ropebend.cli", "doctor", "--full", str(model)]
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return "passes" if run.returncode == 0 else (run.stdout + run.stderr).strip().splitlines()[-1][:120]


def main(
    versions: Annotated[list[str] | None, typer.Argument(help="Versions of llama-cpp-python.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for sources and builds.")] = Path("build/versions"),
    output: Annotated[Path | None, typer.Option("-o", help="Write the table here, too.")] = None,
    libraries: Annotated[Path | None, typer.Option("--probe", hidden=True)] = None,
) -> None:
    """Print the table."""
    if libraries is not None:
        return probe(libraries)
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    lines = [
        "| llama-cpp-python | layout probe | preload library, scale 2 against rope_freq_scale 0.5 | ropebend doctor |",
        "|---|---|---|---|",
        *(row(v, work) for v in versions or []),
    ]
    print("\n".join(lines))
    if output is not None:
        table.write(output, "versions.py", lines)


if __name__ == "__main__":
    typer.run(main)
