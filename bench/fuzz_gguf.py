#!/usr/bin/env python3
"""Coverage-guided fuzzing of everything that reads a GGUF, with atheris (pip install atheris; Linux).

    python bench/fuzz_gguf.py FOLDER -runs=1000000    # FOLDER collects inputs
    python bench/fuzz_gguf.py --keep FOLDER           # put FOLDER into the corpus of the tests

Every input goes through the converter (scan, add, verify, change in place, remove) and through the C metadata path.

Options are libFuzzer's.  A file that breaks a rule of tests/hostile_gguf.py stops the run and is kept as crash-*; one
that takes over 5 s or 1 GiB counts, too.  A new FOLDER begins with the corpus of the tests.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def keep(folder: Path) -> None:
    """Write the files of `folder` into the corpus, in a fixed order and without dates."""
    from hostile_gguf import CORPUS

    with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def main() -> None:
    if sys.argv[1:2] == ["--keep"]:
        keep(Path(sys.argv[2]))
        return
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("error: no module 'atheris': pip install atheris")
    with atheris.instrument_imports(include=["ropebend"]):
        import hostile_gguf
    folders = [Path(a) for a in sys.argv[1:] if not a.startswith("-")]
    if folders and not folders[0].exists():
        folders[0].mkdir(parents=True)
        for name, raw in hostile_gguf.corpus().items():
            (folders[0] / name).write_bytes(raw)

    def check(raw: bytes) -> None:
        hostile_gguf.check_converter(raw)
        hostile_gguf.check_metadata(raw)

    atheris.Setup([sys.argv[0], "-timeout=5", "-rss_limit_mb=1024", "-max_len=4096", *sys.argv[1:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
