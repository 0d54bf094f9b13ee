"""Stretching a model without a search, and what speaks against scales."""

from __future__ import annotations

from ropebend.errors import ScalesError, UsageError
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import NO_METHOD, RopeMethod


def doubts(scaling: LayerScaling, n_ctx_train: int | None, n_ctx: int | None = None) -> list[str]:
    """What a user of these scales should know, a sentence each.

    n_ctx  tokens they are to be used at; default: those they were searched at, if known
    """
    out = []
    if scaling.is_unscaled:
        return ["every scale is 1: this is the model as it is without scales"]
    if not scaling.is_judged:
        out.append(
            "these scales were not judged on unseen items (provenance.scores.test is missing): "
            "compare them with --no-scaling in `ropebend eval`"
        )
    n_ctx = n_ctx or scaling.n_ctx
    if n_ctx is not None and n_ctx_train is not None:
        needed, most = n_ctx / n_ctx_train, max(scaling.layer_scale) * scaling.rope.factor_at(n_ctx)
        if needed > 1 and most < needed:
            out.append(
                f"{n_ctx} tokens are {needed:.3g} times the {n_ctx_train} that the model was trained at, "
                f"and no layer is stretched by more than {most:.3g}: expect worse answers at the end"
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
