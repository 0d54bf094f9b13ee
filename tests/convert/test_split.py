"""Split models: the first part takes the scales, the others come along."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from ropebend.convert import split as split_module
from ropebend.convert import transfer

Cli = Callable[..., tuple[int, str, str]]
SHARDS = ["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"]
OURS = [name.replace("model", "model.ropebend") for name in SHARDS]


def write_part(path: Path, number: int, count: int = 3) -> Path:
    """One part as llama-gguf-split writes it: metadata in the first only."""
    w = GGUFWriter(path, "llama")
    if number == 0:
        w.add_block_count(3)
        w.add_context_length(64)
    else:
        w.kv_data[0].clear()
    w.add_key_value("split.no", number, GGUFValueType.UINT16)
    w.add_key_value("split.count", count, GGUFValueType.UINT16)
    w.add_key_value("split.tensors.count", count, GGUFValueType.INT32)
    w.add_tensor(f"blk.{number}.w", np.full(100, number, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [write_part(tmp_path / name, i) for i, name in enumerate(SHARDS)]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("how", [None, "link", "symlink", "copy"])
def test_the_other_parts_are_linked_or_copied_as_asked(cli: Cli, parts: list[Path], factors: Path, how: str | None):
    folder = parts[0].parent
    code, out, err = cli(parts[0], factors, *([] if how is None else ["--shards", how]))
    assert (code, err) == (0, "")
    assert names(folder) == sorted([*SHARDS, *OURS])
    verb = {"symlink": "linked", "copy": "copied"}.get(how or "", "hard-linked")
    assert f"2 other parts of the model {verb} beside it.\n" in out
    first = GGUFReader(folder / OURS[0])
    assert first.fields["ropebend.layer_scale"].contents() == [1.0, 1.25, 4.0]
    assert [first.fields[k].contents() for k in ("split.no", "split.count", "split.tensors.count")] == [0, 3, 3]
    for a, b in zip(SHARDS[1:], OURS[1:], strict=True):
        assert (folder / b).read_bytes() == (folder / a).read_bytes()
        assert (folder / b).is_symlink() == (how == "symlink")
        assert os.path.samefile(folder / a, folder / b) == (how != "copy")


def test_in_place_only_the_first_part_changes(cli: Cli, parts: list[Path], factors: Path):
    before = [p.read_bytes() for p in parts]
    assert cli(parts[0], factors, "--in-place")[0] == 0
    assert names(parts[0].parent) == SHARDS
    assert [p.read_bytes() == b for p, b in zip(parts, before, strict=True)] == [False, True, True]
    assert cli(parts[0], "--remove", "--in-place")[0] == 0
    assert [p.read_bytes() for p in parts] == before


def test_into_another_folder_under_another_name(cli: Cli, parts: list[Path], factors: Path):
    folder = parts[0].parent / "out"
    folder.mkdir()
    assert cli(parts[0], factors, "-o", folder / "x-00001-of-00003.gguf")[0] == 0
    assert names(folder) == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def test_a_relative_path_and_a_link_into_a_cache(
    cli: Cli, parts: list[Path], factors: Path, monkeypatch: pytest.MonkeyPatch
):
    """Hugging Face's cache keeps files under their hash, and symbolic links with their names."""
    folder = parts[0].parent / "snapshot"
    folder.mkdir()
    for part in parts:
        part.rename(part.with_suffix(".blob"))
        (folder / part.name).symlink_to(f"../{part.stem}.blob")
    monkeypatch.chdir(folder)
    for how in ("link", "symlink"):
        assert cli(SHARDS[0], factors, "--shards", how)[0] == 0
        for a, b in zip(SHARDS[1:], OURS[1:], strict=True):
            assert os.path.samefile(a, b)
            assert os.path.islink(b) == (how == "symlink")
        for name in OURS:
            os.unlink(name)


def test_what_is_there_already_is_left_or_needs_force(cli: Cli, parts: list[Path], factors: Path):
    folder = parts[0].parent
    os.link(parts[1], folder / OURS[1])  # as after a run that was killed
    assert cli(parts[0], factors)[0] == 0
    for name in OURS:
        (folder / name).unlink()
    (folder / OURS[2]).write_bytes(b"mine")
    code, _, err = cli(parts[0], factors)
    assert (code, err) == (
        1,
        f"error: {folder / OURS[2]}: exists; use --force to overwrite it, or -o for another name\n",
    )
    assert names(folder) == sorted([*SHARDS, OURS[2]])
    assert cli(parts[0], factors, "--force", "--shards", "copy")[0] == 0
    assert (folder / OURS[2]).read_bytes() == parts[2].read_bytes()


