"""Compiles C programs for tests."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
HEADERS = Path(llama_cpp.__file__).parents[1] / "include"  # where llama-cpp-python installs llama.cpp's headers
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler() -> str:
    return os.environ.get("CC") or shutil.which("cc") or "gcc"


def compile_c(output: Path, sources: Sequence[Path], *flags: str) -> Path:
    """Compile and link; warnings are errors."""
    command = [compiler(), "-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *map(str, sources), *flags]
    subprocess.run([*command, "-I", str(ROOT / "csrc"), "-o", str(output), "-lm", "-ldl", "-lpthread"], check=True)
    return output


def compile_decode(output: Path, headers: Path = HEADERS, libraries: Path = LIBRARIES, *more: str) -> Path:
    """decode.c, linked against the llama.cpp in `libraries`."""
    flags = ["-isystem", str(headers), f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"]
    return compile_c(output, [Path(__file__).parent / "csrc" / "decode.c"], *flags, *more)
