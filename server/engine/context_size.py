"""The context that is served: its size, and what the layer scales do for it."""

from __future__ import annotations

from ropebend.scaling import LayerScaling
from ropebend.scaling.stretch import judged_at, stretch_of


def choose(asked: int, n_ctx_train: int, scaling: LayerScaling | None) -> tuple[int, str]:
    """Context size in tokens, and why: as asked, or the trained one, or more if the scales were tested at more."""
    if asked:
        return asked, "as asked"
    tested = judged_at(scaling)
    if tested is not None and tested > n_ctx_train:
        return tested, "what the scales were tested at"
    return n_ctx_train, "what the model was trained at"


def describe(n_ctx: int, why: str, n_ctx_train: int, scaling: LayerScaling | None) -> str:
    """One line for the log: the size, why, and plainly whether it goes beyond the training."""
    line = f"{n_ctx} tokens ({why})"
    if n_ctx <= n_ctx_train:
        return line
    part = scaling.at(n_ctx) if scaling is not None else None
    if part is None:
        does = "nothing stretches it, expect worse answers there"
    else:
        low, high = stretch_of(part, n_ctx)
        does = f"the layers are stretched by {f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}'}"
    return f"{line}, {n_ctx / n_ctx_train:.3g} times the {n_ctx_train} the model was trained at: {does}"
