"""Per-layer RoPE scales for unmodified llama.cpp: search them, store them in the GGUF, serve the result.

Public are the names in `__all__`, and these modules with what their own docs show:
`ropebend.scaling.bezier` (the curve), `ropebend.evaluate`, `ropebend.tasks` (tasks of your own), `ropebend.search`.
Everything else may change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ropebend.errors import FileError, RopebendError, ScalesError, TextError, UsageError

if TYPE_CHECKING:
    from ropebend.context import Context
    from ropebend.llama import Llama
    from ropebend.model import Model
    from ropebend.scaling import LayerScaling
    from ropebend.scaling.rope_method import RopeMethod

__version__ = "0.1.0"
__all__ = [
    "Context",
    "FileError",
    "LayerScaling",
    "Llama",
    "Model",
    "RopeMethod",
    "RopebendError",
    "ScalesError",
    "TextError",
    "UsageError",
    "__version__",
]

#: Loaded on first use: the command line shall not wait for numpy, nor the converter for llama.cpp.
_LAZY = {
    "Context": "ropebend.context",
    "LayerScaling": "ropebend.scaling",
    "Llama": "ropebend.llama",
    "Model": "ropebend.model",
    "RopeMethod": "ropebend.scaling.rope_method",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ropebend' has no attribute {name!r}")
