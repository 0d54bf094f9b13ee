"""What a GGUF says about its model, read without loading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.errors import FileError, RopebendError, named
from ropebend.scaling import LayerScaling

#: What else a GGUF file can be (general.type), and where the scales go instead.
NOT_MODELS = {
    "adapter": ", a LoRA adapter: write the scales into its base model",
    "mmproj": ", a multimodal projector: write the scales into the language model's file",
    "clip-vision": ", a multimodal projector: write the scales into the language model's file",
    "imatrix": ", an importance matrix: write the scales into the model's file",
}


class Header:
    """Typed access to the metadata of one model; every FileError names the file, the key and what was expected.

    get  metadata by key, None if it is not there
    """

    def __init__(self, path: str | Path, get: Callable[[str], Any]):
        self.path = path
        self._get = get

    @property
    def architecture(self) -> str:
        """general.architecture."""
        name = self._get("general.architecture")
        if not isinstance(name, str):
            raise FileError(f"{self.path}: general.architecture: expected a string, got {name!r:.80}; not a model?")
        if "\0" in name:  # llama.cpp would read what stands before it
            raise FileError(f"{self.path}: general.architecture: expected a string without NUL, got {name!r:.80}")
        return name

    def check_is_model(self) -> None:
        """Raise FileError if the file says that it is something else."""
        kind = self._get("general.type")
        if kind not in (None, "model"):
            hint = NOT_MODELS.get(kind, "") if isinstance(kind, str) else ""
            raise FileError(f"{self.path}: general.type: expected 'model', got {kind!r:.80}{hint}")

    def count(self, key: str) -> int:
        """The positive integer under `<architecture>.<key>`."""
        key = f"{self.architecture}.{key}"
        value = self._get(key)
        if type(value) is not int or value < 1:
            raise FileError(f"{self.path}: {key}: expected a positive integer, got {value!r:.80}")
        return value

    def number(self, key: str, default: float) -> float:
        """The number under `<architecture>.<key>`."""
        key = f"{self.architecture}.{key}"
        value = self._get(key)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise FileError(f"{self.path}: {key}: expected a number, got {value!r:.80}")
        return float(value)

    @property
    def own_method(self) -> str:
        """The extension method that the model itself carries: "none", or its rope.scaling.type."""
        return str(self._get(f"{self.architecture}.rope.scaling.type") or "none")


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
        from ropebend.native import read_metadata  # llama.cpp, which takes long to import

        fields = read_metadata(path)
        header = Header(path, fields.get)
        header.check_is_model()
        arch, n_layer = header.architecture, header.count("block_count")
        try:
            scaling = LayerScaling.from_metadata(fields, arch, n_layer)
        except RopebendError as e:
            raise named(path, e) from None
        return cls(
            path=str(path),
            name=str(fields.get("general.name") or Path(path).stem),
            architecture=arch,
            n_layer=n_layer,
            n_ctx_train=header.count("context_length"),
            rope_freq_base=header.number("rope.freq_base", 10000.0),
            rope_scaling=(header.own_method, header.number("rope.scaling.factor", 1.0)),
            scaling=scaling,
        )
