"""Verification: a good copy passes, one changed byte anywhere does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFValueType

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Rewrite
from ropebend.convert.verify import verify
from ropebend.errors import RopebendError
from ropebend.scaling import Keys, LayerScaling

SCALING = LayerScaling((1.0, 1.25, 4.0), "llama", provenance={"task": "kv"})


def write(model: Path, scaling: LayerScaling | None) -> tuple[Rewrite, Path]:
    rewrite = Rewrite(GgufFile(model), scaling)
    path = model.with_name("copy.gguf")
    with open(path, "wb") as out:
        rewrite.write(out, lambda _: None)
    return rewrite, path


def failure(rewrite: Rewrite, path: Path) -> str:
    with rewrite.source, pytest.raises(RopebendError) as e:
        verify(rewrite, path, lambda _: None)
    prefix = "verification failed, nothing was kept: "
    assert str(e.value).startswith(prefix)
    return str(e.value).removeprefix(prefix)


@pytest.mark.parametrize("scaling", [SCALING, None])
def test_a_good_copy_passes(model: Path, scaling: LayerScaling | None):
    rewrite, path = write(model, scaling)
    compared: list[int] = []
    with rewrite.source as source:
        verify(rewrite, path, compared.append)
        assert sum(compared) == source.data[1] - source.data[0] > 0


def value_of(f: GgufFile, key: str) -> int:
    return f.pairs[key].value


FLIPS: dict[str, tuple[Callable[[GgufFile], int], str]] = {
    "another key's value": (lambda f: value_of(f, "test.UINT64"), "key 'test.UINT64': byte 23 of 31 differs"),
    "another key's text": (lambda f: f.pairs["tokenizer.ggml.tokens"].end - 1, "key 'tokenizer.ggml.tokens': byte"),
    "another key's name": (lambda f: f.pairs["test.INT8"].start + 8, "keys: expected 'test.INT8', got 'uest.INT8'"),
    "a tensor's name": (lambda f: f.infos[0] + 8, "the tensor infos: byte 8 of"),
    "the first data byte": (lambda f: f.data[0], "the tensor data: byte 0 of"),
    "the last data byte": (lambda f: f.data[1] - 1, "differs from the source"),
    "the version": (lambda f: 4, "version: expected 3, got 2"),
    "a scale": (lambda f: value_of(f, Keys.LAYER_SCALE) + 12, "ropebend.*: read back as other scales"),
    "our version": (lambda f: value_of(f, Keys.VERSION), "ropebend.version: expected 1, got 0"),
    "the method": (lambda f: value_of(f, Keys.METHOD) + 8, "ropebend.rope.method: expected one of"),
    "the provenance": (lambda f: f.pairs[Keys.PROVENANCE].end - 3, "ropebend.*: read back as other scales"),
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


def test_lost_and_surplus_keys_are_found(make_model: Callable[..., Path]):
    one = make_model("one.gguf")
    two = make_model("two.gguf", more={"z": (1, GGUFValueType.UINT8)})
    assert failure(Rewrite(GgufFile(two), None), one) == "keys: expected 'z', got None"
    assert failure(Rewrite(GgufFile(one), None), two) == "keys: expected None, got 'z'"


def test_missing_and_left_over_scales_are_found(model: Path):
    assert "read back as other scales" in failure(Rewrite(GgufFile(model), SCALING), model)
    rewrite, scaled = write(model, SCALING)
    rewrite.source.close()
    assert failure(Rewrite(GgufFile(scaled), None), scaled) == "ropebend.version: expected to be gone"


def test_a_byte_too_many_or_too_few_is_found(model: Path):
    rewrite, path = write(model, SCALING)
    raw = path.read_bytes()
    path.write_bytes(raw + b"\0")
    assert "the tensor data: expected 384 bytes, got 385" in failure(rewrite, path)
    path.write_bytes(raw[:-100])
    assert "copy.gguf: truncated: tensor" in failure(Rewrite(GgufFile(model), SCALING), path)


def test_another_alignment_is_found(make_model: Callable[..., Path]):
    a, b = make_model("a.gguf", alignment=32), make_model("b.gguf", alignment=64)
    assert failure(Rewrite(GgufFile(a), None), b) == "alignment: expected 32, got 64"
