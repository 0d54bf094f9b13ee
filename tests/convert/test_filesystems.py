"""Full disks, other file systems, reflinks, read-only folders: real ones, mounted where that is allowed."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.job import Job, Outcome
from ropebend.scaling import LayerScaling

Script = Callable[..., "subprocess.CompletedProcess[str]"]
SCALING = LayerScaling((1.0, 1.25, 4.0))
SIZE = 4 << 20


@pytest.fixture
def large(model: Path) -> Path:
    """A model of 4 MiB."""
    with open(model, "ab") as f:
        f.write(os.urandom(SIZE - model.stat().st_size))
    return model


@pytest.fixture
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """A function (file system, bytes) → a folder on a new file system; skips where mounting is not allowed."""
    mounted: list[Path] = []

    def make(kind: str, size: int) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "tmpfs":
            command = ["mount", "-t", kind, "-o", f"size={size}", "tmpfs", str(folder)]
        else:
            if shutil.which(f"mkfs.{kind}") is None:
                pytest.skip(f"no mkfs.{kind}")
            image = folder.with_suffix(".img")
            image.touch()
            os.truncate(image, size)
            subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
            command = ["mount", "-o", "loop", str(image), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "lost+found")


def used(folder: Path) -> int:
    os.sync()
    return shutil.disk_usage(folder).used


# ---- no space


@pytest.mark.parametrize("in_place", [False, True])
def test_a_disk_that_is_too_small_is_found_before_writing(
    script: Script, mount: Callable[..., Path], large: Path, factors: Path, in_place: bool
):
    folder = mount("tmpfs", SIZE + (SIZE // 2 if in_place else 0))
    if in_place:
        model = Path(shutil.copy(large, folder))
        done = script(model, factors, "--in-place")
    else:
        done = script(large, factors, "-o", folder / "out.gguf")
    assert done.returncode == 1
    assert f"{folder}: needs 4,198,400 bytes free (also for --in-place), has " in done.stderr
    assert names(folder) == (["model.gguf"] if in_place else [])


FILL_MEANWHILE = """
import sys
from ropebend.convert import job
from ropebend.convert.add_scales import main
check, folder = job.check_space, sys.argv.pop(1)
def then_fill(*args):
    free = check(*args)
    with open(folder + "/other", "wb") as f:
        f.write(bytes(free - 1000000))
    return free
job.check_space = then_fill
main()
"""


def test_a_disk_that_fills_up_meanwhile(mount: Callable[..., Path], large: Path, factors: Path):
    folder = mount("tmpfs", 2 * SIZE)
    before = large.read_bytes()
    command = [sys.executable, "-c", FILL_MEANWHILE, folder, large, factors, "-o", folder / "out.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    expected = f"error: writing {folder / 'out.gguf'}: No space left on device; nothing was changed\n"
    assert done.stderr == expected
    assert names(folder) == ["other"]
    assert used(folder) < SIZE + SIZE - 900_000  # what was written is gone
    assert large.read_bytes() == before


def test_a_file_size_limit(large: Path, factors: Path):
    """As a disk that fills up, where nothing may be mounted."""
    command = [sys.executable, "-m", "ropebend.convert.add_scales", large, factors]
    limit = (SIZE // 2, SIZE // 2)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    out = large.with_name("model.ropebend.gguf")
    assert done.returncode == 1
    assert done.stderr == f"error: writing {out}: File too large; nothing was changed\n"
    assert names(large.parent) == ["model.gguf"]


# ---- other file systems


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_output_on_another_file_system(mount: Callable[..., Path], large: Path, factors: Path, kind: str):
    folder = mount(kind, 64 << 20)
    before = large.read_bytes()
    with GgufFile(large) as source:
        job = Job.prepare(source, SCALING, folder / "out.gguf", False, False)
        assert job.run(lambda _: None) == Outcome("written")
    with GgufFile(folder / "out.gguf") as source:
        Job.prepare(source, None, None, False, False).run(lambda _: None)
    assert (folder / "out.plain.gguf").read_bytes() == before
    assert names(folder) == ["out.gguf", "out.plain.gguf"]


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_where_files_can_share_blocks_they_do(mount: Callable[..., Path], large: Path, factors: Path, kind: str):
    """On a disk that the copy would not even fit on."""
    with open(large, "ab") as f:
        f.write(os.urandom(200 << 20))
    folder = mount(kind, 320 << 20)
    model = Path(shutil.copy(large, folder))
    before = used(folder)
    assert shutil.disk_usage(folder).free < model.stat().st_size
    for in_place in (False, True):
        with GgufFile(model) as source:
            job = Job.prepare(source, SCALING, None, in_place, False)
            assert job.needed < 1 << 20
            outcome = job.run(lambda _: None)
            assert outcome.shared > 200 << 20
    assert used(folder) - before < 8 << 20
    scaled = folder / "model.ropebend.gguf"
    assert scaled.read_bytes() == model.read_bytes()
    with GgufFile(scaled) as source:
        assert Job.prepare(source, None, None, False, False).run(lambda _: None).shared > 200 << 20
    assert (folder / "model.plain.gguf").read_bytes() == large.read_bytes()
    assert used(folder) - before < 16 << 20


# ---- permissions


@pytest.fixture
def restricted() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command bound by permissions, which root otherwise is not."""
    prefix = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be bound by permissions")
        prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]

    def run(*args: object) -> "subprocess.CompletedProcess[str]":
        command = [*prefix, sys.executable, "-m", "ropebend.convert.add_scales", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("extra", [[], ["--in-place"]])
def test_a_folder_that_cannot_be_written_to(
    restricted: Callable[..., "subprocess.CompletedProcess[str]"], model: Path, factors: Path, extra: list[str]
):
    model.parent.chmod(0o555)
    try:
        done = restricted(model, factors, *extra)
    finally:
        model.parent.chmod(0o755)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {model.parent}: this folder cannot be written to\n"
    assert names(model.parent) == ["model.gguf"]


def test_a_model_that_cannot_be_read(
    restricted: Callable[..., "subprocess.CompletedProcess[str]"], model: Path, factors: Path
):
    model.chmod(0)
    done = restricted(model, factors)
    assert (done.returncode, done.stderr) == (1, f"error: {model}: Permission denied\n")


def test_a_model_that_may_not_be_written_to_is_replaced_and_stays_so(
    restricted: Callable[..., "subprocess.CompletedProcess[str]"], model: Path, factors: Path
):
    model.chmod(0o444)
    data = json.loads(factors.read_bytes())
    for scales in (data["layer_scale"], [2, 2, 2]):
        factors.write_text(json.dumps({**data, "layer_scale": scales}))
        done = restricted(model, factors, "--in-place")
        assert (done.returncode, done.stderr) == (0, "")
    assert model.stat().st_mode & 0o777 == 0o444


def test_a_read_only_file_system(script: Script, mount: Callable[..., Path], large: Path, factors: Path):
    folder = mount("tmpfs", 4 * SIZE)
    model = Path(shutil.copy(large, folder))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for extra in ([], ["--in-place"]):
        done = script(model, factors, *extra)
        assert (done.returncode, done.stderr) == (1, f"error: {folder}: this folder cannot be written to\n")
