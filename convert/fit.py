"""Which models can carry scales, and which scales fit them."""

from __future__ import annotations

from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import RopebendError
from ropebend.scaling import ARCHITECTURES_WITHOUT_ROPE, LayerScaling

#: What else a GGUF file can be (general.type), and where the scales go instead.
NOT_MODELS = {
    "adapter": ", a LoRA adapter: write the scales into its base model",
    "mmproj": ", a multimodal projector: write the scales into the language model's file",
    "clip-vision": ", a multimodal projector: write the scales into the language model's file",
    "imatrix": ", an importance matrix: write the scales into the model's file",
}


def architecture(source: GgufFile) -> str:
    """general.architecture.  Raises RopebendError if it is not there."""
    name = source.value("general.architecture")
    if not isinstance(name, str):
        raise RopebendError(f"{source.path}: general.architecture: expected a string, got {name!r}; not a model?")
    return name


def count(source: GgufFile, key: str) -> int:
    """A positive integer under `<architecture>.<key>`.  Raises RopebendError if it is not there."""
    key = f"{architecture(source)}.{key}"
    value = source.value(key)
    if type(value) is not int or value < 1:
        raise RopebendError(f"{source.path}: {key}: expected a positive integer, got {value!r:.80}")
    return value


def fit(scaling: LayerScaling, source: GgufFile) -> LayerScaling:
    """The scales as they go into this model, with an original context where their method needs one.

    Raises RopebendError naming key, value and expectation if the file is no model or the scales are not for it.
    """
    kind = source.value("general.type")
    if kind not in (None, "model"):
        hint = NOT_MODELS.get(kind, "") if isinstance(kind, str) else ""
        raise RopebendError(f"{source.path}: general.type: expected 'model', got {kind!r:.80}{hint}")
    arch = architecture(source)
    # A model without RoPE need not have blocks; check_model says the more useful thing about it.
    n_layer = scaling.n_layer if arch in ARCHITECTURES_WITHOUT_ROPE else count(source, "block_count")
    try:
        scaling.check_model(n_layer, arch, str(source.value(f"{arch}.rope.scaling.type") or "none"))
    except RopebendError as e:
        raise RopebendError(f"these scales do not fit {source.path}: {e}") from None
    if scaling.with_original_context(1) != scaling:
        scaling = scaling.with_original_context(count(source, "context_length"))
    return scaling
