"""The doctor must fail when the hook does not do its work."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import real_models

from ropebend import LayerScaling, Model
from ropebend.doctor import METHODS, Check, compare_with_numpy, examine, ranges
from ropebend.doctor.observe import Observed
from ropebend.doctor.reference import rope
from ropebend.native import Hook
from ropebend.scaling.plan import Plan


def failed(checks: Iterator[Check]) -> list[str]:
    return [c.name for c in checks if not c.ok]


def change(monkeypatch: pytest.MonkeyPatch, how: Callable[[Plan], Plan]) -> None:
    """Let the hook apply something else than it is told."""
    right = Hook.set_plan
    monkeypatch.setattr(Hook, "set_plan", lambda self, plan: right(self, plan and how(plan)))


def test_healthy(plain: Model, wide: Model) -> None:
    assert failed(examine(plain, n_threads=1, full=True)) == []
    assert failed(examine(wide, n_threads=1, type_k="q8_0", flash_attn=True)) == []


def test_a_real_model_with_large_keys() -> None:
    """f16 rounds Gemma's largest keys by more than most of its keys are long."""
    with Model(real_models.find(real_models.GEMMA)) as model:
        assert failed(examine(model, n_threads=1)) == []


def test_a_plan_that_is_not_applied_is_found(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hook, "set_plan", lambda self, plan: None)
    names = failed(examine(plain, n_threads=1, full=True))
    assert names == ["numpy", "alone scale", "alone attention factor", "flag", *(f"method {m.method}" for m in METHODS)]


@pytest.mark.parametrize("row", ["stretch", "attn_factor"])
def test_numbers_on_the_wrong_layers_are_found(plain: Model, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    change(monkeypatch, lambda plan: dataclasses.replace(plan, **{row: getattr(plan, row)[::-1].copy()}))
    assert failed(examine(plain, n_threads=1)) == ["numpy"]


@pytest.mark.parametrize("type_k", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("row", ["stretch", "base_stretch", "attn_factor"])
def test_one_percent_in_one_layer_is_found(wide: Model, monkeypatch: pytest.MonkeyPatch, row: str, type_k: str) -> None:
    def planted(plan: Plan) -> Plan:
        values = getattr(plan, row).copy()
        values[1] *= 1.01
        return dataclasses.replace(plan, **{row: values})

    assert failed(examine(wide, n_threads=1, type_k=type_k)) == []
    change(monkeypatch, planted)
    assert "numpy" in failed(examine(wide, n_threads=1, type_k=type_k))


@pytest.mark.parametrize("type_k", ["f16", "f32"])
def test_one_percent_in_a_shifted_cache_with_large_keys_is_found(wide: Model, type_k: str) -> None:
    """The bound follows from the format, element by element: rounding passes, however large some keys are."""
    scaling = LayerScaling((1.0, 1.5, 2.0))
    options: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "n_threads": 1, "type_k": type_k}
    tokens = list(range(24))
    with Observed(wide, scaling=None, **options) as context:
        own = context.record(tokens, True)
    with Observed(wide, scaling=scaling, **options) as context:
        nodes = context.record(tokens, True)
    shifted = next(node for node in nodes if node.shift and node.layer == 1)
    assert shifted.x is not None
    assert shifted.x.dtype == (np.float16 if type_k == "f16" else np.float32)

    def verdict(x: Any, factor: float, freq_scale: float) -> Check:
        params = dataclasses.replace(shifted.params, freq_scale=shifted.params.freq_scale * freq_scale)
        out = (factor * rope(x, shifted.positions, params, shifted.factors)).astype(x.dtype)
        changed = [dataclasses.replace(n, x=x, out=out) if n is shifted else n for n in nodes]
        return compare_with_numpy("numpy", own, changed, scaling, 256)

    outliers = shifted.x.copy()
    outliers[..., 3] *= 200
    for x in shifted.x, outliers:
        assert verdict(x, 1.0, 1.0).ok
        assert not verdict(x, 1.01, 1.0).ok
        assert not verdict(x, 1.0, 1.01).ok


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert ranges([]) == ""
