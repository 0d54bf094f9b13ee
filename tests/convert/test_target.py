"""Where the result may go, and that it gets there whole or not at all."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ropebend.convert import target as target_module
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.target import Target, check_space, choose_target, default_name, lock, replacing
from ropebend.errors import RopebendError, UsageError


@pytest.fixture
def source(model: Path) -> Iterator[GgufFile]:
    with GgufFile(model) as f:
        yield f


@pytest.mark.parametrize(
    ("name", "suffix", "expected"),
    [
        ("model.gguf", "ropebend", "model.ropebend.gguf"),
        ("model.gguf", "plain", "model.plain.gguf"),
        ("model.ropebend.gguf", "plain", "model.plain.gguf"),
        ("model.ropebend.gguf", "ropebend", "model.ropebend.gguf"),
        ("model.plain.gguf", "ropebend", "model.ropebend.gguf"),
        ("a.Q4_0.GGUF", "ropebend", "a.Q4_0.ropebend.gguf"),
        ("sha256-00ff", "ropebend", "sha256-00ff.ropebend.gguf"),
        (".gguf", "ropebend", ".gguf.ropebend.gguf"),
        ("m-00001-of-00003.gguf", "ropebend", "m.ropebend-00001-of-00003.gguf"),
        ("m.ropebend-00001-of-00003.gguf", "plain", "m.plain-00001-of-00003.gguf"),
    ],
)
def test_default_name(name: str, suffix: str, expected: str):
    assert default_name(Path("/x") / name, suffix) == Path("/x") / expected


def test_by_default_beside_the_model(source: GgufFile, tmp_path: Path):
    assert choose_target(source, None, False, False, "plain") == Target(tmp_path / "model.plain.gguf", False)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("force", [False, True])
def test_the_input_under_another_name_is_refused(
    source: GgufFile, tmp_path: Path, link: Callable[[Path, Path], None], force: bool
):
    other = tmp_path / "other.gguf"
    link(other, source.path)
    for path in (other, source.path, tmp_path / "." / ".." / tmp_path.name / "model.gguf"):
        with pytest.raises(UsageError, match="is the input itself; use --in-place"):
            choose_target(source, path, False, force, "ropebend")


def test_an_existing_file_needs_force(source: GgufFile, tmp_path: Path):
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(RopebendError, match=r"out\.gguf: exists; use --force"):
        choose_target(source, out, False, False, "ropebend")
    assert choose_target(source, out, False, True, "ropebend") == Target(out, True)


def test_a_dangling_link_counts_as_existing(source: GgufFile, tmp_path: Path):
    out = tmp_path / "out.gguf"
    out.symlink_to("nowhere")
    with pytest.raises(RopebendError, match="exists"):
        choose_target(source, out, False, False, "ropebend")


def test_only_regular_files_are_replaced(source: GgufFile, tmp_path: Path):
    for out in (tmp_path, Path("/dev/null")):
        with pytest.raises(RopebendError, match="exists and is not a regular file"):
            choose_target(source, out, False, True, "ropebend")


def test_the_folder_must_be_there_and_writable(source: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RopebendError, match="no: no such folder"):
        choose_target(source, tmp_path / "no" / "out.gguf", False, False, "ropebend")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(RopebendError, match="this folder cannot be written to"):
        choose_target(source, None, False, False, "ropebend")


def test_in_place_is_the_file_behind_the_links(source: GgufFile, tmp_path: Path):
    (tmp_path / "a").symlink_to("model.gguf")
    (tmp_path / "b").symlink_to("a")
    with GgufFile(tmp_path / "b") as linked:
        target = choose_target(linked, None, True, False, "ropebend")
    assert target == Target(source.path.resolve(), True, in_place=True)
    with pytest.raises(UsageError, match="--in-place and -o contradict"):
        choose_target(source, tmp_path / "x", True, False, "ropebend")


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(target_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    target = Target(tmp_path / "x", False)
    assert check_space(target, 1000) == 1000
    with pytest.raises(RopebendError, match=r"needs 1,001 bytes free \(also for --in-place\), has 1,000"):
        check_space(target, 1001)


@pytest.fixture(params=["without a name", "with a name"])
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of keeping the new file out of sight, on any system that has both."""
    if request.param == "with a name":
        monkeypatch.setattr(target_module, "_TMPFILE", 0)
    elif not target_module._TMPFILE:
        pytest.skip("no O_TMPFILE on this system")
    return request.param == "with a name"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_file_appears_at_the_end_only(source: GgufFile, tmp_path: Path, named: bool, overwrite: bool):
    out_path = tmp_path / "out.gguf"
    if overwrite:
        out_path.write_bytes(b"old")
    before = names(tmp_path)
    with replacing(Target(out_path, overwrite), source) as fd:
        os.write(fd, b"new")
        assert len(names(tmp_path)) == len(before) + named
        assert out_path.read_bytes() == b"old" if overwrite else not out_path.exists()
    assert out_path.read_bytes() == b"new"
    assert names(tmp_path) == ["model.gguf", "out.gguf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_after_an_exception(
    source: GgufFile, tmp_path: Path, error: type[BaseException], overwrite: bool, named: bool
):
    out_path = tmp_path / "out.gguf"
    if overwrite:
        out_path.write_bytes(b"old")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def body() -> None:
        with replacing(Target(out_path, overwrite), source) as fd:
            os.write(fd, b"half")
            raise error

    with pytest.raises(error):
        body()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_that_appears_meanwhile_is_not_overwritten(source: GgufFile, tmp_path: Path, named: bool):
    out_path = tmp_path / "out.gguf"

    def body() -> None:
        with replacing(Target(out_path, False), source):
            out_path.write_bytes(b"theirs")

    with pytest.raises(RopebendError, match=r"out\.gguf: appeared while the result was being written; left as it is"):
        body()
    assert out_path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["model.gguf", "out.gguf"]


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_hard_links(
    source: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
):
    monkeypatch.setattr(target_module, "_TMPFILE", 0)
    monkeypatch.setattr(os, "link", no_link)
    out_path = tmp_path / "out.gguf"

    def body() -> None:
        with replacing(Target(out_path, False), source) as fd:
            os.write(fd, b"new")
            if taken:
                out_path.write_bytes(b"theirs")

    if taken:
        with pytest.raises(RopebendError, match="appeared while the result was being written"):
            body()
    else:
        body()
    assert out_path.read_bytes() == (b"theirs" if taken else b"new")
    assert names(tmp_path) == ["model.gguf", "out.gguf"]


