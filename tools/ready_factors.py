"""Make what a search wrote one of the ready factors: python tools/ready_factors.py MODEL.gguf [none@TOKENS] FACTORS.

FACTORS as `ropebend add-scales` takes them, plans by length included.  Writes factors/<model's file name>.json,
with the model's name, quantisation and the digest of its tensors.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from gguf import LlamaFileType

from ropebend.convert.gguf_file import GgufFile
from ropebend.scaling.by_length import read_parts


def main(model: str, *factors: str) -> None:
    """Write it."""
    scaling = read_parts(factors)
    with GgufFile(Path(model)) as file:
        name, kind = file.value("general.name"), LlamaFileType(file.value("general.file_type"))
        identity = {
            **scaling.provenance["model"],
            "name": name or Path(model).stem,
            "quantisation": kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"),
            "bytes": file.data[1] - file.data[0],
            "tensors": file.tensors_digest(),
        }
    out = Path("factors") / f"{Path(model).stem.lower()}.json"
    replace(scaling, provenance={**scaling.provenance, "model": identity}).save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
