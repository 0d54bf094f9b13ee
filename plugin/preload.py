"""Runs other people's llama.cpp programs with the preload library, and tells which of them cannot be."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ropebend.errors import RopebendError, UsageError

LIBRARY = Path(__file__).parent / "libropebend_preload.so"


def library() -> Path:
    """The preload library.  Raises RopebendError where there is none (only Linux has one)."""
    if not LIBRARY.exists():
        raise RopebendError(f"{LIBRARY}: missing; the preload library is built on Linux only, here is {sys.platform}")
    if any(c in str(LIBRARY) for c in " :"):
        raise RopebendError(f"{LIBRARY}: LD_PRELOAD cannot hold a space or colon; install ropebend elsewhere")
    return LIBRARY


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy of `environ` that makes programs load the library first."""
    ours = str(library())
    others = [p for p in environ.get("LD_PRELOAD", "").replace(":", " ").split() if p != ours]
    return {**environ, "LD_PRELOAD": ":".join([ours, *others])}


def find_program(name: str, path: str | None) -> Path:
    """The file that running `name` would execute.

    Raises UsageError if there is none, RopebendError if its llama.cpp cannot be patched.
    """
    found = shutil.which(name, path=path)
    if found is None:
        raise UsageError(f"{name}: no such program (looked in PATH), or it is not executable")
    program = Path(found)
    check_program(program)
    return program


@dataclass(frozen=True)
class Elf:
    """Facts from an ELF header: kind is (class, byte order, machine), interpreter the dynamic loader or None."""

    kind: tuple[int, int, int]
    interpreter: bytes | None


def read_elf(data: mmap.mmap | bytes) -> Elf | None:
    """The facts of an ELF file's bytes, or None if it is no ELF (a script) or damaged."""
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] not in (1, 2):
        return None
    order, wide = "<>"[data[5] - 1], data[4] == 2
    try:
        (machine,) = struct.unpack_from(order + "H", data, 18)
        (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
        entry_size, count = struct.unpack_from(order + "HH", data, 54 if wide else 42)
        interpreter = None
        for i in range(count):
            at = table + i * entry_size
            (kind,) = struct.unpack_from(order + "I", data, at)
            if kind == 3:  # PT_INTERP
                start, length = struct.unpack_from(order + ("Q16xQ" if wide else "I8xI"), data, at + (8 if wide else 4))
                interpreter = bytes(data[start : start + length]).rstrip(b"\0")
    except struct.error:
        return None
    return Elf((data[4], data[5], machine), interpreter)


def check_program(program: Path) -> None:
    """Raise RopebendError if LD_PRELOAD cannot reach the llama.cpp of this program: it would run unscaled."""
    try:
        with open(program, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            elf = read_elf(data)
            has_ggml = data.find(b"ggml-backend.cpp") >= 0  # a file name in its assertions
            mode = os.fstat(f.fileno()).st_mode
    except (OSError, ValueError):
        return  # empty or not readable: running it says why
    if elf is None:
        return  # a script: what it starts inherits the library, which looks itself
    ours = read_elf(library().read_bytes())
    reason = None
    if elf.interpreter is None:
        reason = "it is a static executable"
    elif ours is not None and elf.kind != ours.kind:
        reason = "it is for another kind of machine than this Python"
    elif b"musl" in elf.interpreter:
        reason = "it is linked against musl, the library is not"
    elif mode & 0o6000:
        reason = "it is setuid or setgid, and the loader ignores LD_PRELOAD for such programs"
    elif has_ggml:
        reason = "llama.cpp is linked into it statically; build llama.cpp with -DBUILD_SHARED_LIBS=ON"
    if reason is not None:
        raise RopebendError(f"{program}: layer scales cannot be applied: {reason}. Or use `ropebend serve`")


# ---- llama-server's cap


def warnings(program: Path, args: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """What the user should know before this program starts: no scales in its model, or a context that will be cut."""
    from ropebend.model_info import ModelInfo

    model = _option(args, ("-m", "--model"), environ.get("LLAMA_ARG_MODEL"))
    if model is None:
        return []
    try:
        info = ModelInfo.read(model)
    except RopebendError:
        return []  # the program, or the library in it, says so
    if info.scaling is None:
        return [f"{model} carries no layer scales, so it runs unscaled; `ropebend add-scales` writes them"]
    is_server = program.name == "llama-server" or (program.name == "llama" and list(args[:1]) == ["serve"])
    n_ctx = _integer(_option(args, ("-c", "--ctx-size"), environ.get("LLAMA_ARG_CTX_SIZE")))
    n_parallel = _integer(_option(args, ("-np", "--parallel"), environ.get("LLAMA_ARG_N_PARALLEL")))
    if n_parallel > 1 and not {"-kvu", "--kv-unified"} & set(args):
        n_ctx //= n_parallel
    key = f"{info.architecture}.context_length"
    overridden = any(f"{key}=" in a for a in args)
    by_yarn = _option(args, ("--rope-scaling",), None) == "yarn" or "--yarn-orig-ctx" in args
    if not is_server or n_ctx <= info.n_ctx_train or overridden or by_yarn:
        return []
    return [
        f"llama-server cuts every slot to the training context of {info.n_ctx_train} tokens, {n_ctx} were asked "
        f"for; add --override-kv {key}=int:{n_ctx}"
    ]


def _option(args: Sequence[str], names: Sequence[str], default: str | None) -> str | None:
    value = default
    for name, following in itertools.pairwise(args):
        if name in names:
            value = following
    return value


def _integer(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0
