"""The hook against llama.cpp's own rope_freq_scale, bit for bit, and against a numpy forward pass."""

import ctypes
import dataclasses
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
import numpy_llama
import pytest
from random_models import SHAPE, weights, write_llama

from ropebend import Context, LayerScaling, Model, RopebendError, RopeMethod
from ropebend.scaling import ShorterPlan
from ropebend.scaling.plan import stretched

TOKENS = [int(t) for t in np.random.default_rng(3).integers(1, 257, 40)]
F32 = npt.NDArray[np.float32]


def uniform(s: float, model: Model) -> LayerScaling:
    return LayerScaling.uniform(s, model.info.n_layer)


def flag(s: float) -> float:
    return float(np.float32(1) / np.float32(s))


def open_context(model: Model, **options: Any) -> Context:
    return Context(model, **{"n_ctx": 256, "n_batch": 64, "n_threads": 1, "scaling": None, **options})


def all_logits(context: Context) -> F32:
    context.clear()
    context.decode(TOKENS, 0, all_logits=True)
    return context.all_logits(len(TOKENS)).copy()


def logits(model: Model, **options: Any) -> F32:
    with open_context(model, **options) as context:
        return all_logits(context)


def shifted_logits(model: Model, **options: Any) -> F32:
    """Decode, drop positions 8 to 20, close the gap (a K-shift), decode on, twice."""
    with open_context(model, **options) as context:
        context.decode(TOKENS, 0)
        length = len(TOKENS)
        for _ in range(2):
            context.seq_rm(0, 8, 20)
            context.seq_add(0, 20, -1, -12)
            length -= 12
            context.decode(TOKENS[:5], length)
            length += 5
        return context.logits(-1).copy()


CACHES = [
    pytest.param({"flash_attn": False}, id="plain"),
    pytest.param({"flash_attn": True}, id="flash"),
    pytest.param({"flash_attn": True, "type_k": "q8_0"}, id="flash-q8_0"),
    pytest.param({"flash_attn": False, "type_k": "q8_0"}, id="q8_0"),
    pytest.param({"flash_attn": False, "type_k": "q4_0"}, id="q4_0"),
]


@pytest.mark.parametrize("cache", CACHES)
def test_all_ones_is_unhooked_bit_for_bit(wide: Model, cache: dict[str, Any]) -> None:
    ones = uniform(1.0, wide)
    assert np.array_equal(logits(wide, scaling=ones, **cache), logits(wide, hooked=False, **cache))
    assert np.array_equal(shifted_logits(wide, scaling=ones, **cache), shifted_logits(wide, hooked=False, **cache))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("s", [2.0, 1.7, 3.3])
def test_uniform_is_rope_freq_scale_bit_for_bit(wide: Model, cache: dict[str, Any], s: float) -> None:
    by_flag = {"hooked": False, "rope_freq_scale": flag(s), **cache}
    ours = logits(wide, scaling=uniform(s, wide), **cache)
    assert np.array_equal(ours, logits(wide, **by_flag))
    assert not np.array_equal(ours, logits(wide, hooked=False, **cache))


@pytest.mark.parametrize("cache", CACHES)
def test_uniform_is_rope_freq_scale_after_a_k_shift(wide: Model, cache: dict[str, Any]) -> None:
    ours = shifted_logits(wide, scaling=uniform(1.7, wide), **cache)
    assert np.array_equal(ours, shifted_logits(wide, hooked=False, rope_freq_scale=flag(1.7), **cache))


def test_plans_swap_in_one_context_without_a_trace(plain: Model) -> None:
    expected = {s: logits(plain, hooked=False, rope_freq_scale=flag(s)) for s in (1.0, 1.3, 2.0)}
    ntk = LayerScaling((1.0, 2.0, 3.0), rope=RopeMethod("ntk", 2.0))
    with open_context(plain) as context:
        for s in (2.0, 1.0, 1.3, 2.0, 1.3):
            context.set_scaling(uniform(s, plain))
            assert np.array_equal(all_logits(context), expected[s])
            context.set_scaling(ntk)  # changes freq_base, which the next plan must put back
            assert not np.array_equal(all_logits(context), expected[s])
        context.set_scaling(None)
        assert np.array_equal(all_logits(context), expected[1.0])


