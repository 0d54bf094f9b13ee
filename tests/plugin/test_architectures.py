"""The doctor's checks on random models of many architectures: what is scaled, what is compared, what is refused."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from architecture_models import FIELDS, write_model

from ropebend import Context, LayerScaling, Model, RopebendError
from ropebend.doctor import examine

BITS, MORE, PART = "bit for bit", "the flag changes more than rope", "the flag does not reach every node"


@dataclass
class Expected:
    """layers: that rotate; flag: how scale 2 compares with rope_freq_scale / 2; shift: after a K-shift, too."""

    layers: str = "0–1"
    without: str = ""
    flag: str = BITS
    shift: bool = True


EXPECTED = {
    "llama": Expected(),
    "qwen2": Expected(),
    "qwen3": Expected(),
    "qwen3moe": Expected(),
    "gemma2": Expected(flag=PART),  # its K-shift takes the sliding layers' own factor
    "gemma3": Expected("0–5", flag=PART),
    "phi3": Expected(shift=False),  # llama.cpp's own shift multiplies keys by LongRoPE's magnitude again
    "stablelm": Expected(),
    "gptneox": Expected(),
    "falcon": Expected(),
    "command-r": Expected(),
    "olmo2": Expected(),
    "deepseek2": Expected(flag=MORE),  # its attention's magnitude
    "qwen2vl": Expected(shift=False),  # M-RoPE cannot be shifted
    "falcon-h1": Expected(),
    "granitehybrid": Expected("1, 3", "0, 2"),
    "bitnet": Expected(),
    "llama4": Expected("0–2", "3", flag=PART),
}
REFUSED = {
    "gemma3n": "'gemma3n' is not supported: some of its layers read the keys of another layer",
    "mamba": "'mamba' has no RoPE",
    "gpt2": "'gpt2' has no RoPE",
}


def test_every_architecture_of_the_generator_is_judged() -> None:
    assert set(FIELDS) == set(EXPECTED) | set(REFUSED)


@pytest.mark.parametrize("architecture", EXPECTED)
def test_architecture(tmp_path: Path, architecture: str) -> None:
    expected = EXPECTED[architecture]
    with Model(write_model(tmp_path / "model.gguf", architecture)) as model:
        checks = {c.name: c for c in examine(model, n_threads=1, full=True)}
        assert [c.name for c in checks.values() if not c.ok] == []
        layers = checks["nodes"].detail.partition("in layers ")[2]
        assert layers == expected.layers + (f"; no rope in {expected.without}" if expected.without else "")
        compared = checks["numpy"].detail.split()
        assert compared[0] == compared[2]  # all of them
        assert checks["ones"].detail == BITS
        assert checks["alone scale"].detail == f"in {expected.layers}"
        assert checks["alone attention factor"].detail == f"in {expected.layers}"
        by_flag = checks.get("flag logits")
        assert (PART if by_flag is None else by_flag.detail.removeprefix("not compared: in this architecture ")) == (
            expected.flag
        )
        assert ("flag logits shifted" in checks) == (expected.shift and expected.flag == BITS)


@pytest.mark.parametrize("architecture", REFUSED)
def test_refused_architecture(tmp_path: Path, architecture: str) -> None:
    path = write_model(tmp_path / "model.gguf", architecture)
    with Model(path) as model:
        (check,) = examine(model, n_threads=1)
        assert not check.ok
        assert REFUSED[architecture] in check.detail
        scaling = LayerScaling.uniform(2.0, model.info.n_layer)
        with pytest.raises(RopebendError, match=REFUSED[architecture]):
            Context(model, n_ctx=64, scaling=scaling)
        with Context(model, n_ctx=64, n_threads=1, scaling=None) as context:  # unscaled it runs
            context.decode([1, 2, 3], 0)
            assert np.isfinite(context.logits(-1)).all()


def test_an_unscaled_model_with_shared_keys_can_be_shifted(tmp_path: Path) -> None:
    with (
        Model(write_model(tmp_path / "model.gguf", "gemma3n")) as model,
        Context(model, n_ctx=64, n_threads=1, scaling=None) as context,
    ):
        context.decode(list(range(16)), 0)
        context.seq_rm(0, 4, 8)
        context.seq_add(0, 8, -1, -4)
        context.decode([1], 12)


def test_a_shift_of_m_rope_is_refused_before_llama_cpp_aborts(tmp_path: Path) -> None:
    with (
        Model(write_model(tmp_path / "model.gguf", "qwen2vl")) as model,
        Context(model, n_ctx=64, n_threads=1, scaling=None) as context,
        pytest.raises(RopebendError, match="M-RoPE cannot be shifted"),
    ):
        context.seq_add(0, 8, -1, -4)


def test_a_scale_for_a_layer_without_rope_has_no_effect(tmp_path: Path) -> None:
    with Model(write_model(tmp_path / "model.gguf", "granitehybrid")) as model:
        logits = []
        for first in (1.0, 5.0):
            scaling = LayerScaling((first, 2.0, 1.0, 3.0))
            with Context(model, n_ctx=64, n_threads=1, scaling=scaling) as context:
                assert context.rope_layers == [1, 3]
                context.decode(list(range(24)), 0)
                logits.append(context.logits(-1).copy())
        assert np.array_equal(*logits)
