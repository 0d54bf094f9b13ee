"""A job goes through or leaves everything as it was."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR
from types import SimpleNamespace
from typing import BinaryIO

import pytest
from gguf import GGUFValueType

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.job import Job
from ropebend.convert.rewrite import Progress, Rewrite
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling

SCALING = LayerScaling((1.0, 1.25, 4.0))


def nothing(_: int) -> None:
    pass


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}


def run(model: Path, in_place: bool, written: Progress = nothing, compared: Progress = nothing) -> None:
    with GgufFile(model) as source:
        Job.prepare(source, SCALING, None, in_place, False).run(written, compared)


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_written_verified_and_then_named(model: Path, in_place: bool):
    result = model if in_place else model.with_name("model.ropebend.gguf")
    written: list[int] = []
    compared: list[bool] = []
    run(model, in_place, written.append, lambda _: compared.append(result != model and result.exists()))
    assert sum(written) == result.stat().st_size
    assert compared == [False]
    with GgufFile(result) as f:
        assert f.value("ropebend.layer_scale") == [1.0, 1.25, 4.0]


def test_the_file_is_on_the_disk_before_it_is_compared_and_named(model: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("folder" if S_ISDIR(os.fstat(fd).st_mode) else "file"))
    monkeypatch.setattr("ropebend.convert.job.verify", lambda *_: calls.append("verify"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    run(model, True)
    assert calls == ["file", "verify", "replace", "folder"]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_corrupted_copy_is_caught(model: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool):
    before = state(model.parent)
    write = Rewrite.write

    def flip(self: Rewrite, out: BinaryIO, progress: Progress) -> None:
        write(self, out, progress)
        out.seek(-40, os.SEEK_END)
        out.write(b"\x55")

    monkeypatch.setattr(Rewrite, "write", flip)
    with pytest.raises(RopebendError, match="verification failed, nothing was kept: the tensor data: byte"):
        run(model, in_place)
    assert state(model.parent) == before


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_an_exception_in_mid_copy_leaves_everything_as_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool, error: BaseException
):
    before = state(model.parent)
    chunks = Rewrite._chunks
    temporary: list[list[str]] = []

    def fail(self: Rewrite) -> Iterator[bytes]:
        for i, chunk in enumerate(chunks(self)):
            if i == 20:
                temporary.append([p.name for p in model.parent.iterdir() if p.suffix == ".tmp"])
                raise error
            yield chunk

    monkeypatch.setattr(Rewrite, "_chunks", fail)
    expected = RopebendError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as e:
        run(model, in_place)
    if isinstance(error, OSError):
        assert str(e.value).endswith(".gguf: No space left on device; nothing was changed")
        assert str(e.value).startswith(f"writing {model.parent}")
    assert [len(names) for names in temporary] == [1]
    assert state(model.parent) == before


STOP_IN_MID_COPY = """
import os, signal, sys
from ropebend.convert.add_scales import main
from ropebend.convert.rewrite import Rewrite
chunks = Rewrite._chunks
def stop(self):
    for i, chunk in enumerate(chunks(self)):
        if i == 20:
            os.kill(os.getpid(), int(os.environ["STOP"]))
        yield chunk
Rewrite._chunks = stop
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_mid_copy(model: Path, factors: Path, stop: signal.Signals):
    before = state(model.parent)
    env = {**os.environ, "STOP": str(int(stop))}
    command = [sys.executable, "-c", STOP_IN_MID_COPY, str(model), str(factors), "--in-place"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    after = state(model.parent)
    if stop == signal.SIGKILL:
        assert done.returncode == -9
        left = [name for name in after if name not in before]
        assert [name[-4:] for name in left] == [".tmp"]  # nobody could remove it; its name says what it is
        del after[left[0]]
    else:
        assert done.returncode == 128 + stop
        assert done.stderr == f"error: stopped by {stop.name}; no temporary file is left\n"
    assert after == before


def test_too_little_space_is_found_before_writing(model: Path, monkeypatch: pytest.MonkeyPatch):
    with GgufFile(model) as source:
        size = Job.prepare(source, SCALING, None, False, False).rewrite.size
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size - 1))
        with pytest.raises(RopebendError, match=f"needs {size:,} bytes free"):
            Job.prepare(source, SCALING, None, False, False)


def test_one_part_of_a_split_model(make_model: Callable[..., Path]):
    path = make_model(more={"split.count": (3, GGUFValueType.UINT16)})
    for scaling in (SCALING, None):
        with GgufFile(path) as source, pytest.raises(RopebendError, match="one of 3 parts"):
            Job.prepare(source, scaling, None, False, False)
