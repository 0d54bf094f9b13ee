"""`Job`: one change to one model file, checked first, then carried out whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ropebend.convert.fit import fit, refuse_split
from ropebend.convert.gguf_file import GgufFile
from ropebend.convert.rewrite import Progress, Rewrite
from ropebend.convert.target import Target, check_space, choose_target, replacing
from ropebend.convert.verify import verify
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling


@dataclass(frozen=True)
class Job:
    """What `run` will write and where; `free` is the number of bytes free there."""

    rewrite: Rewrite
    target: Target
    free: int

    @classmethod
    def prepare(
        cls, source: GgufFile, scaling: LayerScaling | None, out: Path | None, in_place: bool, force: bool
    ) -> Job:
        """Check everything that can be checked before writing; `scaling` None removes the scales.

        out, in_place, force: see `ropebend.convert.target.choose_target`.  Raises UsageError or RopebendError.
        """
        try:
            target = choose_target(source, out, in_place, force, "plain" if scaling is None else "ropebend")
            refuse_split(source)
            rewrite = Rewrite(source, None if scaling is None else fit(scaling, source))
            return cls(rewrite, target, check_space(target, rewrite.size))
        except OSError as e:
            raise RopebendError(f"{e.filename or source.path}: {e.strerror}; nothing was changed") from None

    def run(self, written: Progress, compared: Progress) -> None:
        """Write, verify, and only then give the result its name.

        written    is told the bytes written, `rewrite.size` in all
        compared   is told the bytes of tensor data compared

        Raises RopebendError with the target as it was before and no temporary file left.
        """
        try:
            with replacing(self.target, self.rewrite.source) as (out, temporary):
                self.rewrite.write(out, written)
                out.flush()
                os.fsync(out.fileno())
                verify(self.rewrite, temporary, compared)
        except OSError as e:
            raise RopebendError(f"writing {self.target.path}: {e.strerror or e}; nothing was changed") from None
