"""`ropebend.Llama` against llama-cpp-python's own class."""

import ctypes
import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as lib
import pytest
from random_models import write_llama

from ropebend import LayerScaling, Llama, RopebendError
from ropebend.scaling import ShorterPlan

OPTIONS: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "verbose": False}
PROMPT = "Once upon a time there was"
HALF = LayerScaling.uniform(2.0, 3)


def text(llm: llama_cpp.Llama) -> str:
    return str(llm(PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"])


@pytest.fixture
def llm(plain_path: Path) -> Iterator[Llama]:
    llm = Llama(str(plain_path), **OPTIONS)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def expected(plain_path: Path) -> dict[float, str]:
    """Greedy texts of llama-cpp-python's class by rope_freq_scale."""
    out = {}
    for freq_scale in (1.0, 0.5):
        llm = llama_cpp.Llama(str(plain_path), rope_freq_scale=freq_scale, **OPTIONS)
        out[freq_scale] = text(llm)
        llm.close()
    assert out[1.0] != out[0.5]
    return out


def test_unscaled_is_the_parent_class_and_uniform_its_flag(llm: Llama, expected: dict[float, str]) -> None:
    assert text(llm) == expected[1.0]
    llm.set_scaling(HALF)
    assert text(llm) == expected[0.5]
    llm.set_scaling(None)
    assert text(llm) == expected[1.0]


def test_prompt_caches_are_kept_apart_by_plan(llm: Llama, expected: dict[float, str]) -> None:
    llm.set_cache(llama_cpp.LlamaRAMCache())
    for _ in range(2):
        assert text(llm) == expected[1.0]
        llm.set_scaling(HALF)
        assert text(llm) == expected[0.5]
        llm.set_scaling(None)


def test_a_prompt_leaves_unrelated_entries_in_a_disk_cache(llm: Llama, plain_path: Path, tmp_path: Path) -> None:
    """Looking up takes out the entry with the longest common prefix: none, where there is nothing in common."""
    parent = llama_cpp.Llama(str(plain_path), **OPTIONS)
    llm.set_scaling(HALF)
    for name, model in (("parent", parent), ("ours", llm)):
        cache = llama_cpp.LlamaDiskCache(str(tmp_path / name))
        model.set_cache(cache)
        for prompt in ("AAAA one two three", "zzzz"):
            model(prompt, max_tokens=4, temperature=0)
        assert len(cache.cache) == 2, name
        cache.cache.close()
    parent.close()


def test_states_of_another_plan_are_refused(llm: Llama) -> None:
    text(llm)
    state = llm.save_state()
    llm.set_scaling(HALF)
    with pytest.raises(RopebendError, match="saved under other layer scales"):
        llm.load_state(state)
    llm.set_scaling(None)
    llm.load_state(state)
    assert llm.n_tokens == state.n_tokens


def test_the_file_carries_the_scales(tmp_path: Path, expected: dict[float, str]) -> None:
    scaled = Llama(str(write_llama(tmp_path / "scaled.gguf", scaling=HALF)), **OPTIONS)
    assert scaled.scaling is not None
    assert scaled.scaling.layer_scale == (2.0, 2.0, 2.0)
    assert text(scaled) == expected[0.5]
    scaled.set_scaling(None)
    assert text(scaled) == expected[1.0]
    with pytest.raises(RopebendError, match="a LayerScaling, got"):
        scaled.set_scaling(2.0)  # type: ignore[arg-type]
    scaled.set_scaling("file")
    assert text(scaled) == expected[0.5]
    scaled.close()


def test_plans_by_length_go_by_the_context(tmp_path: Path, expected: dict[float, str]) -> None:
    plans = dataclasses.replace(HALF, shorter=(ShorterPlan(256, None),))
    path = str(write_llama(tmp_path / "plans.gguf", scaling=plans))
    for n_ctx, freq_scale in ((128, 1.0), (256, 1.0), (512, 0.5)):
        llm = Llama(path, **{**OPTIONS, "n_ctx": n_ctx})
        assert text(llm) == expected[freq_scale]
        state = llm.save_state()
        assert (state.ropebend_plan == "0") == (freq_scale == 1.0)
        llm.close()


def test_pickling_keeps_the_scales(llm: Llama, expected: dict[float, str]) -> None:
    llm.set_scaling(HALF)
    copy = pickle.loads(pickle.dumps(llm))
    assert text(copy) == expected[0.5]
    copy.close()


def test_scales_that_do_not_fit_are_refused(plain_path: Path) -> None:
    with pytest.raises(RopebendError, match="expected 3 scales"):
        Llama(str(plain_path), scaling=LayerScaling((1.0,)), **OPTIONS)


def test_vocab_only_needs_no_context(plain_path: Path) -> None:
    llm = Llama(str(plain_path), vocab_only=True, **OPTIONS)
    assert llm.tokenize(b"ab", add_bos=False) == [98, 99]
    with pytest.raises(RopebendError, match="vocab_only"):
        llm.set_scaling(HALF)
    llm.close()


def test_a_shift_that_was_cleared_is_forgotten(llm: Llama) -> None:
    llm.set_scaling(HALF)
    text(llm)
    state = llm.save_state()
    for forget in (lambda: llm.set_scaling(HALF), lambda: llm.load_state(state)):
        llm._ctx.kv_cache_seq_shift(0, 4, -1, 3)
        assert llm._hook._shift_pending
        forget()
        assert not llm._hook._shift_pending
        text(llm)


def test_a_shift_that_loses_the_callback_is_an_error(llm: Llama) -> None:
    """A control vector makes llama.cpp rebuild its scheduler; the pending shift then runs without cb_eval."""
    llm.set_scaling(HALF)
    tokens = llm.tokenize(PROMPT.encode())
    llm.eval(tokens)
    vector = (ctypes.c_float * (3 * 64))()
    assert lib.llama_set_adapter_cvec(llm._ctx.ctx, vector, len(vector), 64, 1, 2) == 0
    llm._ctx.kv_cache_seq_rm(0, 4, 8)
    llm._ctx.kv_cache_seq_shift(0, 8, -1, -4)
    llm.n_tokens = len(tokens) - 4
    with pytest.raises(RopebendError, match="the K-shift was not patched in layer 0"):
        llm.eval([7])
