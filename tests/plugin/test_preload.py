"""`ropebend exec`: what it sets, refuses and warns of.  Real programs are in tests/csrc/test_preload.py."""

import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from random_models import write_llama

from ropebend import LayerScaling, RopebendError, preload
from ropebend.errors import UsageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the preload library is for Linux")


def ropebend(*args: object, code: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ropebend.cli", *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    assert run.returncode == code, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run


def program(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def elf(*, interpreter: bytes | None = b"/lib64/ld-linux-x86-64.so.2", more: bytes = b"") -> bytes:
    """A 64-bit little-endian ELF header of this machine with one program header, and something behind."""
    own = preload.read_elf(preload.library().read_bytes())
    assert own is not None
    kind, text = (3, interpreter) if interpreter is not None else (1, b"")
    head = b"\x7fELF" + bytes([own.kind[0], own.kind[1], 1]) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, own.kind[2], 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(text) + 1, len(text) + 1, 1) + text + b"\0" + more


def test_preload_path_is_the_library() -> None:
    path = Path(ropebend("preload-path").stdout.strip())
    assert path.name == "libropebend_preload.so"
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_exec_runs_the_program_with_its_arguments_and_exit_code(tmp_path: Path) -> None:
    script = program(tmp_path / "prog", b'#!/bin/sh\necho "$LD_PRELOAD|$*"\nexit 7\n')
    run = ropebend("exec", "--", script, "--help", "-m", "x y", code=7, env={"LD_PRELOAD": ""})
    assert run.stdout == f"{preload.library()}|--help -m x y\n"
    again = ropebend("exec", "prog", code=7, env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "LD_PRELOAD": ""})
    assert again.stdout == f"{preload.library()}|\n"


def test_exec_keeps_what_is_preloaded_already() -> None:
    ours = str(preload.library())
    assert preload.environment({"LD_PRELOAD": f"a.so {ours}:b.so", "X": "1"}) == {
        "LD_PRELOAD": f"{ours}:a.so:b.so",
        "X": "1",
    }


def test_exec_names_what_is_missing(tmp_path: Path) -> None:
    assert "error: no-such-program: no such program" in ropebend("exec", "--", "no-such-program", code=2).stderr
    ropebend("exec", code=2)
    (tmp_path / "data").write_text("x")
    with pytest.raises(UsageError, match="not executable"):
        preload.find_program(str(tmp_path / "data"), None)


def test_programs_out_of_reach_are_refused(tmp_path: Path) -> None:
    def refused(content: bytes, reason: str) -> None:
        with pytest.raises(RopebendError, match=reason):
            preload.check_program(program(tmp_path / "prog", content))

    refused(elf(interpreter=None), "it is a static executable")
    refused(elf(more=b"\0/src/ggml-backend.cpp\0"), "llama.cpp is linked into it statically")
    refused(elf(interpreter=b"/lib/ld-musl-x86_64.so.1"), "linked against musl")
    other = bytearray(elf())
    other[18:20] = struct.pack("<H", 0xF3)
    refused(bytes(other), "another kind of machine")
    preload.check_program(program(tmp_path / "fine", elf()))
    preload.check_program(program(tmp_path / "cut", elf()[:70]))  # running it says why
    preload.check_program(program(tmp_path / "empty", b""))
    preload.check_program(Path(sys.executable))
    setuid = program(tmp_path / "setuid", elf())
    setuid.chmod(0o755 | stat.S_ISUID)
    with pytest.raises(RopebendError, match="setuid"):
        preload.check_program(setuid)


def test_exec_warns_of_a_model_without_scales_and_of_llama_servers_cap(tmp_path: Path) -> None:
    plain = str(write_llama(tmp_path / "plain.gguf"))
    scaled = str(write_llama(tmp_path / "scaled.gguf", scaling=LayerScaling((2.0,) * 3)))

    def warned(*args: str, name: str = "llama-server", **environ: str) -> str:
        return "\n".join(preload.warnings(Path("/bin") / name, args, environ))

    assert "carries no layer scales" in warned("-m", plain, name="llama-cli")
    cap = warned("-m", scaled, "-c", "256")
    assert "training context of 128 tokens, 256 were asked" in cap
    assert "add --override-kv llama.context_length=int:256" in cap
    assert warned("--model", scaled, LLAMA_ARG_CTX_SIZE="256") == cap
    assert warned("serve", "-m", scaled, "-c", "256", name="llama") == cap
    assert warned("-m", scaled, "-c", "512", "-np", "2") == cap  # the cells are divided
    for args in (
        ["-c", "128"],
        [],
        ["-c", "256", "--override-kv", "llama.context_length=int:256"],
        ["-c", "256", "-np", "2"],
        ["-c", "256", "--rope-scaling", "yarn", "--rope-scale", "2"],
        ["-c", "many"],
    ):
        assert warned("-m", scaled, *args) == ""
    assert warned("-m", scaled, "-c", "256", name="llama-cli") == ""
    assert warned("-m", str(tmp_path / "missing.gguf")) == ""
    assert warned("-hf", "some/model") == ""