def test_single_tokens_reuse_the_graph_and_follow_the_plan(plain: Model) -> None:
    def one_by_one(context: Context) -> F32:
        context.clear()
        for i, token in enumerate(TOKENS):
            context.decode([token], i)
        return context.logits(-1).copy()

    with open_context(plain, hooked=False, rope_freq_scale=0.5) as context:
        expected = one_by_one(context)
    with open_context(plain) as context:
        unscaled = one_by_one(context)
        context.set_scaling(uniform(2.0, plain))
        assert np.array_equal(one_by_one(context), expected)
        context.set_scaling(None)
        assert np.array_equal(one_by_one(context), unscaled)


def test_contexts_with_different_plans_do_not_touch_each_other(plain: Model) -> None:
    alone = {s: logits(plain, scaling=uniform(s, plain)) for s in (1.0, 1.5, 2.0)}
    contexts = {s: open_context(plain, scaling=uniform(s, plain)) for s in alone}
    try:
        for _ in range(2):
            for s, context in contexts.items():
                assert np.array_equal(all_logits(context), alone[s])
    finally:
        for context in contexts.values():
            context.close()


def test_layer_scales_against_a_numpy_forward_pass(plain: Model) -> None:
    scales = (1.0, 2.5, 1.75)
    reference = numpy_llama.logits(
        weights(**SHAPE, seed=0), TOKENS, n_head=4, n_head_kv=2, head_dim=16, bases=[10000.0] * 3, scales=list(scales)
    )
    ours = logits(plain, scaling=LayerScaling(scales), type_k="f32", type_v="f32")
    assert np.abs(ours - reference).max() < 2e-4 * reference.std()
    for layer in range(3):  # and each layer alone matters, far above that tolerance
        other = list(scales)
        other[layer] += 0.5
        changed = logits(plain, scaling=LayerScaling(tuple(other)), type_k="f32", type_v="f32")
        assert np.abs(changed - reference).max() > 2e-2 * reference.std()


def test_ntk_against_a_numpy_forward_pass(plain: Model) -> None:
    scales, factor, d = (1.0, 2.5, 1.75), 2.0, 16
    bases = [10000.0 * (factor * s) ** (d / (d - 2)) for s in scales]
    reference = numpy_llama.logits(
        weights(**SHAPE, seed=0), TOKENS, n_head=4, n_head_kv=2, head_dim=16, bases=bases, scales=[1.0] * 3
    )
    scaling = LayerScaling(scales, rope=RopeMethod("ntk", factor))
    ours = logits(plain, scaling=scaling, type_k="f32", type_v="f32")
    assert np.abs(ours - reference).max() < 2e-4 * reference.std()


def test_attention_factors_against_a_numpy_forward_pass(plain: Model) -> None:
    """Queries and keys multiplied by a are attention logits multiplied by its square."""
    scales, factors = (1.0, 2.5, 1.75), (1.2, 0.7, 1.0)
    w = weights(**SHAPE, seed=0)
    shape: dict[str, Any] = {
        "n_head": 4,
        "n_head_kv": 2,
        "head_dim": 16,
        "bases": [10000.0] * 3,
        "scales": list(scales),
    }
    for i, a in enumerate(factors):
        w[f"blk.{i}.attn_q.weight"] = w[f"blk.{i}.attn_q.weight"] * np.float32(a * a)
    reference = numpy_llama.logits(w, TOKENS, **shape)
    plan = stretched(scales, RopeMethod(), None, factors)
    with open_context(plain, type_k="f32", type_v="f32") as context:
        context.switch_plan(plan)
        ours = all_logits(context)
        assert np.abs(ours - reference).max() < 2e-4 * reference.std()
        context.switch_plan(stretched(scales, RopeMethod(), None))
        assert np.abs(all_logits(context) - reference).max() > 2e-2 * reference.std()
        context.switch_plan(stretched((1.0,) * 3, RopeMethod(), None, (1.0,) * 3))
        ones = all_logits(context)
    assert np.array_equal(ones, logits(plain, hooked=False, type_k="f32", type_v="f32"))


def test_attention_factors_are_not_applied_again_by_a_k_shift(plain: Model) -> None:
    with open_context(plain, type_k="f32") as context:
        context.switch_plan(stretched((1.0, 2.0, 1.5), RopeMethod(), None, (1.5, 0.6, 1.2)))
        straight = all_logits(context)[-1]
        context.clear()
        # the same tokens 7 positions later, then shifted back
        context.decode(TOKENS[:-1], 7)
        context.seq_add(0, 0, -1, -7)
        context.decode(TOKENS[-1:], len(TOKENS) - 1)
        assert np.abs(context.logits(-1) - straight).max() < 1e-4 * straight.std()