def test_another_part_is_refused_with_the_name_of_the_first(cli: Cli, parts: list[Path], factors: Path):
    code, _, err = cli(parts[1], factors)
    expected = f"{parts[1]}: part 2 of 3; metadata is in the first part only, give {parts[0]}"
    assert (code, err) == (1, f"error: {expected}\n")
    renamed = parts[1].rename(parts[1].with_name("b.gguf"))
    assert "give the file whose split.no is 0" in cli(renamed, factors, "--in-place")[2]
    assert "metadata is in the first part only" in cli(renamed, "--remove")[2]


def test_names_that_llama_cpp_would_not_find(cli: Cli, parts: list[Path], factors: Path):
    folder = parts[0].parent
    code, _, err = cli(parts[0], factors, "-o", folder / "out.gguf")
    assert code == 2
    assert "out.gguf: the first of 3 parts; expected a name that ends in -00001-of-00003.gguf" in err
    shutil.move(parts[0], folder / "first.gguf")
    code, _, err = cli(folder / "first.gguf", factors)
    assert code == 1
    assert "first.gguf: the first of 3 parts; expected a name that ends in -00001-of-00003.gguf" in err


def test_missing_and_foreign_parts(cli: Cli, parts: list[Path], factors: Path):
    folder = parts[0].parent
    write_part(parts[2], 1)
    code, _, err = cli(parts[0], factors)
    assert code == 1
    assert f"{parts[2]}: expected part 3 of 3, got split.no 1 of split.count 3" in err
    parts[1].unlink()
    assert cli(parts[0], factors) == (1, "", f"error: {parts[1]}: No such file or directory\n")
    assert names(folder) == [SHARDS[0], SHARDS[2]]


@pytest.mark.parametrize("number", [3, -1, "x"])
def test_a_part_number_that_cannot_be(cli: Cli, tmp_path: Path, factors: Path, number: Any):
    w = GGUFWriter(tmp_path / "x.gguf", "llama")
    w.add_key_value("split.count", 3, GGUFValueType.UINT16)
    w.add_key_value("split.no", number, GGUFValueType.STRING if number == "x" else GGUFValueType.INT32)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    assert f"split.no: expected 0 to 2, got {number!r}" in cli(tmp_path / "x.gguf", factors)[2]


def test_hard_links_that_cannot_be_become_copies(
    cli: Cli, parts: list[Path], factors: Path, monkeypatch: pytest.MonkeyPatch
):
    link = os.link

    def across(a: Any, b: Any, **more: Any) -> None:
        if str(a).endswith("-of-00003.gguf"):
            raise OSError(18, "Invalid cross-device link")
        link(a, b, **more)

    monkeypatch.setattr(split_module.os, "link", across)
    code, out, _ = cli(parts[0], factors)
    assert code == 0
    assert "2 other parts of the model copied beside it.\n" in out


