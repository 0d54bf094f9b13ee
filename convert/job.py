"""`Job`: one change to one model, checked first, then carried out whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ropebend.convert.fit import fit
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Rewrite, other_pairs
from ropebend.convert.room import Edit, plan_edit
from ropebend.convert.shards import Shards
from ropebend.convert.split import Part, other_parts, placing, putting_back_on_error, refuse_other_parts
from ropebend.convert.target import Target, can_share, check_space, choose_target, lock, replacing
from ropebend.convert.transfer import Progress, write_at
from ropebend.convert.verify import read_back, verify
from ropebend.errors import RopebendError, UsageError
from ropebend.scaling import LayerScaling
from ropebend.scaling.stretch import doubts


@dataclass(frozen=True)
class Outcome:
    """What a job did.

    how       "edited" in place, "written" or "unchanged"
    shared    bytes of the result that share blocks with the source and take no space
    verified  True if every key and tensor byte was compared with the source
    parts     how the other parts of a split model were brought there, and how many each
    """

    how: str
    shared: int = 0
    verified: bool = True
    parts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Job:
    """What `run` will do and where.

    rewrite  the whole result
    target   where it goes
    edit     how the target becomes it without being written anew; None if it must be
    parts    the other parts of a split model
    shards   what becomes of those
    free     bytes free where the target is
    needed   bytes that will be taken there
    warnings what speaks against the scales
    """

    rewrite: Rewrite
    target: Target
    edit: Edit | None
    parts: list[Part]
    shards: Shards
    free: int
    needed: int
    warnings: list[str]

    @classmethod
    def prepare(
        cls,
        source: GgufFile,
        scaling: LayerScaling | None,
        out: Path | None,
        in_place: bool,
        force: bool,
        shards: Shards | None = None,
    ) -> Job:
        """Check everything that can be checked before writing; `scaling` None removes the scales.

        out, in_place, force: see `ropebend.convert.target.choose_target`.  shards: None is LINK, and all that in_place
        can be given.  Raises UsageError or RopebendError.
        """
        if in_place and shards is not None:
            raise UsageError("--in-place leaves the other parts of a split model as they are: leave out --shards")
        shards = shards or Shards.LINK
        try:
            count = refuse_other_parts(source)
            target = choose_target(source, out, in_place, force, "plain" if scaling is None else "ropebend")
            parts = other_parts(source, count, target)
            rewrite = Rewrite(source, None if scaling is None else fit(scaling, source))
            edit = None
            # Another name of the same file must not change with it; a file that is read-only can be replaced.
            if in_place and source.status.st_nlink == 1 and os.access(target.path, os.W_OK):
                edit = plan_edit(source, rewrite.added) if scaling is not None else None
            if in_place and scaling is None and not rewrite.replaced:
                edit = Edit()  # nothing to remove
            if edit is not None:
                needed = 0
            elif rewrite.shareable and can_share(target, source):
                needed = rewrite.size - (source.data[1] - source.data[0])
            else:
                needed = rewrite.size
                elsewhere = os.stat(target.path.parent).st_dev != source.status.st_dev
                if shards == Shards.COPY or (shards == Shards.LINK and elsewhere):
                    needed += sum(p.source.stat().st_size for p in parts if not p.there)
            free = check_space(target, needed)
            warnings = [] if rewrite.scaling is None else doubts(rewrite.scaling, _trained_length(source))
            return cls(rewrite, target, edit, parts, shards, free, needed, warnings)
        except OSError as e:
            raise RopebendError(f"{e.filename or source.path}: {e.strerror}; nothing was changed") from None

    def run(self, progress: Progress, check: bool = True) -> Outcome:
        """Edit, or write, compare (`check`), and only then give the result its name.

        progress  is told the bytes done, `size` in all

        Raises RopebendError with the target as it was before and no temporary file left.
        """
        try:
            if self.edit is not None:
                return self._edit(self.edit)
            return self._write(progress, check)
        except OSError as e:
            path = self.target.path
            raise RopebendError(f"writing {path}: {e.strerror or e}; nothing was changed") from None

    @property
    def size(self) -> int:
        """Bytes that `run` will write or share, for its progress."""
        copied = [p.source.stat().st_size for p in self.parts if not p.there and self.shards == Shards.COPY]
        return self.rewrite.size + sum(copied)

    def _write(self, progress: Progress, check: bool) -> Outcome:
        source = self.rewrite.source
        how: Counter[str] = Counter()
        with putting_back_on_error() as placed, contextlib.ExitStack() as stack:
            # Left in reverse: the first part, without which no other can be loaded, is named last.
            fd = stack.enter_context(replacing(self.target, source))
            shared = self.rewrite.write(fd, progress, check)
            if check:
                with GgufFile(self.target.path, fd) as result:
                    try:
                        verify(self.rewrite, result)
                    except RopebendError as e:
                        raise RopebendError(f"verification failed, nothing was kept: {e}") from None
            for part in self.parts:
                if not part.there:
                    how[stack.enter_context(placing(part, self.shards, progress, check, placed)).value] += 1
            source.check_unchanged()
            if self.target.in_place:
                self._check_same_file()
        return Outcome("written", shared, check, how)

    def _edit(self, edit: Edit) -> Outcome:
        if edit.commit is None:
            return Outcome("unchanged")
        source = self.rewrite.source
        fd = os.open(self.target.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            lock(fd, self.target.path)
            source.check_unchanged()
            self._check_same_file()
            if edit.stage is not None:
                write_at(fd, edit.stage[1], edit.stage[0])
                os.fsync(fd)
            self._commit(fd, *edit.commit)
        finally:
            os.close(fd)
        return Outcome("edited")

    def _commit(self, fd: int, at: int, new: bytes) -> None:
        """Write the bytes that make the change, and take them back if the file is not as it should be then."""
        old = os.pread(fd, len(new), at)
        write_at(fd, new, at)
        try:
            with GgufFile(self.target.path, fd) as result:
                self._check_edited(result)
        except RopebendError as e:
            write_at(fd, old, at)
            raise RopebendError(f"verification failed, the old scales are back: {e}") from None
        try:
            os.fsync(fd)
        except OSError as e:
            raise RopebendError(f"{self.target.path}: {e.strerror}; the disk has the old scales or the new") from None

    def _check_same_file(self) -> None:
        if not os.path.samestat(os.stat(self.target.path), self.rewrite.source.status):
            raise RopebendError(f"{self.target.path}: was replaced by another program meanwhile; left as it is")

    def _check_edited(self, result: GgufFile) -> None:
        """Raise RopebendError unless everything but our keys is where it was."""
        source = self.rewrite.source
        for name in ("version", "n_tensors", "alignment", "infos", "data"):
            if getattr(source, name) != getattr(result, name):
                raise RopebendError(f"{name}: expected {getattr(source, name)}, got {getattr(result, name)}")
        if self.rewrite.kept != other_pairs(result):
            raise RopebendError("a key that is not ours is no longer where it was")
        read_back(self.rewrite.scaling, result)


def _trained_length(source: GgufFile) -> int | None:
    n = source.value(f"{source.value('general.architecture')}.context_length")
    return n if type(n) is int and n > 0 else None