def test_attention_factors_tell_plans_apart() -> None:
    plans = [
        stretched((1.0, 2.0), RopeMethod(), None, factors) for factors in (None, (1.0, 1.0), (1.0, 1.1), (1.1, 1.0))
    ]
    assert len({plan.hash for plan in plans}) == 3


def test_plans_by_length_follow_the_cells_of_one_sequence(plain: Model) -> None:
    """A plan "none" is the unscaled model bit for bit, K-shift included; the bound itself belongs to it."""
    middle = LayerScaling((1.5, 1.0, 2.0), layer_attn_factor=(1.0, 1.25, 0.9))
    last = LayerScaling((2.0, 3.0, 1.0))
    plans = dataclasses.replace(last, shorter=(ShorterPlan(256, None), ShorterPlan(512, middle)))
    bare = {"hooked": False}
    for n_ctx, expected in (
        (256, bare),
        (512, {"scaling": middle}),
        (768, {"scaling": last}),
        (2048, {"scaling": last}),
    ):
        options = {"n_ctx": n_ctx, "scaling": plans}
        assert np.array_equal(logits(plain, **options), logits(plain, **{"n_ctx": n_ctx, **expected}))
        assert np.array_equal(shifted_logits(plain, **options), shifted_logits(plain, **{"n_ctx": n_ctx, **expected}))
    with open_context(plain, n_ctx=2048, n_seq_max=8, kv_unified=False, scaling=plans) as context:
        assert context.plan is None  # 256 cells each
        context.set_scaling(plans, 257)
        assert context.plan is not None
        assert context.plan.hash == stretched(middle.layer_scale, RopeMethod(), None, middle.layer_attn_factor).hash


def test_scales_multiply_the_linear_factor_of_the_file(tmp_path: Path) -> None:
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    with Model(write_llama(tmp_path / "linear.gguf", fields=fields)) as model:
        ours = logits(model, scaling=uniform(2.0, model))
        assert np.array_equal(ours, logits(model, hooked=False, rope_freq_scale=0.125))


def test_yarn_as_a_method_is_llama_cpps_yarn(tmp_path: Path, plain: Model) -> None:
    fields = {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }  # fmt: skip
    with Model(write_llama(tmp_path / "yarn.gguf", fields=fields)) as model:
        expected = logits(model, hooked=False)
        with pytest.raises(RopebendError, match="carries YaRN already"):
            logits(model, scaling=LayerScaling((1.0,) * 3, rope=RopeMethod("yarn", 4.0, 64)))
    ours = logits(plain, scaling=LayerScaling((1.0,) * 3, rope=RopeMethod("yarn", 4.0, 64)))
    assert np.abs(ours - expected).max() < 1e-4 * expected.std()


def test_scales_on_a_yarn_model_keep_its_magnitude(tmp_path: Path) -> None:
    """Stretching YaRN's factor 4 by 2 rotates like factor 8, with the magnitude of 4: keys only turn, K-shift too."""
    fields = {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }  # fmt: skip
    with Model(write_llama(tmp_path / "yarn.gguf", fields=fields)) as model:
        with open_context(model, scaling=uniform(2.0, model)) as context:
            context.decode(TOKENS, 0)
            straight = context.logits(-1).copy()
            context.clear()
            # the same tokens 7 positions later, then shifted back: rotations compose, so the keys must come out alike
            context.decode(TOKENS[:-1], 7)
            context.seq_add(0, 0, -1, -7)
            context.decode(TOKENS[-1:], len(TOKENS) - 1)
            shifted = context.logits(-1).copy()
        assert np.abs(shifted - straight).max() < 0.02 * straight.std()  # f16 keys are rounded once more


def test_the_file_carries_the_scales_without_a_flag(tmp_path: Path, plain: Model) -> None:
    scales = LayerScaling((1.0, 2.0, 1.5), "llama")
    with Model(write_llama(tmp_path / "scaled.gguf", scaling=scales)) as model:
        ours = logits(model, scaling="file")
    assert np.array_equal(ours, logits(plain, scaling=scales))


def test_a_rope_node_outside_the_plan_is_an_error_with_its_name(plain_path: Path) -> None:
    with Model(plain_path) as model:
        model.info = dataclasses.replace(model.info, n_layer=1)
        with pytest.raises(RopebendError, match=r"rope node '[QK]cur-1' belongs to no layer"):
            open_context(model, scaling=uniform(2.0, model))


