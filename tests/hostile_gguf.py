"""What must hold for any bytes that call themselves a GGUF: for tests over the corpus and for bench/fuzz_gguf.py."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ropebend.convert.gguf_file import HEADER_SIZE, GgufFile
from ropebend.convert.rewrite import Rewrite
from ropebend.convert.room import plan_edit
from ropebend.convert.transfer import BLOCK
from ropebend.convert.verify import verify
from ropebend.errors import RopebendError
from ropebend.model_info import Header
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import RopeMethod

CORPUS = Path(__file__).parent / "convert" / "corpus.zip"
SCALING = LayerScaling((1.0, 2.0, 1.5), rope=RopeMethod("yarn", 4.0, 64), provenance={"seed": 1})
OTHER = LayerScaling((3.0, 2.0, 1.5), rope=RopeMethod("ntk", 2.0))


def corpus() -> dict[str, bytes]:
    """Name → bytes of malformed and of well-formed small files, kept from fuzz runs and from bugs."""
    with zipfile.ZipFile(CORPUS) as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist())}


def check_converter(raw: bytes) -> str | None:
    """Scan, add scales, change them in place, remove them; returns the error that the converter gives, or None.

    Anything but a RopebendError is raised, AssertionError if bytes come back other than they were.
    """
    with memory_file(raw) as path:
        try:
            source = GgufFile(path)
        except RopebendError as e:
            return str(e)
        with source:
            assert all(HEADER_SIZE <= p.start < p.value <= p.end <= source.infos[0] for p in source.pairs.values())
            assert source.infos[0] <= source.infos[1] <= source.data[0] <= source.data[1] == len(raw)
            try:
                source.value("general.architecture")
                plain = written(source, None)
            except RopebendError as e:
                return str(e)
            if source.data[0] - source.infos[1] < 1 << 20:
                # The padding is not ours to keep; all else comes back.
                assert written_from(written(source, SCALING), None) == plain
                scaled = edited(written(source, SCALING), OTHER)
                assert written_from(scaled, None) == plain
    return None


def check_metadata(raw: bytes) -> str | None:
    """Read the metadata through the C path as the rest of ropebend does; returns the error, or None."""
    from ropebend.model_info import ModelInfo

    with memory_file(raw) as path:
        try:
            ModelInfo.read(path)
        except RopebendError as e:
            return str(e)
    return None


def written(source: GgufFile, scaling: LayerScaling | None) -> bytes:
    """The bytes of the rewrite, verified."""
    rewrite = Rewrite(source, scaling)
    with memory_file(b"") as out, open(out, "r+b") as f:
        rewrite.write(f.fileno(), lambda _: None, check=True)
        with GgufFile(out, f.fileno()) as result:
            if scaling is None or has_architecture(source):
                verify(rewrite, result)
        f.seek(0)
        return f.read()


def has_architecture(source: GgufFile) -> bool:
    """Whether scales can be asked for; `add-scales` refuses the file otherwise, before it writes."""
    try:
        Header(source.path, source.value).architecture  # noqa: B018
    except RopebendError:
        return False
    return True


def written_from(raw: bytes, scaling: LayerScaling | None) -> bytes:
    """As `written`, from bytes."""
    with memory_file(raw) as path, GgufFile(path) as source:
        return written(source, scaling)


def edited(raw: bytes, scaling: LayerScaling) -> bytes:
    """The bytes after a change of the scales in place."""
    out = bytearray(raw)
    with memory_file(raw) as path, GgufFile(path) as source:
        edit = plan_edit(source, Rewrite(source, scaling).added)
        if edit is None:  # no room in a file without tensors whose alignment is too large
            assert source.n_tensors == 0
            assert source.alignment > BLOCK
            return raw
        for at, new in filter(None, (edit.stage, edit.commit)):
            out[at : at + len(new)] = new
    assert len(out) == len(raw)
    return bytes(out)


@contextlib.contextmanager
def memory_file(raw: bytes) -> Iterator[Path]:
    """A path to these bytes that never touches a disk."""
    fd = os.memfd_create("gguf")
    try:
        os.write(fd, raw)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
