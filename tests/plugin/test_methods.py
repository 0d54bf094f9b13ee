"""Extension methods on top of what a model does itself, node by node against the numpy rope, K-shift included.

The cells of the table in docs/architectures.md.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from architecture_models import write_model

from ropebend import Context, LayerScaling, Llama, Model, RopebendError, RopeMethod
from ropebend.doctor import compare_with_numpy
from ropebend.doctor.observe import Observed, RopeNode

TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 64, 24)]
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
SWA = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("qwen2", {}),
    "partial": ("stablelm", {}),
    "linear": ("qwen2", LINEAR),
    "yarn": ("qwen2", YARN),
    "llama3-factors": ("llama", {}),
    "longrope": ("phi3", {"rope.scaling.type": "longrope"}),
    "own-swa-base": ("gemma3", SWA),
}
METHODS = {
    "none": RopeMethod(),
    "linear": RopeMethod("linear", 2.0),
    "ntk": RopeMethod("ntk", 3.0),
    "dynamic-ntk": RopeMethod("dynamic-ntk", 2.0, 64),
    "yarn": RopeMethod("yarn", 4.0, 64),
}
NOT_COMPOSED = {
    "linear": "the model carries linear scaling already",
    "yarn": "the model carries YaRN already",
    "llama3-factors": "rope node '[QK]cur-0' has frequency factors, so method yarn does not fit",
    "longrope": "the model carries LongRoPE already",
}


def recorded(
    model: Model, scaling: LayerScaling | None, attn_factors: npt.NDArray[np.float32] | None = None
) -> list[RopeNode]:
    options: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 64, "n_threads": 1, "type_k": "f32"}
    with Observed(model, scaling=scaling, **options) as context:
        if attn_factors is not None:
            assert context.plan is not None
            context.switch_plan(dataclasses.replace(context.plan, attn_factor=attn_factors))
        return context.record(TOKENS, True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("own", OWN)
def test_method(tmp_path: Path, own: str, method: str) -> None:
    architecture, fields = OWN[own]
    with Model(write_model(tmp_path / "model.gguf", architecture, fields)) as model:
        n_layer = model.info.n_layer
        scaling = LayerScaling(tuple(1.25 + 0.5 * i for i in range(n_layer)), rope=METHODS[method])
        if method == "yarn" and own in NOT_COMPOSED:
            with pytest.raises(RopebendError, match=NOT_COMPOSED[own]):
                recorded(model, scaling)
            return
        plain = recorded(model, None)
        assert sum(node.shift for node in plain) == n_layer
        assert all((node.factors is None) == (own not in ("llama3-factors", "longrope")) for node in plain)
        nodes = recorded(model, scaling)
        check = compare_with_numpy("numpy", plain, nodes, scaling, 256)
        assert check.ok, check.detail
        assert check.detail.startswith(f"{5 * n_layer} of {5 * n_layer} rope nodes")
        assert all(node.params != before.params for node, before in zip(nodes, plain, strict=True))


@pytest.mark.parametrize(
    ("own", "method"),
    [(o, m) for o in OWN for m in ("none", "ntk", "yarn") if m != "yarn" or o not in NOT_COMPOSED],
)
def test_attention_factors_multiply_the_magnitude_there_is(tmp_path: Path, own: str, method: str) -> None:
    architecture, fields = OWN[own]
    with Model(write_model(tmp_path / "model.gguf", architecture, fields)) as model:
        n_layer = model.info.n_layer
        scaling = LayerScaling(tuple(1.25 + 0.5 * i for i in range(n_layer)), rope=METHODS[method])
        factors = np.array([0.8 + 0.3 * i for i in range(n_layer)], np.float32)
        plain, scaled, both = (recorded(model, s, f) for s, f in ((None, None), (scaling, None), (scaling, factors)))
        check = compare_with_numpy("numpy", plain, both, scaling, 256, factors)
        assert check.ok, check.detail
        for one, two in zip(scaled, both, strict=True):
            factor = 1.0 if one.shift else float(factors[one.layer])  # cached keys carry theirs
            expected = dataclasses.replace(one.params, attn_factor=one.params.attn_factor * factor)
            assert two.params.attn_factor == pytest.approx(expected.attn_factor, rel=1e-6)
            assert dataclasses.replace(two.params, attn_factor=expected.attn_factor) == expected


def test_dynamic_ntk_follows_the_cells_of_one_sequence(tmp_path: Path) -> None:
    """As the preload library does, which sees the K cache only: streams of their own share no cells."""
    scaling = LayerScaling((1.0, 1.0), rope=METHODS["dynamic-ntk"])
    with Model(write_model(tmp_path / "model.gguf", "qwen2")) as model:

        def plan(**more: Any) -> str:
            with Context(model, n_batch=64, n_threads=1, scaling=scaling, **more) as context:
                assert context.plan is not None
                return context.plan.hash

        one = scaling.plan(256).hash
        assert plan(n_ctx=1024, n_seq_max=4, kv_unified=False) == one == plan(n_ctx=200)  # rounded up by llama.cpp
        assert plan(n_ctx=1024, n_seq_max=4) == scaling.plan(1024).hash != one


def test_what_does_not_compose_is_refused_when_the_scales_are_set(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", vocabulary=True)
    yarn, linear = (LayerScaling((1.5, 2.0), rope=METHODS[method]) for method in ("yarn", "linear"))
    message = NOT_COMPOSED["llama3-factors"]
    with Model(path) as model, Context(model, n_ctx=64, n_threads=1, scaling=None) as context:
        with pytest.raises(RopebendError, match=message):
            context.set_scaling(yarn)
        with pytest.raises(RopebendError, match=message):  # and it does not run unscaled instead
            context.decode(TOKENS, 0)
        context.set_scaling(linear)
        context.decode(TOKENS, 0)
    options: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "verbose": False}
    with pytest.raises(RopebendError, match=message):
        Llama(str(path), scaling=yarn, **options)
    llm = Llama(str(path), **options)
    with pytest.raises(RopebendError, match=message):
        llm.set_scaling(yarn)
    llm.set_scaling(linear)
    llm("ab", max_tokens=1)
    llm.close()


def test_the_comparison_fails_for_another_method(tmp_path: Path) -> None:
    with Model(write_model(tmp_path / "model.gguf", "qwen2", LINEAR)) as model:
        plain = recorded(model, None)
        ntk = LayerScaling((1.5, 2.0), rope=METHODS["ntk"])
        for other in METHODS["linear"], METHODS["dynamic-ntk"], RopeMethod("ntk", 3.2):
            assert not compare_with_numpy("", plain, recorded(model, LayerScaling((1.5, 2.0), rope=other)), ntk, 256).ok