def test_what_a_killed_run_left_is_removed_by_the_next_but_not_what_a_living_one_writes(
    source: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(target_module, "_TMPFILE", 0)
    dead = tmp_path / "out.gguf.0123abcd.tmp"
    dead.write_bytes(b"half")
    target = Target(tmp_path / "out.gguf", True)
    with replacing(target, source) as fd:
        os.write(fd, b"first")
        assert not dead.exists()
        with replacing(target, source) as other:
            os.write(other, b"second")
        assert target.path.read_bytes() == b"second"
    assert target.path.read_bytes() == b"first"
    assert names(tmp_path) == ["model.gguf", "out.gguf"]


def test_a_file_is_locked_for_one_run_at_a_time(model: Path):
    with open(model, "rb") as a, open(model, "rb") as b:
        lock(a.fileno(), model)
        with pytest.raises(RopebendError, match=r"model\.gguf: another ropebend is changing this file"):
            lock(b.fileno(), model)


def no_link(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_permissions_are_the_models(tmp_path: Path, model: Path):
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    model.chmod(0o666)
    old_umask = os.umask(0o027)
    try:
        with GgufFile(model) as source:
            with replacing(Target(tmp_path / "out.gguf", False), source):
                pass
            assert mode(tmp_path / "out.gguf") == 0o640  # a new file, so the umask counts
            with replacing(Target(model, True, in_place=True), source):
                pass
            assert mode(model) == 0o666
    finally:
        os.umask(old_umask)
