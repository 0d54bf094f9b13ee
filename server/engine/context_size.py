"""The context that is served: its size, what the layer scales do for it, and what to be warned of."""

from __future__ import annotations

from ropebend.scaling import LayerScaling


def tested_at(scaling: LayerScaling | None) -> int | None:
    """Tokens at which the scales were judged on test items, None if they never were or nobody knows."""
    return scaling.n_ctx if scaling is not None and scaling.is_judged else None


def choose(asked: int, n_ctx_train: int, scaling: LayerScaling | None) -> tuple[int, str]:
    """Context size in tokens, and why: as asked, or the trained one, or more if the scales were tested at more."""
    if asked:
        return asked, "as asked"
    tested = tested_at(scaling)
    if tested is not None and tested > n_ctx_train:
        return tested, "what the scales were tested at"
    return n_ctx_train, "what the model was trained at"


def _stretch(part: LayerScaling, n_ctx: int) -> tuple[float, float]:
    """The least and the most that a layer is stretched by, the method included."""
    factor = part.rope.factor_at(n_ctx)
    return factor * min(part.layer_scale), factor * max(part.layer_scale)


def describe(n_ctx: int, why: str, n_ctx_train: int, scaling: LayerScaling | None) -> str:
    """One line for the log: the size, why, and plainly whether it goes beyond the training."""
    line = f"{n_ctx} tokens ({why})"
    if n_ctx <= n_ctx_train:
        return line
    part = scaling.at(n_ctx) if scaling is not None else None
    if part is None:
        does = "nothing stretches it, expect worse answers there"
    else:
        low, high = _stretch(part, n_ctx)
        does = f"the layers are stretched by {f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}'}"
    return f"{line}, {n_ctx / n_ctx_train:.3g} times the {n_ctx_train} the model was trained at: {does}"


def warnings(n_ctx: int, n_ctx_train: int, scaling: LayerScaling | None) -> list[str]:
    """What whoever serves these scales at this size should know, a sentence each."""
    if scaling is None:
        return []
    part = scaling.at(n_ctx)
    if part is None:
        least = max(p.up_to for p in scaling.shorter if p.scaling is None)
        return [f"a context of {n_ctx} tokens runs unscaled: the file's scales are for more than {least}"]
    tested = tested_at(part)
    _, high = _stretch(part, n_ctx)
    if part.is_unscaled:
        out = ["the layer scales are all 1: they change nothing"]
        return [*out, "nothing stretches the context, expect worse answers there"] if n_ctx > n_ctx_train else out
    out = []
    if tested is None:
        out.append("the layer scales were never judged on test items, as far as they tell: compare with MODEL:base")
    elif n_ctx > tested:
        out.append(f"the layer scales were tested at {tested} tokens, the context is {n_ctx}")
    need = n_ctx / n_ctx_train
    if n_ctx > (tested or 0) and high < need:
        out.append(
            f"the context needs a stretch of {need:.3g}, no layer has more than {high:.3g}: expect worse answers"
        )
    return out
