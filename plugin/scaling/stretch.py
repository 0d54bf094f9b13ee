"""Stretching a model without a search, and what speaks against scales."""

from __future__ import annotations

from ropebend.errors import ScalesError, UsageError
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import NO_METHOD, RopeMethod


def judged_at(scaling: LayerScaling | None) -> int | None:
    """Tokens at which the scales were judged on test items, None if they never were or nobody knows."""
    return scaling.n_ctx if scaling is not None and scaling.is_judged else None


def stretch_of(part: LayerScaling, n_ctx: int) -> tuple[float, float]:
    """The least and the most that a layer is stretched by at a context of n_ctx tokens, the method included."""
    factor = part.rope.factor_at(n_ctx)
    return factor * min(part.layer_scale), factor * max(part.layer_scale)


def doubts(scaling: LayerScaling, n_ctx_train: int | None, n_ctx: int | None = None) -> list[str]:
    """What a user of these scales should know, a sentence each.

    n_ctx  tokens they are to be used at; default: those they were searched at, if known
    """
    used_at = n_ctx
    n_ctx = n_ctx or scaling.n_ctx
    part = scaling.at(n_ctx)
    if part is None:
        least = max(p.up_to for p in scaling.shorter if p.scaling is None)
        return [f"a context of {n_ctx} tokens runs unscaled: the scales are for more than {least}"]
    need = n_ctx / n_ctx_train if n_ctx is not None and n_ctx_train else 1.0
    if part.is_unscaled:
        out = ["every scale is 1: this is the model as it is without scales"]
        return [*out, "nothing stretches the context, expect worse answers there"] if need > 1 else out
    out = []
    judged = judged_at(part)
    if not part.is_judged:
        out.append(
            "these scales were never judged on unseen items, as far as they tell: compare them with the unscaled model "
            "(`ropebend eval --no-scaling`; NAME:base in the server, /base in a chat)"
        )
    elif n_ctx is not None and judged is not None and n_ctx > judged:
        out.append(f"the scales were judged at {judged} tokens, the context is {n_ctx}")
    if n_ctx is None or n_ctx <= (judged or 0):
        return out
    low, high = stretch_of(part, n_ctx)
    if high < need:
        out.append(
            f"the context needs a stretch of {need:.3g}, no layer has more than {high:.3g}: expect worse answers"
        )
    if used_at is not None and n_ctx_train and low > 1 and need <= 1:
        out.append(
            f"every layer is stretched by {low:.3g} or more, which costs quality within the trained {n_ctx_train} "
            f"tokens: it is meant for up to {int(low * n_ctx_train)}"
        )
    return out


def plain_stretch(
    n_layer: int, architecture: str | None, *, scale: float | None, method: str | None, factor: float | None
) -> LayerScaling | None:
    """Every layer alike, from the flags --scale, --method and --factor; None if none of them was given.

    Raises UsageError naming the flag.
    """
    if scale is None and method is None and factor is None:
        return None
    if factor is not None and method in (None, "none"):
        raise UsageError("--factor needs a --method: linear, ntk, dynamic-ntk or yarn")
    rope = NO_METHOD if method is None else RopeMethod(method, 1.0 if factor is None else factor)
    try:
        rope.check()
    except ScalesError as e:
        raise UsageError(f"--method, --factor: {e}") from None
    try:
        return LayerScaling.uniform(1.0 if scale is None else scale, n_layer, architecture=architecture, rope=rope)
    except ScalesError as e:
        raise UsageError(f"--scale: {e}") from None
