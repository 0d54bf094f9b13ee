"""Moving a range of bytes from one open file to another: shared, or copied and compared on the way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import struct
import sys
import threading
from collections.abc import Callable, Iterator

from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import RopebendError

#: Told the number of bytes done since the last call.
Progress = Callable[[int], object]

BLOCK = 4096  # what reflinks are aligned to on btrfs and xfs, and the granularity of the room
COMPARED = 1 << 18  # bytes compared at a time; both buffers stay in the processor's cache
COPY_CHUNK = 16 << 20  # bytes that the kernel copies in one call; the comparison is at most a few of them behind
FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
#: What a call says that this file system or this pair of file systems does not know.
CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.EMLINK}


def transfer(source: GgufFile, start: int, end: int, fd: int, at: int, progress: Progress, check: bool) -> int:
    """Bring the bytes [start, end) of `source` to the offset `at` of the open file `fd`; return how many are shared.

    Where the file system can (btrfs, xfs), both files share the blocks from then on, which takes no time and no space;
    elsewhere the kernel copies.  With `check`, a second thread reads back what was copied, right behind the copy and so
    out of the page cache, and compares it with the source; blocks that are shared are the same bytes.

    Raises RopebendError if a byte differs or the source became shorter, OSError as `fd` gives it.
    """
    lead = min(-start % BLOCK, end - start) if (start - at) % BLOCK == 0 else end - start
    shared = end - start - lead
    if shared and not share(source.fd, start + lead, shared, fd, at + lead):
        lead, shared = end - start, 0
    with _comparison(source, fd, check) as compare:
        for begin, length in _copied(source, start, start + lead, fd, at - start):
            compare(begin, begin + at - start, length)
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


def _copied(source: GgufFile, start: int, end: int, fd: int, shift: int) -> Iterator[tuple[int, int]]:
    """Copy [start, end) of the source to `shift` bytes further on in `fd`; yields (offset in the source, length)."""
    while start < end and hasattr(os, "copy_file_range"):
        try:
            n = os.copy_file_range(source.fd, fd, min(COPY_CHUNK, end - start), start, start + shift)
        except OSError as e:
            if e.errno not in CANNOT:
                raise
            break
        if n == 0:  # some file systems; or the source became shorter, which chunks() finds out
            break
        yield start, n
        start += n
    for chunk in source.chunks(start, end):
        write_at(fd, chunk, start + shift)
        yield start, len(chunk)
        start += len(chunk)


@contextlib.contextmanager
def _comparison(source: GgufFile, fd: int, check: bool) -> Iterator[Callable[[int, int, int], None]]:
    """A function that has (offset in the source, offset in fd, length) compared; it may raise for an earlier range."""
    if not check:
        yield lambda *_: None
        return
    ranges: queue.Queue[tuple[int, int, int] | None] = queue.Queue(maxsize=4)
    failed: list[BaseException] = []

    def work() -> None:
        buffers = bytearray(COMPARED), bytearray(COMPARED)
        while (item := ranges.get()) is not None:
            try:
                if not failed:
                    _same(source, fd, *item, buffers)
            except BaseException as e:
                failed.append(e)

    def compare(start: int, at: int, length: int) -> None:
        if failed:
            raise failed[0]
        ranges.put((start, at, length))

    thread = threading.Thread(target=work, name="comparison", daemon=True)
    thread.start()
    try:
        yield compare
    except BaseException:
        failed.append(RopebendError("stopped"))  # so that the thread drops what is queued
        raise
    finally:
        ranges.put(None)
        thread.join()
    if failed:
        raise failed[0]


def _same(source: GgufFile, fd: int, start: int, at: int, length: int, buffers: tuple[bytearray, bytearray]) -> None:
    a, b = buffers
    for done in range(0, length, COMPARED):
        want = min(COMPARED, length - done)
        n_a = os.preadv(source.fd, [memoryview(a)[:want]], start + done)
        n_b = os.preadv(fd, [memoryview(b)[:want]], at + done)
        # whole buffers compare as memcmp does; what is left of the last range is equal in both or compared below
        if n_a == n_b == COMPARED and a == b:
            continue
        if n_a != want or n_b != want:
            source.check_unchanged()
            raise RopebendError(
                f"{source.path}: expected {want} bytes at {start + done} and at {at + done} of the copy, "
                f"got {n_a} and {n_b}; nothing was kept"
            )
        if a[:want] != b[:want]:
            source.check_unchanged()
            first = next(i for i in range(want) if a[i] != b[i])
            raise RopebendError(
                f"verification of the copy of {source.path} failed, nothing was kept: "
                f"the byte at {at + done + first} differs from the source's at {start + done + first}"
            )