@pytest.mark.parametrize("how", ["link", "copy"])
def test_nothing_is_left_if_a_part_fails(
    cli: Cli, parts: list[Path], factors: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    def fail(path: Path) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> None:
            path.write_bytes(b"theirs")  # somebody takes the name of the first part

        return call

    folder = parts[0].parent
    monkeypatch.setattr("ropebend.convert.job.verify", fail(folder / OURS[0]))
    code, _, err = cli(parts[0], factors, "--shards", how)
    assert code == 1
    assert "appeared while the result was being written" in err
    assert names(folder) == sorted([*SHARDS, OURS[0]])
    assert (folder / OURS[0]).read_bytes() == b"theirs"


def disk_full(folder: Path) -> Callable[..., None]:
    def fsync(fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")

    return fsync


def terminated(folder: Path) -> Callable[..., None]:
    replace = os.replace

    def call(a: Path, b: Path) -> None:
        replace(a, b)
        if b == folder / OURS[2] and a.suffix == ".tmp":  # the first that is named
            os.kill(os.getpid(), signal.SIGTERM)

    return call


def no_link(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("how", ["link", "symlink", "copy", "no hard links"])
@pytest.mark.parametrize(
    ("name", "fail", "expected"),
    [
        ("fsync", disk_full, (1, "No space left on device; nothing was changed")),
        ("replace", terminated, (143, "stopped by SIGTERM; no temporary file is left")),
    ],
)
def test_a_model_that_is_not_replaced_whole_is_put_back(
    cli: Cli,
    parts: list[Path],
    factors: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fail: Callable[[Path], Any],
    expected: tuple[int, str],
    how: str,
):
    folder = parts[0].parent
    for other in (OURS[0], OURS[2]):  # and a name that is free
        (folder / other).write_bytes(b"another model's " + other.encode())
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    if how == "no hard links":
        monkeypatch.setattr(os, "link", no_link)
        monkeypatch.setattr("ropebend.convert.target._TMPFILE", 0)
        how = "copy"
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail(folder))
        code, _, err = cli(parts[0], factors, "--force", "--shards", how)
    assert code == expected[0]
    assert expected[1] in err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert cli(parts[0], factors, "--force", "--shards", how)[0] == 0
    assert names(folder) == sorted([*SHARDS, *OURS])


def test_a_part_that_cannot_be_put_back_is_kept_under_another_name(
    cli: Cli, parts: list[Path], factors: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, replace = parts[0].parent, os.replace
    (folder / OURS[2]).write_bytes(b"mine")

    def once(a: Path, b: Path) -> None:
        if b == folder / OURS[1] or ".old" in a.name:
            raise OSError(errno.EIO, "Input/output error")
        replace(a, b)

    monkeypatch.setattr(os, "replace", once)
    code, _, err = cli(parts[0], factors, "--force")
    (kept,) = folder.glob("*.old")
    assert code == 1
    assert f"{folder / OURS[2]}: could not be put back (Input/output error); what it was is {kept}" in err
    assert kept.read_bytes() == b"mine"


def test_a_folder_is_no_part_to_be_replaced(cli: Cli, parts: list[Path], factors: Path):
    folder = parts[0].with_name(OURS[1])
    folder.mkdir()
    expected = f"error: {folder}: exists and is not a regular file\n"
    assert cli(parts[0], factors, "--force") == (1, "", expected)


@pytest.mark.parametrize("how", ["link", "symlink", "copy"])
def test_what_a_killed_run_left_is_removed_by_the_next(cli: Cli, parts: list[Path], factors: Path, how: str):
    left = parts[1].with_name(f"{OURS[1]}.0123abcd.tmp")
    if how == "link":
        os.link(parts[1], left)
    elif how == "symlink":
        left.symlink_to(parts[1])
    else:
        left.write_bytes(b"half")
    parts[1].chmod(0o444)
    assert cli(parts[0], factors, "--shards", how)[0] == 0
    assert names(parts[0].parent) == sorted([*SHARDS, *OURS])


def test_a_copied_part_is_compared(cli: Cli, parts: list[Path], factors: Path, monkeypatch: pytest.MonkeyPatch):
    write_at = transfer.write_at

    def corrupt(fd: int, raw: bytes, at: int) -> None:
        write_at(fd, raw[:-1] + b"\7" if raw == parts[2].read_bytes() else raw, at)

    monkeypatch.setattr(transfer, "write_at", corrupt)
    code, _, err = cli(parts[0], factors, "--shards", "copy")
    assert code == 1
    assert "differs from the source's" in err
    assert names(parts[0].parent) == SHARDS


def test_dry_run_names_the_parts(cli: Cli, parts: list[Path], factors: Path):
    out = cli(parts[0], factors, "--dry-run")[1]
    assert f"  {parts[1].with_name(OURS[1])}: link\n" in out
    facts = json.loads(cli(parts[0], factors, "--dry-run", "--json", "--shards", "copy")[1])
    assert facts["parts"] == {"copy": 2}
    assert facts["bytes_needed"] == facts["size"] + sum(p.stat().st_size for p in parts[1:])
    assert names(parts[0].parent) == SHARDS


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("LLAMA_CPP_BIN") or os.environ["PATH"])
    if found is None:
        pytest.skip(f"no {name} on PATH or in $LLAMA_CPP_BIN")
    return found


def test_llama_gguf_split_merges_what_we_wrote_and_keeps_the_room(cli: Cli, parts: list[Path], factors: Path):
    split = tool("llama-gguf-split")
    assert cli(parts[0], factors)[0] == 0
    merged = parts[0].with_name("merged.gguf")
    subprocess.run([split, "--merge", parts[0].with_name(OURS[0]), merged], check=True, capture_output=True)
    reader = GGUFReader(merged)
    assert reader.fields["ropebend.layer_scale"].contents() == [1.0, 1.25, 4.0]
    assert [float(t.data[0]) for t in reader.tensors] == [0, 1, 2]
    other = factors.with_name("other.json")
    other.write_text("[2, 2, 2]")
    assert "changed in place" in cli(merged, other, "--in-place")[1]
    subprocess.run(
        [split, "--split-max-tensors", "1", merged, merged.with_name("again")], check=True, capture_output=True
    )
    again = GGUFReader(merged.with_name("again-00001-of-00003.gguf"))
    assert again.fields["ropebend.layer_scale"].contents() == [2.0, 2.0, 2.0]
