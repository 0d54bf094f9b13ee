"""Where the result goes, and how it gets there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.transfer import BLOCK, share
from ropebend.errors import FileError, UsageError

#: How llama.cpp finds the parts of a split model: numbered from 1, five digits.
SPLIT_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_name(prefix: str, i: int, count: int) -> str:
    """Name of part i of a split model, counted from 0, as `SPLIT_NAME` reads it."""
    return f"{prefix}-{i + 1:05d}-of-{count:05d}.gguf"


_TMPFILE = getattr(os, "O_TMPFILE", 0)  # Linux


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
    """`x.gguf`, `x.ropebend.gguf` or `x.plain.gguf` → `x.<suffix>.gguf` in the same folder; a part keeps its number."""
    part = SPLIT_NAME.fullmatch(model.name)
    name, ending = (part["prefix"], model.name[part.end("prefix") :]) if part else (model.name, ".gguf")
    stem = re.sub(r"(\.(ropebend|plain))?(\.gguf)?$", "", name, flags=re.IGNORECASE)
    return model.with_name(f"{stem or name}.{suffix}{ending}")


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
    if in_place and force:
        raise UsageError("--in-place replaces nothing but the model itself: leave out --force")
    if in_place:
        target = Target(Path(os.path.realpath(source.path)), overwrite=True, in_place=True)
    else:
        target = Target(out or default_name(source.path, suffix), overwrite=force)
        _check_name(target, source)
    folder = target.path.parent
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"{folder}: this folder cannot be written to")
    return target


def _check_name(target: Target, source: GgufFile) -> None:
    path = target.path
    if not os.path.lexists(path):
        return
    if path.exists():
        if os.path.samefile(path, source.path):  # by inode: the same path, a symbolic link or a hard link
            raise UsageError(f"{path}: is the input itself; use --in-place to replace it, or -o for another file")
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileError(f"{path}: exists and is not a regular file")
    if not target.overwrite:
        raise FileError(f"{path}: exists; use --force to overwrite it, or -o for another file")


def check_space(target: Target, size: int) -> int:
    """Free bytes in the target's folder.  Raises RopebendError if they are fewer than `size`."""
    free = shutil.disk_usage(target.path.parent).free
    if size > free:
        raise FileError(f"{target.path.parent}: needs {size:,} bytes free (also for --in-place), has {free:,}")
    return free


def can_share(target: Target, source: GgufFile) -> bool:
    """True if a file in the target's folder can share blocks with the source (a reflink: btrfs, xfs)."""
    if source.size < BLOCK:
        return False
    try:
        fd = os.open(target.path.parent, _TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)  # has no name and goes at close
    except OSError:
        return False
    try:
        return share(source.fd, 0, BLOCK, fd, 0)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(target: Target, source: GgufFile) -> Iterator[int]:
    """A new file, open for reading and writing, in the target's folder; it gets the target's name at the end.

    Until then it has no name where the file system allows that, so that even SIGKILL leaves nothing behind; elsewhere
    a temporary one, and a later call removes what a killed one left.  If the body raises anything, the new file is
    gone and the target as before.  What replaces a file is on the disk before; a new file gets there as with cp, in
    the kernel's own time.  Raises RopebendError if the target appeared meanwhile and may not be overwritten.
    """
    folder = target.path.parent
    remove_left_over(target.path)
    temporary = temporary_name(target.path)
    mode = stat.S_IMODE(source.status.st_mode)
    fd, named = _create(temporary, mode & 0o777)  # as cp does: the source's permissions, less the umask
    try:
        if target.in_place:
            with contextlib.suppress(PermissionError):  # only root may give files away
                os.fchown(fd, source.status.st_uid, source.status.st_gid)
            os.fchmod(fd, mode)
        yield fd
        if target.overwrite:
            # Something is about to be lost: the new file must be on the disk before it takes the old one's place.
            os.fsync(fd)
            if not named:
                named = True
                _link(fd, temporary)
            os.replace(temporary, target.path)
        else:
            name_new(fd, temporary if named else None, target.path)
    finally:
        os.close(fd)
        if named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    _fsync_folder(folder)


def temporary_name(path: Path, ending: str = "tmp") -> Path:
    """A name beside `path` that nobody has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.{ending}")


def _create(temporary: Path, mode: int) -> tuple[int, bool]:
    """A new file and whether it has a name already."""
    flags, fd = os.O_RDWR | os.O_CLOEXEC, -1
    if _TMPFILE and os.path.exists("/proc/self/fd"):  # through which such a file gets its name
        with contextlib.suppress(OSError):
            fd = os.open(temporary.parent, flags | _TMPFILE, mode)
    named = fd < 0
    if named:
        fd = os.open(temporary, flags | os.O_CREAT | os.O_EXCL, mode)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells remove_left_over that somebody writes it
    return fd, named


def lock(fd: int, path: Path) -> None:
    """Keep other runs from changing this open file.  Raises RopebendError if one does so now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(f"{path}: another ropebend is changing this file; try again when it is done") from None
    except OSError:  # a file system without locks
        return


def _link(fd: int, path: Path) -> None:
    """Give the open file `fd` a name.  Raises FileExistsError if it is taken."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # With a dir_fd, Python calls linkat(), which follows the link; link() would not.
        os.link(f"/proc/self/fd/{fd}", path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def remove_left_over(path: Path) -> None:
    """Remove temporary files of `path` that a killed process left."""
    for old in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):
            # a link to a part that is read-only cannot be opened for writing, which some file systems ask of a lock
            fd = os.open(old, (os.O_RDWR if os.access(old, os.W_OK) else os.O_RDONLY) | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(old)
            finally:
                os.close(fd)


def name_new(fd: int | None, temporary: Path | None, path: Path) -> None:
    """Give a file, open as `fd` without a name or called `temporary`, the name `path`.

    Raises RopebendError if the name is taken.
    """
    try:
        # Unlike rename, these fail if the name is taken.
        if temporary is not None:
            os.link(temporary, path, follow_symlinks=False)
        elif fd is not None:
            _link(fd, path)
    except FileExistsError:
        raise FileError(f"{path}: appeared while the result was being written; left as it is") from None
    except OSError:  # a file system without hard links (exFAT, some network shares)
        if temporary is None:
            raise
        if os.path.lexists(path):
            raise FileError(f"{path}: appeared while the result was being written; left as it is") from None
        os.rename(temporary, path)


def _fsync_folder(folder: Path) -> None:
    # The result has its name by now; a file system that cannot sync folders is no reason to report a failure.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
