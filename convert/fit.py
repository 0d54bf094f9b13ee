"""Which scales fit which model."""

from __future__ import annotations

from ropebend import _native
from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import RopebendError
from ropebend.model_info import Header
from ropebend.scaling import LayerScaling


def fit(scaling: LayerScaling, source: GgufFile) -> LayerScaling:
    """The scales as they go into this model, with an original context where their method needs one.

    Raises RopebendError naming key, value and expectation if the file is no model or the scales are not for it.
    """
    header = Header(source.path, source.value)
    header.check_is_model()
    arch = header.architecture
    # A model without RoPE need not have blocks; check_model says the more useful thing about it.
    n_layer = scaling.n_layer if _native.architecture_refusal(arch) is not None else header.count("block_count")
    try:
        scaling.check_model(n_layer, arch, header.own_method)
    except RopebendError as e:
        raise type(e)(f"these scales do not fit {source.path}: {e}") from None
    if scaling.with_original_context(1) != scaling:
        scaling = scaling.with_original_context(header.count("context_length"))
    return scaling
