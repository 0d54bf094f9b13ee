"""The corpus: malformed and unusual files, most of them kept from fuzz runs (bench/fuzz_gguf.py)."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType
from hostile_gguf import check_converter, check_metadata, corpus

from ropebend.errors import RopebendError
from ropebend.model_info import ModelInfo

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create (Linux)")


@pytest.mark.parametrize("check", [check_converter, check_metadata])
def test_every_file_of_the_corpus_is_handled_or_refused_with_the_place(check: Callable[[bytes], str | None]):
    errors = {name: check(raw) for name, raw in corpus().items()}
    assert len(errors) > 100
    refused = [e for e in errors.values() if e is not None]
    assert 10 < len(refused) < len(errors)
    for error in refused:
        assert error.startswith("/proc/self/fd/")
        # a byte, a key, or what llama.cpp says
        assert re.search(r"byte \d+|GGUF|\.\w+(\[\d+\])?: |llama\.cpp refuses|expected at most", error), error


LARGE: dict[str, bytes] = {
    "keys": b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1 << 20).to_bytes(8, "little"),
    "tensors": b"GGUF" + (3).to_bytes(4, "little") + (1 << 20).to_bytes(8, "little") + bytes(8),
    "strings": b"GGUF"
    + (3).to_bytes(4, "little")
    + bytes(8)
    + (1).to_bytes(8, "little")
    + (1).to_bytes(8, "little")
    + b"a"
    + (9).to_bytes(4, "little")
    + (8).to_bytes(4, "little")
    + (1 << 28).to_bytes(8, "little"),
}


@pytest.mark.parametrize("start", LARGE.values(), ids=LARGE)
def test_a_large_hostile_file_takes_neither_time_nor_memory(tmp_path: Path, start: bytes):
    """4 GiB of zeros after a plausible header: that many keys, tensors or strings."""
    path = tmp_path / "large.gguf"
    path.write_bytes(start)
    os.truncate(path, 4 << 30)  # sparse
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from ropebend.convert.gguf_file import GgufFile\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "from ropebend.errors import RopebendError\n"
        "try: GgufFile(Path(sys.argv[1]))\n"
        "except RopebendError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"expected at most|expected a name, got an empty one", done.stdout)


WRONG = {
    "llama.rope.freq_base": (("x", GGUFValueType.STRING), "expected a number, got 'x'"),
    "llama.rope.scaling.factor": (([1.0], GGUFValueType.ARRAY, GGUFValueType.FLOAT32), "expected a number, got [1.0]"),
    "llama.context_length": ((-1, GGUFValueType.INT32), "expected a positive integer, got -1"),
    "llama.block_count": ((0, GGUFValueType.UINT32), "expected a positive integer, got 0"),
}


@pytest.mark.filterwarnings("ignore:.*Duplicated key name")
@pytest.mark.parametrize(("key", "value", "expected"), [(k, *v) for k, v in WRONG.items()], ids=WRONG)
def test_keys_of_the_wrong_type_are_named(
    make_model: Callable[..., Path], key: str, value: tuple[Any, ...], expected: str
):
    path = make_model(more={key: value, "test.nested": (1, GGUFValueType.UINT8)})
    with pytest.raises(RopebendError) as e:
        ModelInfo.read(path)
    assert str(e.value) == f"{path}: {key}: {expected}"
