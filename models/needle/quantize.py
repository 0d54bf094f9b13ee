#!/usr/bin/env python3
"""Quantise a GGUF to Q8_0 with llama.cpp's own quantiser: quantize.py needle-F32.gguf needle-Q8_0.gguf."""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp.llama_cpp as lib


def main() -> int:
    """0 if llama.cpp wrote the file."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    source, target = map(os.fsencode, sys.argv[1:])
    lib.llama_backend_init()
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0
    params.nthread = 1
    return int(lib.llama_model_quantize(source, target, ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main())
