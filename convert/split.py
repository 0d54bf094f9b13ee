"""Split models (`…-00001-of-00003.gguf`): only the first part carries metadata, the others are linked or copied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.shards import Shards
from ropebend.convert.target import (
    SPLIT_NAME,
    Target,
    name_new,
    part_name,
    remove_left_over,
    replacing,
    temporary_name,
)
from ropebend.convert.transfer import CANNOT, Progress, transfer
from ropebend.errors import FileError, UsageError


@dataclass(frozen=True)
class Part:
    """One of the other parts: where it is and where it goes; `there` if it already is there (the same file)."""

    source: Path
    target: Path
    overwrite: bool
    there: bool


def refuse_other_parts(source: GgufFile) -> int:
    """The number of parts of the model, 1 if it is not split.  Raises RopebendError unless this is the first."""
    count = source.value("split.count")
    if type(count) is not int or count < 2:
        return 1
    number = source.value("split.no")
    if type(number) is not int or not 0 <= number < count:
        raise FileError(f"{source.path}: split.no: expected 0 to {count - 1}, got {number!r:.80}")
    if number > 0:
        named = SPLIT_NAME.fullmatch(source.path.name)
        first = source.path.with_name(part_name(named["prefix"], 0, count)) if named else "the file whose split.no is 0"
        raise FileError(
            f"{source.path}: part {number + 1} of {count}; metadata is in the first part only, give {first}"
        )
    return count


def other_parts(source: GgufFile, count: int, target: Target) -> list[Part]:
    """Parts 2 to `count` of the model whose first part is `source`, and where they go beside `target`.

    Raises UsageError if the target's name is not that of a first part, RopebendError if a part is missing or another
    model's, or its target exists and may not be overwritten.
    """
    if count == 1 or target.in_place:
        return []
    prefixes = []
    for path, error in ((source.path, FileError), (target.path, UsageError)):
        named = SPLIT_NAME.fullmatch(path.name)
        if named is None or (int(named["number"]), int(named["count"])) != (1, count):
            ending = part_name("", 0, count)
            raise error(f"{path}: the first of {count} parts; expected a name that ends in {ending}, as llama.cpp does")
        prefixes.append(named["prefix"])
    parts = []
    for i in range(1, count):
        a, b = (
            source.path.with_name(part_name(prefixes[0], i, count)),
            target.path.with_name(part_name(prefixes[1], i, count)),
        )
        with GgufFile(a) as part:
            if (part.value("split.no"), part.value("split.count")) != (i, count):
                raise FileError(
                    f"{a}: expected part {i + 1} of {count}, got split.no {part.value('split.no')!r:.20} "
                    f"of split.count {part.value('split.count')!r:.20}"
                )
        there = b.exists() and os.path.samefile(a, b)
        if b.exists() and not b.is_file():
            raise FileError(f"{b}: exists and is not a regular file")
        if os.path.lexists(b) and not there and not target.overwrite:
            raise FileError(f"{b}: exists; use --force to overwrite it, or -o for another name")
        parts.append(Part(a, b, target.overwrite, there))
    return parts


#: A part that got its name, and the name that keeps the file from before, None if there was none.
Placed = tuple[Path, Path | None]


@contextlib.contextmanager
def placing(part: Part, how: Shards, progress: Progress, check: bool, placed: list[Placed]) -> Iterator[Shards]:
    """Bring one part beside its place; it gets its name at the end.  Yields how (a copy if it cannot be hard-linked).

    What gets a name is added to `placed`.  Raises RopebendError if the part changes meanwhile, a byte of the copy
    differs, or the name is taken meanwhile.
    """
    remove_left_over(part.target)
    temporary = temporary_name(part.target)
    kept = False
    try:
        try:
            if how == Shards.SYMLINK:
                os.symlink(os.path.abspath(part.source), temporary)
            elif how == Shards.LINK:
                os.link(os.path.realpath(part.source), temporary)
        except OSError as e:
            if how == Shards.SYMLINK or e.errno not in CANNOT:
                raise
            how = Shards.COPY  # another file system, or one without hard links
        if how == Shards.COPY:
            with GgufFile(part.source) as source, replacing(Target(part.target, part.overwrite), source) as fd:
                transfer(source, 0, source.size, fd, 0, progress, check)
                source.check_unchanged()
                yield how
                kept = _keep(part, placed)
        else:
            yield how
            kept = _keep(part, placed)
            if part.overwrite:
                os.replace(temporary, part.target)
            else:
                name_new(None, temporary, part.target)
        if not kept:
            placed.append((part.target, None))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _keep(part: Part, placed: list[Placed]) -> bool:
    """Give the file that this part replaces another name; False if there is none."""
    if not part.overwrite or not os.path.lexists(part.target):
        return False
    old = temporary_name(part.target, "old")
    placed.append((part.target, old))
    try:
        os.link(part.target, old, follow_symlinks=False)
    except OSError as e:
        if e.errno not in CANNOT:
            raise
        os.rename(part.target, old)
    return True


@contextlib.contextmanager
def putting_back_on_error() -> Iterator[list[Placed]]:
    """A list of the parts that get their names; if the body raises, what was there before is there again.

    Raises RopebendError if it cannot be, saying under which name it is kept.
    """
    placed: list[Placed] = []
    try:
        yield placed
    except BaseException:
        problems = [problem for path, old in reversed(placed) if (problem := _put_back(path, old))]
        if problems:
            raise FileError("; ".join(problems)) from None
        raise
    for _, old in placed:
        if old is not None:
            with contextlib.suppress(OSError):
                os.unlink(old)


def _put_back(path: Path, old: Path | None) -> str | None:
    """Undo one placing; returns what went wrong."""
    try:
        if old is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        elif os.path.lexists(old):
            os.replace(old, path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(old)  # where both names are still the same file, replace does nothing
    except OSError as e:
        if old is None:
            return f"{path}: was made, and could not be removed ({e.strerror})"
        return f"{path}: could not be put back ({e.strerror}); what it was is {old}"
    return None
