"""Bringing a range of bytes from one open file into another: shared, or copied and compared on the way."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable, Iterator

from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import FileError

#: Told the number of bytes done since the last call.
Progress = Callable[[int], object]

BLOCK = 4096  # what reflinks are aligned to on btrfs and xfs, and the granularity of the room
COPIED = 1 << 18  # bytes read, written and read back at a time: they stay in the processor's cache
IN_KERNEL = 16 << 20  # bytes that the kernel copies in one call
FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
#: What a call says that this file system or this pair of file systems does not know.
CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.EMLINK}


def transfer(source: GgufFile, start: int, end: int, fd: int, at: int, progress: Progress, check: bool) -> int:
    """Bring the bytes [start, end) of `source` to the offset `at` of the open file `fd`; return how many are shared.

    Where the file system can (btrfs, xfs), both files share the blocks from then on, which takes no time and no space.
    Elsewhere the bytes are copied.  With `check`, each piece is read back as soon as it is written and compared with
    what was read: out of the page cache, so that this proves what the system took, not what the disk will hold.

    Raises RopebendError if a byte differs or the source became shorter, OSError as `fd` gives it.
    """
    lead = min(-start % BLOCK, end - start) if (start - at) % BLOCK == 0 else end - start
    shared = end - start - lead
    if shared and not share(source.fd, start + lead, shared, fd, at + lead):
        lead, shared = end - start, 0
    copy = _copy_and_compare if check else _copy
    for length in copy(source, start, start + lead, fd, at - start):
        progress(length)
    progress(shared)
    return shared


def share(source_fd: int, start: int, length: int, fd: int, at: int) -> bool:
    """Let two files share blocks (a reflink); False where the file system cannot.  start, at: multiples of BLOCK."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(fd, FICLONERANGE, struct.pack("=qQQQ", source_fd, start, length, at))
    except OSError:
        return False  # whatever it was: if it matters, copying will meet it, too
    return True


def write_at(fd: int, raw: bytes, at: int) -> None:
    """Write all of `raw` at the offset `at`."""
    view = memoryview(raw)
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n


def _copy(source: GgufFile, start: int, end: int, fd: int, shift: int) -> Iterator[int]:
    """Copy [start, end) of the source to `shift` bytes further on in `fd`, in the kernel if it can; yields lengths."""
    while start < end and hasattr(os, "copy_file_range"):
        try:
            n = os.copy_file_range(source.fd, fd, min(IN_KERNEL, end - start), start, start + shift)
        except OSError as e:
            if e.errno not in CANNOT:
                raise
            break
        if n == 0:  # some file systems; or the source became shorter, which chunks() finds out
            break
        yield n
        start += n
    for chunk in source.chunks(start, end, COPIED):
        write_at(fd, chunk, start + shift)
        yield len(chunk)
        start += len(chunk)


def _copy_and_compare(source: GgufFile, start: int, end: int, fd: int, shift: int) -> Iterator[int]:
    """As `_copy`, but every piece is read back and compared."""
    buffer = bytearray(COPIED)
    view = memoryview(buffer)
    for chunk in source.chunks(start, end, COPIED):
        at = start + shift
        write_at(fd, chunk, at)
        n = os.preadv(fd, [view[: len(chunk)]], at)
        if n != len(chunk) or (buffer != chunk and buffer[:n] != chunk):
            differ = next((i for i in range(n) if buffer[i] != chunk[i]), n)
            raise FileError(
                f"verification of the copy of {source.path} failed, nothing was kept: "
                f"the byte at {at + differ} differs from the source's at {start + differ}"
            )
        yield len(chunk)
        start += len(chunk)
