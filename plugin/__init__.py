"""Per-layer RoPE scales for unmodified llama.cpp: search them, store them in the GGUF, serve the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ropebend.errors import RopebendError, UsageError
from ropebend.scaling import LayerScaling, RopeMethod

if TYPE_CHECKING:
    from ropebend.llama import Llama
    from ropebend.model import Context, Model

__version__ = "0.1.0"
__all__ = ["Context", "LayerScaling", "Llama", "Model", "RopeMethod", "RopebendError", "UsageError", "__version__"]

#: Loaded on first use: the converter and `ropebend show factors.json` need no llama.cpp.
_LAZY = {"Llama": "ropebend.llama", "Context": "ropebend.model", "Model": "ropebend.model"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ropebend' has no attribute {name!r}")
