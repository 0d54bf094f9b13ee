"""Pretrained models on this machine, in $ROPEBEND_MODELS or ~/.cache/ropebend-models; tests skip without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN = "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf"
GEMMA = "gemma3-270m-Q4_K_M.gguf"


def find(name: str) -> Path:
    """The model's file; skips the test if there is none."""
    folder = Path(os.environ.get("ROPEBEND_MODELS") or Path.home() / ".cache/ropebend-models")
    if not (folder / name).exists():
        pytest.skip(f"{name} is not in {folder}; see $ROPEBEND_MODELS")
    return folder / name
