"""SIGKILL at random moments: the model stays as it was, the result is absent or complete, a change in place old or new.

KILLS=500 python -m pytest tests/convert/test_kill.py kills 500 times a case instead of 6.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

KILLS = int(os.environ.get("KILLS", "6"))
# Runs many jobs in one process, so that the kill falls into a job and not into the start of Python.
WORKER = """
import itertools, os, sys
from pathlib import Path
from ropebend.convert import target
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.job import Job
from ropebend.scaling import LayerScaling
model, out, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if mode.endswith("named"):
    target._TMPFILE = 0
print("ready", flush=True)
for i in itertools.count():
    scaling = None if mode.startswith("replace") and i % 2 else LayerScaling((1.0 + i % 7, 1.0, 1.0))
    with GgufFile(model) as source:
        if mode.startswith("copy"):
            Job.prepare(source, scaling, out, False, True).run(lambda _: None)
            os.unlink(out)
        else:
            Job.prepare(source, scaling, None, True, False).run(lambda _: None)
"""


def killed(folder: Path, model: Path, mode: str, after: float) -> None:
    """Start the worker, kill it `after` seconds into its work."""
    command = [sys.executable, "-c", WORKER, model, folder / "out.gguf", mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        started = process.stdout.readline()
        time.sleep(after)
        process.kill()
        _, error = process.communicate()
    assert (started, error, process.returncode) == ("ready\n", "", -signal.SIGKILL)


@pytest.fixture
def big(model: Path) -> Path:
    """The model with 3 MiB more, so that there is a middle of the copy."""
    with open(model, "ab") as f:
        f.write(random.Random(0).randbytes(3 << 20))
    return model


@pytest.mark.parametrize("mode", ["copy", "copy named", "replace", "replace named", "edit"])
def test_killed_anywhere(big: Path, contents: Callable[[Path], dict[str, Any]], mode: str):
    rng = random.Random(mode)
    folder, original = big.parent, big.read_bytes()
    tail = original[-(3 << 20) :]
    if mode == "edit":
        with_scales(big)
    expected = contents(big)
    del expected["aligned"]
    size = big.stat().st_size
    for _ in range(KILLS):
        killed(folder, big, mode, rng.uniform(0, 0.03))
        out = folder / "out.gguf"
        left = {p.name for p in folder.iterdir()} - {"model.gguf", "out.gguf"}
        assert all(name.endswith(".tmp") for name in left)
        # Without a temporary name there is only the instant between link and rename.
        assert len(left) <= 1
        for path in (big, out) if out.exists() else (big,):
            found = contents(path)
            del found["aligned"]
            assert found == expected
            assert path.read_bytes().endswith(tail)
        if mode.startswith("copy"):
            assert big.read_bytes() == original
            assert not out.exists() or scales(out) is not None
            out.unlink(missing_ok=True)
        elif mode == "edit":
            assert scales(big) is not None
            assert big.stat().st_size == size
        elif scales(big) is None:
            assert big.read_bytes() == original


def scales(path: Path) -> list[float] | None:
    field = GGUFReader(path).fields.get("ropebend.layer_scale")
    value = field.contents() if field else None
    assert value is None or (len(value) == 3 and value[1:] == [1.0, 1.0] and value[0] in range(1, 8))
    return value


def with_scales(path: Path) -> None:
    factors = path.with_name("factors.json")
    factors.write_text(json.dumps([1.0, 1.0, 1.0]))
    command = [sys.executable, "-m", "ropebend.convert.add_scales", path, factors, "--in-place"]
    subprocess.run(command, check=True, capture_output=True)
    factors.unlink()
