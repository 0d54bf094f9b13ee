"""The doctor must fail when the hook does not do its work."""

from collections.abc import Iterator

import pytest

from ropebend import Model
from ropebend.doctor import Check, examine, ranges
from ropebend.native import Hook
from ropebend.plan import Plan


def failed(checks: Iterator[Check]) -> list[str]:
    return [c.title for c in checks if not c.ok]


def test_healthy(plain: Model, wide: Model) -> None:
    assert failed(examine(plain, n_threads=1)) == []
    assert failed(examine(wide, n_threads=1, type_k="q8_0", flash_attn=True)) == []


def test_a_plan_that_is_not_applied_is_found(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hook, "set_plan", lambda self, plan: None)
    titles = failed(examine(plain, n_threads=1))
    assert "with a scale of its own for each layer, every output is numpy's" in titles
    assert "scale 2 is rope_freq_scale / 2, node by node" in titles
    assert "each layer's scale alone changes the logits" in titles


def test_scales_on_the_wrong_layers_are_found(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Hook.set_plan

    def backwards(self: Hook, plan: Plan | None) -> None:
        right(self, plan and Plan(plan.stretch[::-1].copy(), plan.base_stretch, plan.attn_factor))

    monkeypatch.setattr(Hook, "set_plan", backwards)
    assert failed(examine(plain, n_threads=1)) == ["with a scale of its own for each layer, every output is numpy's"]


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert ranges([]) == ""
