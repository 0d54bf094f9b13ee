"""Real GGUF files, written by gguf-py, and the command in both of its forms."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter

SCRIPT = Path(__file__).parents[2] / "convert" / "add_scales.py"
N_LAYER = 3
SCALES = [1.0, 1.25, 4.0]

SCALARS = {
    GGUFValueType.UINT8: 255,
    GGUFValueType.INT8: -128,
    GGUFValueType.UINT16: 65535,
    GGUFValueType.INT16: -32768,
    GGUFValueType.UINT32: 2**32 - 1,
    GGUFValueType.INT32: -(2**31),
    GGUFValueType.FLOAT32: 0.1,
    GGUFValueType.BOOL: True,
    GGUFValueType.STRING: "héllo\n\0 world",
    GGUFValueType.UINT64: 2**64 - 1,
    GGUFValueType.INT64: -(2**63),
    GGUFValueType.FLOAT64: 0.1,
}


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a GGUF file with every type of key; keyword arguments change what is in it."""

    def make(
        name: str = "model.gguf",
        *,
        alignment: int | None = None,
        version: int = 3,
        arch: str = "llama",
        block_count: int | None = N_LAYER,
        context_length: int | None = 64,
        tensors: bool = True,
        endian: GGUFEndian = GGUFEndian.LITTLE,
        more: dict[str, tuple[Any, ...]] | None = None,
    ) -> Path:
        path = tmp_path / name
        w = GGUFWriter(path, arch, endianess=endian)
        if alignment is not None:
            w.add_custom_alignment(alignment)
        if block_count is not None:
            w.add_block_count(block_count)
        if context_length is not None:
            w.add_context_length(context_length)
        for type_, value in SCALARS.items():
            w.add_key_value(f"test.{type_.name}", value, type_)
            w.add_key_value(f"test.array.{type_.name}", [value] * 3, GGUFValueType.ARRAY, type_)
        w.add_array("tokenizer.ggml.tokens", ["<s>", "", "größer", "x" * 300])
        w.add_key_value("test.nested", [[[1, 2], [3]], [[4]]], GGUFValueType.ARRAY)
        for key, (value, *types) in (more or {}).items():
            w.add_key_value(key, value, *types)
        if tensors:
            rng = np.random.default_rng(0)
            # sizes that are no multiples of the alignment
            w.add_tensor("token_embd.weight", rng.standard_normal((5, 7), dtype=np.float32))
            w.add_tensor("blk.0.ffn.weight", rng.standard_normal(33).astype(np.float16))
            q4 = rng.integers(0, 256, (3, 2 * 18), dtype=np.uint8)
            w.add_tensor("blk.1.ffn.weight", q4, raw_dtype=GGMLQuantizationType.Q4_0)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        if version != 3:
            with open(path, "r+b") as f:
                f.seek(4)
                f.write(version.to_bytes(4, "little"))
        return path

    return make


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    """A factors file outside the model's folder, so that the folder's listing tells what the command did."""
    folder = tmp_path.parent / f"{tmp_path.name}-factors"
    folder.mkdir()
    path = folder / "factors.json"
    data = {
        "format": "ropebend/1",
        "architecture": "llama",
        "block_count": N_LAYER,
        "layer_scale": SCALES,
        "rope": {"method": "yarn", "factor": 2.5},
        "provenance": {"task": "kv", "scores": {"test": {"bezier ga": 0.5}}, "note": "größer"},
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def contents() -> Callable[[Path], dict[str, Any]]:
    """Everything gguf-py sees in a file: each other key's bytes, in order, then each tensor's place and bytes."""

    def read(path: Path) -> dict[str, Any]:
        reader = GGUFReader(path)
        keys = [
            (name, b"".join(part.tobytes() for part in field.parts))
            for name, field in reader.fields.items()
            if not name.startswith(("ropebend.", "GGUF.kv_count"))
        ]
        tensors = [
            (t.name, t.tensor_type, list(t.shape), t.data_offset - reader.data_offset, t.data.tobytes())
            for t in reader.tensors
        ]
        return {"keys": keys, "tensors": tensors, "alignment": reader.alignment, "aligned": reader.data_offset}

    return read


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command inside this process: arguments → (exit code, stdout, stderr)."""
    from ropebend.convert.add_scales import main

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["add_scales.py", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        code = e.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command as a user runs it: `python convert/add_scales.py …`."""

    def run(*args: object, python: tuple[str, ...] = (), cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, *([] if python[:1] == ("-m",) else [str(SCRIPT)]), *map(str, args)]
        env = {**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1", "TERM": "dumb"}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=60)

    return run
