"""A job goes through or leaves everything as it was."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR
from types import SimpleNamespace

import pytest

from ropebend.convert import job as job_module
from ropebend.convert import target as target_module
from ropebend.convert import transfer
from ropebend.convert.gguf_file import CHUNK, GgufFile
from ropebend.convert.job import Job, Outcome
from ropebend.convert.transfer import Progress
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling

SCALING = LayerScaling((1.0, 1.25, 4.0))


def nothing(_: int) -> None:
    pass


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}


def run(model: Path, in_place: bool, progress: Progress = nothing, check: bool = True) -> Outcome:
    with GgufFile(model) as source:
        return Job.prepare(source, SCALING, None, in_place, False).run(progress, check)


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_written_verified_and_then_named(model: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool):
    result = model if in_place else model.with_name("model.ropebend.gguf")
    written: list[int] = []
    named: list[bool] = []
    monkeypatch.setattr(job_module, "verify", lambda *_: named.append(result != model and result.exists()))
    outcome = run(model, in_place, written.append)
    assert outcome == Outcome("written")
    assert sum(written) == result.stat().st_size
    assert named == [False]
    with GgufFile(result) as f:
        assert f.value("ropebend.layer_scale") == [1.0, 1.25, 4.0]


def test_what_replaces_a_file_is_on_the_disk_before_it_takes_its_name(model: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("folder" if S_ISDIR(os.fstat(fd).st_mode) else "file"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    run(model, True)
    assert calls == ["file", "replace", "folder"]


def flip(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Corrupt one byte of what is written, that which is at `at` in the model."""
    write_at, shift = transfer.write_at, 4096  # what the room adds

    def corrupt(fd: int, raw: bytes, start: int) -> None:
        write_at(fd, raw, start)
        if start <= at + shift < start + len(raw):
            os.pwrite(fd, bytes([raw[at + shift - start] ^ 1]), at + shift)

    monkeypatch.setattr(transfer, "write_at", corrupt)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("at", [0, 200, 383])
def test_a_corrupted_copy_is_caught(model: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool, at: int):
    before = state(model.parent)
    with GgufFile(model) as source:
        start, end = source.data
    assert end - start == 384
    flip(monkeypatch, start + at)
    expected = rf"the byte at {start + at + 4096} differs from the source's at {start + at}$"
    with pytest.raises(RopebendError, match=expected):
        run(model, in_place)
    assert state(model.parent) == before
    assert run(model, in_place, check=False) == Outcome("written", verified=False)


@pytest.mark.parametrize("at", [0, CHUNK, 3 * CHUNK + 6])
def test_a_corrupted_byte_is_found_in_any_piece(model: Path, monkeypatch: pytest.MonkeyPatch, at: int):
    size = model.stat().st_size
    with open(model, "ab") as f:
        f.write(bytes(3 * CHUNK + 7))  # after the last tensor, copied and compared as well
    flip(monkeypatch, size + at)
    with pytest.raises(RopebendError, match=rf"differs from the source's at {size + at}$"):
        run(model, False)


def test_a_short_read_is_no_equality(model: Path, monkeypatch: pytest.MonkeyPatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [memoryview(buffers[0])[:10]], at))
    with pytest.raises(RopebendError, match=r"differs from the source's at 1834$"):
        run(model, False)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS])
def test_where_the_kernel_cannot_copy_python_does(model: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def cannot(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    run(model, False, check=True)
    result = model.with_name("model.ropebend.gguf")
    expected = result.read_bytes()
    for _ in range(2):
        result.unlink()
        run(model, False, check=False)
        assert result.read_bytes() == expected
        monkeypatch.setattr(os, "copy_file_range", cannot, raising=False)
    result.unlink()
    monkeypatch.delattr(os, "copy_file_range")
    run(model, False, check=False)
    assert result.read_bytes() == expected


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_an_exception_in_mid_copy_leaves_everything_as_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool, error: BaseException
):
    before = state(model.parent)

    def fail(*_: object) -> Iterator[int]:
        yield 1
        raise error

    monkeypatch.setattr(transfer, "_copy_and_compare", fail)
    expected = RopebendError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as e:
        run(model, in_place)
    if isinstance(error, OSError):
        assert str(e.value).endswith(".gguf: No space left on device; nothing was changed")
        assert str(e.value).startswith(f"writing {model.parent}")
    assert state(model.parent) == before


@pytest.mark.parametrize("what", ["longer", "shorter", "touched", "replaced"])
def test_a_model_that_changes_while_it_is_copied(model: Path, what: str):
    """As when the download is not done."""
    with open(model, "ab") as f:
        f.write(bytes(CHUNK))

    def change(_: int) -> None:
        if what == "longer":
            os.truncate(model, 3 * CHUNK)
        elif what == "shorter":
            os.truncate(model, 1000)
        elif what == "touched":
            os.utime(model, ns=(0, 0))
        else:
            model.with_name("new").write_bytes(b"new")
            model.with_name("new").replace(model)

    expected = {
        "shorter": "ended at byte|another program wrote to this file meanwhile|expected .* bytes at",
        "replaced": "was replaced by another program meanwhile; left as it is",
    }.get(what, "another program wrote to this file meanwhile")
    with pytest.raises(RopebendError, match=expected):
        run(model, True, change)
    assert [p.name for p in model.parent.iterdir()] == ["model.gguf"]
    assert what != "replaced" or model.read_bytes() == b"new"


STOP_IN_MID_COPY = """
import os, signal, sys
from ropebend.convert import target, transfer
from ropebend.convert.add_scales import main
copy = transfer._copy_and_compare
def stop(*args):
    for n in copy(*args):
        os.kill(os.getpid(), int(os.environ["STOP"]))
        yield n
transfer._copy_and_compare = stop
if os.environ["NAMED"]:
    target._TMPFILE = 0
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("named", ["", "with a temporary name"])
def test_stopped_in_mid_copy(model: Path, factors: Path, stop: signal.Signals, named: str):
    before = state(model.parent)
    env = {**os.environ, "STOP": str(int(stop)), "NAMED": named}
    command = [sys.executable, "-c", STOP_IN_MID_COPY, str(model), str(factors), "--in-place"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    after = state(model.parent)
    if stop == signal.SIGKILL:
        assert done.returncode == -9
        left = [name for name in after if name not in before]
        if named or not target_module._TMPFILE:
            assert [name[-4:] for name in left] == [".tmp"]  # nobody could remove it; the next run will
            run(model, True)
            assert [p.name for p in model.parent.iterdir()] == ["model.gguf"]
            return
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
