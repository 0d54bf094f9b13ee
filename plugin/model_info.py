"""What a GGUF says about its model, read without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError
from ropebend.native import read_metadata
from ropebend.scaling import LayerScaling, own_rope_method


@dataclass(frozen=True)
class ModelInfo:
    """Header facts of a GGUF model.

    n_layer         block_count, MTP blocks included
    n_ctx_train     context length in tokens the model was trained at
    rope_scaling    the file's own scaling type ("none", "linear", "yarn", "longrope") and factor
    scaling         the layer scales the file carries, or None
    """

    path: str
    name: str
    architecture: str
    n_layer: int
    n_ctx_train: int
    rope_freq_base: float
    rope_scaling: tuple[str, float]
    scaling: LayerScaling | None

    @classmethod
    def read(cls, path: str | Path) -> ModelInfo:
        """Read the header.  Raises RopebendError naming the file, the key and what was expected."""
        fields = read_metadata(path)

        def need(key: str, kind: type) -> Any:
            value = fields.get(key)
            if type(value) is not kind:
                raise RopebendError(f"{path}: {key}: expected {kind.__name__}, got {value!r:.80}")
            return value

        def count(key: str) -> int:
            if (value := need(key, int)) < 1:
                raise RopebendError(f"{path}: {key}: expected a positive integer, got {value!r}")
            return int(value)

        def number(key: str, default: float) -> float:
            value = fields.get(key, default)
            if type(value) not in (int, float):
                raise RopebendError(f"{path}: {key}: expected a number, got {value!r:.80}")
            return float(value)

        if fields.get("general.type", "model") != "model":
            raise RopebendError(f"{path}: general.type: expected a model, got {fields['general.type']!r:.80}")
        arch = need("general.architecture", str)
        n_layer = count(f"{arch}.block_count")
        try:
            scaling = LayerScaling.from_metadata(fields, arch, n_layer)
        except RopebendError as e:
            raise RopebendError(f"{path}: {e}") from None
        return cls(
            path=str(path),
            name=str(fields.get("general.name") or Path(path).stem),
            architecture=arch,
            n_layer=n_layer,
            n_ctx_train=count(f"{arch}.context_length"),
            rope_freq_base=number(f"{arch}.rope.freq_base", 10000.0),
            rope_scaling=(
                own_rope_method(fields, arch),
                number(f"{arch}.rope.scaling.factor", 1.0),
            ),
            scaling=scaling,
        )
