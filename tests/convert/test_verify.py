"""Verification: a good copy passes, one changed byte anywhere does not."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Rewrite
from ropebend.convert.verify import verify
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling, gguf_keys

SCALING = LayerScaling((1.0, 1.25, 4.0), "llama", provenance={"task": "kv"})


def write(model: Path, scaling: LayerScaling | None) -> tuple[Rewrite, Path]:
    rewrite = Rewrite(GgufFile(model), scaling)
    path = model.with_name("copy.gguf")
    with open(path, "w+b") as out:
        rewrite.write(out.fileno(), lambda _: None, check=False)
    return rewrite, path


def failure(rewrite: Rewrite, path: Path) -> str:
    with rewrite.source, pytest.raises(RopebendError) as e, GgufFile(path) as result:
        verify(rewrite, result)
    return str(e.value)


@pytest.mark.parametrize("scaling", [SCALING, None])
def test_a_good_copy_passes(model: Path, scaling: LayerScaling | None):
    rewrite, path = write(model, scaling)
    with rewrite.source, GgufFile(path) as result:
        verify(rewrite, result)


def value_of(f: GgufFile, key: str) -> int:
    return f.pairs[key].value


FLIPS: dict[str, tuple[Callable[[GgufFile], int], str]] = {
    "another key's value": (lambda f: value_of(f, "test.UINT64"), "key 'test.UINT64': byte 23 of 31 differs"),
    "another key's text": (lambda f: f.pairs["tokenizer.ggml.tokens"].end - 1, "key 'tokenizer.ggml.tokens': byte"),
    "another key's name": (lambda f: f.pairs["test.INT8"].start + 8, "keys: expected 'test.INT8', got 'uest.INT8'"),
    "a tensor's name": (lambda f: f.infos[0] + 8, "the tensor infos: byte 8 of"),
    "the first data byte": (lambda f: f.data[0], "the data of tensor 0: byte 0 of 140 differs from the source"),
    "a byte of the second tensor": (lambda f: f.data[0] + f.tensors[0][1] + 9, "the data of tensor 1: byte 9 of 66"),
    "the version": (lambda f: 4, "version: expected 3, got 2"),
    "a scale": (lambda f: value_of(f, gguf_keys.LAYER_SCALE) + 12, "ropebend.*: read back as other scales"),
    "our version": (lambda f: value_of(f, gguf_keys.VERSION), "ropebend.version: expected 1 or 2, got 0"),
    "the method": (lambda f: value_of(f, gguf_keys.METHOD) + 8, "ropebend.rope.method: expected one of"),
    "the provenance": (lambda f: f.pairs[gguf_keys.PROVENANCE].end - 3, "ropebend.*: read back as other scales"),
}


@pytest.mark.parametrize(("where", "expected"), FLIPS.values(), ids=FLIPS)
def test_one_changed_bit_is_found(model: Path, where: Callable[[GgufFile], int], expected: str):
    rewrite, path = write(model, SCALING)
    with GgufFile(path) as f:
        at = where(f)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert expected in failure(rewrite, path)


def test_the_ends_of_a_long_tensor_are_compared(tmp_path: Path):
    path = tmp_path / "long.gguf"
    w = GGUFWriter(path, "llama")
    w.add_tensor("w", np.zeros(5000, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    rewrite, copy = write(path, SCALING)
    with open(copy, "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\1")
    assert failure(rewrite, copy) == "the data of tensor 0: byte 4095 of 4096 differs from the source"


def test_lost_and_surplus_keys_are_found(make_model: Callable[..., Path]):
    one = make_model("one.gguf")
    two = make_model("two.gguf", more={"z": (1, GGUFValueType.UINT8)})
    assert failure(Rewrite(GgufFile(two), None), one) == "keys: expected 'z', got None"
    assert failure(Rewrite(GgufFile(one), None), two) == "keys: expected None, got 'z'"


def test_missing_and_left_over_scales_are_found(model: Path):
    assert "read back as other scales" in failure(Rewrite(GgufFile(model), SCALING), model)
    rewrite, scaled = write(model, SCALING)
    rewrite.source.close()
    assert failure(Rewrite(GgufFile(scaled), None), scaled) == "ropebend.room.before: expected to be gone"


def test_a_byte_too_many_or_too_few_is_found(model: Path):
    rewrite, path = write(model, SCALING)
    raw = path.read_bytes()
    path.write_bytes(raw + b"\0")
    assert "the tensor data: expected the bytes (" in failure(rewrite, path)
    path.write_bytes(raw[:-100])
    assert "copy.gguf: truncated: tensor" in failure(Rewrite(GgufFile(model), SCALING), path)


def test_another_alignment_is_found(make_model: Callable[..., Path]):
    a, b = make_model("a.gguf", alignment=32), make_model("b.gguf", alignment=64)
    assert failure(Rewrite(GgufFile(a), None), b) == "alignment: expected 32, got 64"
