"""Where the result goes, and how it gets there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import RopebendError, UsageError


@dataclass(frozen=True)
class Target:
    """The file to be written.

    path       the final name; for in-place the real file behind any symbolic links
    overwrite  True if a file of that name may be replaced
    in_place   True if that file is the source
    """

    path: Path
    overwrite: bool
    in_place: bool = False


def default_name(model: Path, suffix: str) -> Path:
    """`x.gguf`, `x.ropebend.gguf` or `x.plain.gguf` → `x.<suffix>.gguf` in the same folder."""
    stem = re.sub(r"(\.(ropebend|plain))?\.gguf$", "", model.name, flags=re.IGNORECASE)
    return model.with_name(f"{stem or model.name}.{suffix}.gguf")


def choose_target(source: GgufFile, out: Path | None, in_place: bool, force: bool, suffix: str) -> Target:
    """Decide where the result goes, and check that it may go there; writes nothing.

    source    the model
    out       the name asked for, None for `default_name(source.path, suffix)`
    in_place  replace the source (the real file, if `source.path` is a link)
    force     an existing file may be overwritten (of a symbolic link the link, never what it points to)

    Raises UsageError if the output would be the source without `in_place`, or the call contradicts itself;
    RopebendError if a file exists and `force` is not given, or the folder cannot be written to.
    """
    if in_place and out is not None:
        raise UsageError("--in-place and -o contradict each other: give one of them")
    if in_place:
        target = Target(Path(os.path.realpath(source.path)), overwrite=True, in_place=True)
    else:
        target = Target(out or default_name(source.path, suffix), overwrite=force)
        _check_name(target, source)
    folder = target.path.parent
    if not folder.is_dir():
        raise RopebendError(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RopebendError(f"{folder}: this folder cannot be written to")
    return target


def _check_name(target: Target, source: GgufFile) -> None:
    path = target.path
    if not os.path.lexists(path):
        return
    if path.exists():
        if os.path.samefile(path, source.path):  # by inode: the same path, a symbolic link or a hard link
            raise UsageError(f"{path}: is the input itself; use --in-place to replace it, or -o for another file")
        if not stat.S_ISREG(path.stat().st_mode):
            raise RopebendError(f"{path}: exists and is not a regular file")
    if not target.overwrite:
        raise RopebendError(f"{path}: exists; use --force to overwrite it, or -o for another file")


def check_space(target: Target, size: int) -> int:
    """Free bytes in the target's folder.  Raises RopebendError if they are fewer than `size`."""
    free = shutil.disk_usage(target.path.parent).free
    if size > free:
        raise RopebendError(f"{target.path.parent}: needs {size:,} bytes free (also for --in-place), has {free:,}")
    return free


@contextlib.contextmanager
def replacing(target: Target, source: GgufFile) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, open for writing, and its temporary path beside the target; renamed to the target at the end.

    If the body raises anything, the temporary file is removed and the target is as before.  The body makes sure that
    what it wrote is on the disk.  Raises RopebendError if the target appeared meanwhile and may not be overwritten.
    """
    temporary = target.path.with_name(f"{target.path.name}.{secrets.token_hex(4)}.tmp")
    # As cp does: the source's permissions, less the umask.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(source.mode) & 0o777)
    try:
        with os.fdopen(fd, "wb") as out:
            if target.in_place:
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(fd, *source.owner)
                os.fchmod(fd, stat.S_IMODE(source.mode))
            yield out, temporary
        if target.overwrite:
            os.replace(temporary, target.path)
        else:
            _rename_to_new(temporary, target.path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _fsync_folder(target.path.parent)


def _rename_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike rename, fails if the name is taken
    except FileExistsError:
        raise RopebendError(f"{path}: appeared while the result was being written; left as it is") from None
    except OSError:  # a file system without hard links (exFAT, some network shares)
        if os.path.lexists(path):
            raise RopebendError(f"{path}: appeared while the result was being written; left as it is") from None
        os.rename(temporary, path)


def _fsync_folder(folder: Path) -> None:
    # The result has its name by now; a file system that cannot sync folders is no reason to report a failure.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
