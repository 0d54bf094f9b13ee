"""Which models take which scales."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from ropebend.convert.fit import fit
from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import RopeMethod

MakeModel = Callable[..., Path]


def fit_error(path: Path, scaling: LayerScaling) -> str:
    with GgufFile(path) as source, pytest.raises(RopebendError) as e:
        fit(scaling, source)
    return str(e.value)


def test_fitting_scales_come_back_unchanged(model: Path):
    scaling = LayerScaling.uniform(2.0, 3, architecture="llama")
    with GgufFile(model) as source:
        assert fit(scaling, source) == scaling


@pytest.mark.parametrize("method", ["yarn", "dynamic-ntk"])
def test_the_original_context_comes_from_the_model_where_it_is_needed(model: Path, method: str):
    with GgufFile(model) as source:
        assert fit(LayerScaling.uniform(1.0, 3, rope=RopeMethod(method, 2.0)), source).rope.original_context == 64
        assert fit(LayerScaling.uniform(1.0, 3, rope=RopeMethod(method, 2.0, 32)), source).rope.original_context == 32
        assert fit(LayerScaling.uniform(1.0, 3, rope=RopeMethod("ntk", 2.0)), source).rope.original_context is None


def test_scales_for_another_model(model: Path):
    message = fit_error(model, LayerScaling.uniform(1.0, 4))
    assert message == f"these scales do not fit {model}: layer_scale: expected 3 scales, one per block, got 4"
    message = fit_error(model, LayerScaling.uniform(1.0, 3, architecture="qwen2"))
    assert message == (
        f"these scales do not fit {model}: architecture: the scales were made for 'qwen2', the model is 'llama'"
    )


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "adapter": (
        {"more": {"general.type": ("adapter", GGUFValueType.STRING)}},
        "general.type: expected 'model', got 'adapter', a LoRA adapter: write the scales into its base model",
    ),
    "mmproj": (
        {"more": {"general.type": ("mmproj", GGUFValueType.STRING)}},
        "general.type: expected 'model', got 'mmproj', a multimodal projector: write the scales into the language",
    ),
    "another type": ({"more": {"general.type": (7, GGUFValueType.UINT8)}}, "general.type: expected 'model', got 7"),
    "an embedding model": ({"arch": "bert"}, "general.architecture: 'bert' has no RoPE"),
    "no rope": ({"arch": "gpt2"}, "general.architecture: 'gpt2' has no RoPE"),
    "shared keys": ({"arch": "gemma3n"}, "general.architecture: 'gemma3n' is not supported: some of its layers read"),
    "YaRN already": (
        {"more": {"llama.rope.scaling.type": ("yarn", GGUFValueType.STRING)}},
        "rope.method: the model carries YaRN already, and YaRN does not fit on it. Use method none",
    ),
    "clip has no blocks": ({"arch": "clip", "block_count": None}, "general.architecture: 'clip' has no RoPE"),
    "no blocks": ({"block_count": None}, "llama.block_count: expected a positive integer, got None"),
    "no context": ({"context_length": None}, "llama.context_length: expected a positive integer, got None"),
    "arch type": (
        {"more": {"general.architecture": (7, GGUFValueType.UINT32)}},
        "general.architecture: expected a string, got 7; not a model?",
    ),
    "arch with NUL": (
        {"more": {"general.architecture": ("lla\0ma", GGUFValueType.STRING)}},
        "general.architecture: expected a string without NUL, got 'lla\\x00ma'",
    ),
    "block type": (
        {"more": {"llama.block_count": (True, GGUFValueType.BOOL)}},
        "llama.block_count: expected a positive integer, got True",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("more", "expected"), MODELS.values(), ids=MODELS)
def test_models_that_take_no_scales(make_model: MakeModel, more: dict[str, Any], expected: str):
    message = fit_error(make_model(**more), LayerScaling.uniform(1.0, 3, rope=RopeMethod("yarn", 2.0)))
    assert expected in message
    assert "model.gguf" in message