def test_scales_for_another_number_of_layers_are_refused(plain: Model) -> None:
    with open_context(plain) as context, pytest.raises(RopebendError, match="expected 3 scales, one per block, got 2"):
        context.set_scaling(LayerScaling((1.0, 2.0)))


def test_threads_do_not_change_a_bit(plain: Model) -> None:
    scaling = LayerScaling((1.0, 2.0, 1.5))
    assert np.array_equal(logits(plain, scaling=scaling), logits(plain, scaling=scaling, n_threads=2))


def test_counts_tell_which_layers_were_touched(plain: Model) -> None:
    with open_context(plain, scaling=uniform(2.0, plain)) as context:
        assert context.hook is not None
        assert context.rope_layers == [0, 1, 2]
        context.hook.reset_counts()
        context.decode(TOKENS, 0)
        assert context.hook.qk_nodes() == [2, 2, 2]
        assert context.hook.shift_nodes() == [0, 0, 0]
        context.seq_add(0, 0, -1, 3)
        context.decode([5], len(TOKENS) + 3)
        assert context.hook.shift_nodes() == [1, 1, 1]


def test_decode_errors_say_what_is_full(plain: Model) -> None:
    with open_context(plain, n_ctx=256) as context, pytest.raises(RopebendError, match="no free KV cells"):
        context.decode([1] * 300, 0)


def test_an_unscaled_model_runs_although_a_node_has_no_layer(plain_path: Path) -> None:
    with Model(plain_path) as model:
        model.info = dataclasses.replace(model.info, n_layer=2)
        with open_context(model, scaling=None) as context:
            context.decode(TOKENS, 0)  # nothing to patch, nothing to refuse
            with pytest.raises(RopebendError, match=r"rope node '[QK]cur-2' belongs to no layer"):
                context.set_scaling(uniform(2.0, model))


def test_a_shift_without_effect_is_no_failure(plain: Model) -> None:
    with open_context(plain, scaling=uniform(2.0, plain), n_ctx=256) as context:
        context.decode(TOKENS, 0)
        context.seq_add(0, 8, -1, 0)
        context.seq_add(0, 100, 200, -5)
        context.seq_add(0, 8, 8, 3)
        context.decode([7], len(TOKENS))
        context.seq_add(0, 8, -1, 2)
        with pytest.raises(RopebendError, match="no free KV cells"):  # the shift is done, the decode is not
            context.decode([1] * 300, len(TOKENS) + 3)
        context.clear()
        context.decode(TOKENS, 0)


def test_a_shift_that_loses_the_callback_is_an_error(plain: Model) -> None:
    """A control vector makes llama.cpp rebuild its scheduler; the pending shift then runs without cb_eval."""
    with open_context(plain, scaling=uniform(2.0, plain)) as context:
        context.decode(TOKENS, 0)
        vector = (ctypes.c_float * (3 * 64))()
        assert lib.llama_set_adapter_cvec(context.handle, vector, len(vector), 64, 1, 2) == 0
        context.seq_rm(0, 8, 20)
        context.seq_add(0, 20, -1, -12)
        with pytest.raises(RopebendError, match="the K-shift was not patched in layer 0"):
            context.decode([7], len(TOKENS) - 12)


def test_a_shift_of_a_bf16_cache_is_refused_before_llama_cpp_aborts(plain: Model) -> None:
    with open_context(plain, type_k="bf16") as context:
        context.decode(TOKENS, 0)
        with pytest.raises(RopebendError, match="type bf16 cannot be shifted"):
            context.seq_add(0, 8, -1, 3)


def test_a_batch_that_is_refused_leaves_the_shift_to_the_next(plain: Model) -> None:
    with open_context(plain, scaling=uniform(2.0, plain)) as context:
        assert context.hook is not None
        context.decode(TOKENS, 0)
        context.seq_add(0, 8, -1, 3)
        with pytest.raises(RopebendError, match="failed with status -1"):
            context.decode([10**6], len(TOKENS) + 3)
        assert context.hook.shift_nodes() == [0, 0, 0]
        context.decode([7], len(TOKENS) + 3)
        assert context.hook.shift_nodes() == [1, 1, 1]


@pytest.mark.parametrize("value", ["factors.json", 2.0, [1.0, 2.0, 3.0]])
def test_scaling_of_another_type_is_named(plain: Model, value: Any) -> None:
    with pytest.raises(RopebendError, match='scaling: expected "file", None or a LayerScaling'):
        open_context(plain, scaling=value)
