"""The C core under AddressSanitizer and UBSan, and the extension's own argument checks."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from c_programs import LIBRARIES, ROOT, SANITIZERS, compile_c
from hostile_gguf import corpus

from ropebend import _native
from ropebend.native import Hook, layout, read_metadata
from ropebend.scaling import LayerScaling

CORE = [
    "architectures.c", "ggml_layout.c", "gguf_metadata.c", "gguf_scan.c", "graph_owner.c", "pointer_map.c",
    "rope_plan.c", "scaled_file.c", "text_run.c",
]  # fmt: skip


@pytest.fixture
def metadata_file(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_uint32("test.u32", 7)
    w.add_float32("test.f32", 1.5)
    w.add_string("test.str", "hi")
    w.add_array("test.arr", [1.0, 2.0, 3.0])
    w.add_array("test.strs", ["a", "b"])
    w.add_bool("test.bool", True)
    w.add_int64("test.i64", -(2**40))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def ggml() -> Path:
    return next(p for p in (LIBRARIES / "libggml-base.so", LIBRARIES / "libggml-base.dylib") if p.exists())


def sanitized(tmp_path: Path, name: str, *sources: str) -> tuple[Path, Path]:
    """Compile a program of this folder with AddressSanitizer and UBSan; returns it and the ggml to run it on."""
    files = [Path(__file__).parent / f"{name}.c", *(ROOT / "csrc" / source for source in sources)]
    return compile_c(tmp_path / name, files, *SANITIZERS), ggml()


def test_core_under_sanitizers(tmp_path: Path, metadata_file: Path) -> None:
    program, library = sanitized(tmp_path, "core_test", *CORE)
    run = subprocess.run([program, library, metadata_file], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "0 failed\n"


def test_a_hook_between_threads(tmp_path: Path) -> None:
    """Counts, problems and plans while another thread decodes, under ThreadSanitizer."""
    sources = [ROOT / "csrc" / f"{name}.c" for name in ("ggml_layout", "hook", "rope_plan")]
    program = compile_c(
        tmp_path / "hook_threads", [Path(__file__).parent / "hook_threads.c", *sources], "-fsanitize=thread"
    )
    run = subprocess.run([program, ggml()], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel: " + run.stderr.splitlines()[0])
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create (Linux)")
def test_damaged_metadata_under_sanitizers(tmp_path: Path) -> None:
    """Raise the number of runs by FUZZ_RUNS; a million takes half a minute."""
    program, library = sanitized(tmp_path, "metadata_fuzz", "ggml_layout.c", "gguf_metadata.c")
    files = []
    for name, raw in corpus().items():
        files.append(tmp_path / f"{name}.gguf")
        files[-1].write_bytes(raw)
    runs = os.environ.get("FUZZ_RUNS", "20000")
    run = subprocess.run([program, library, runs, "1", *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.fullmatch(r"(\d+) runs, (\d+) accepted\n", run.stdout)
    assert found is not None
    assert found[1] == runs
    assert int(found[2]) > 100  # damage that leaves a file readable, so that values are read, too


def test_the_extension_is_for_every_python() -> None:
    assert _native.__file__.endswith(".abi3.so")


def test_layout_is_found_once_and_plausible() -> None:
    at = layout()
    assert layout() is at
    assert at["op"] < at["op_params"] < at["src"] < at["name"]


def test_metadata_as_python_values(metadata_file: Path) -> None:
    fields = read_metadata(metadata_file)
    assert fields["test.u32"] == 7
    assert fields["test.f32"] == 1.5
    assert fields["test.str"] == "hi"
    assert fields["test.arr"] == [1.0, 2.0, 3.0]
    assert fields["test.bool"] is True
    assert fields["test.i64"] == -(2**40)
    assert "test.strs" not in fields


def test_init_names_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="exports no ggml_init"):
        _native.init({})


@pytest.mark.parametrize("n", [0, 2_000_000])
def test_hook_refuses_silly_sizes(n: int) -> None:
    layout()
    with pytest.raises(ValueError, match="n_layer"):
        _native.Hook(n)


def test_hook_refuses_rows_of_another_shape_or_type() -> None:
    hook = Hook(3)
    plan = LayerScaling((1.0, 2.0, 3.0)).plan()
    for row in ("stretch", "base_stretch", "attn_factor"):
        for bad in (np.ones(2, np.float32), np.ones(3, np.float64), np.ones((3, 1), np.float32)):
            with pytest.raises(ValueError, match=r"expected float32 \[3\]"):
                hook.set_plan(dataclasses.replace(plan, **{row: bad}))
    rows = [plan.stretch.tobytes()] * 3
    for i in range(3):
        with pytest.raises(ValueError, match="three rows of 3 float32"):
            hook._hook.set_plan(*rows[:i], rows[i][:-1], *rows[i + 1 :], 0.0, 0)
    hook.set_plan(plan)
