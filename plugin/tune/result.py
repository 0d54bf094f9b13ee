"""What comes of a tune: which scales are worth writing, and what becomes of short prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ropebend.evaluate import Comparison, Evaluation, RetrievalEvaluation
from ropebend.scaling import LayerScaling, ShorterPlan
from ropebend.search.outcome import START, UNSCALED, Outcome
from ropebend.search.spec import MIN_TEST


@dataclass(frozen=True)
class Winner:
    """Scales that beat the unscaled model on unseen items.

    name         of them among the results
    scaling      as it goes into the file
    gain, short  against the unscaled model, at the length that was asked for and on short prompts
    up_to        tokens up to which sequences stay unscaled; None: short prompts gain as well
    """

    name: str
    scaling: LayerScaling
    gain: Comparison
    short: Comparison
    up_to: int | None


def winner(outcome: Outcome, ctx: int, short_length: int) -> Winner | None:
    """What to write; None if nothing clearly helps.

    The layer scales where they do, unless something plainer is clearly better still.  Sequences that are short stay
    unscaled unless those gain, too: up to the trained length, or inside it up to what was judged.
    """
    tests = {name: by_task[0] for name, by_task in outcome.tests.items()}
    if not tests or tests[UNSCALED].n_items < MIN_TEST:
        return None
    good = [n for n in tests if n != UNSCALED and tests[n].against(tests[UNSCALED]).low > 0]
    if not good:
        return None
    main = outcome.spec.label
    best = main if main in good else max(good, key=lambda n: tests[n].mean)
    for name in good:
        if tests[name].against(tests[best]).low > 0:
            best = name
    short = outcome.tests[best][1].against(outcome.tests[UNSCALED][1])
    trained = outcome.info.n_ctx_train
    up_to = None if short.mean > 0 else trained if ctx > trained else short_length
    scaling = _scaling(outcome, best)
    if up_to is not None:
        scaling = replace(scaling, shorter=(ShorterPlan(up_to, None),))
    return Winner(best, scaling, tests[best].against(tests[UNSCALED]), short, up_to)


def _scaling(outcome: Outcome, name: str) -> LayerScaling:
    if name == outcome.main.name:
        return outcome.layers
    begin = outcome.spec.begin
    candidate = begin if name == START and begin is not None else outcome.found[name].best.candidate
    return replace(
        outcome.layers,
        layer_scale=candidate.scales,
        layer_attn_factor=candidate.attn or (),
        control_points=candidate.control_points,
        attn_control_points=None,
        provenance={**outcome.layers.provenance, "chosen": name},
    )


def by_length(outcome: Outcome, name: str, labels: tuple[str, str]) -> dict[str, dict[str, Evaluation]]:
    """Results of unscaled and scaled by length, as the heat map takes them; {} where answers stand at no depth."""
    sides = {
        side: dict(zip(labels, (outcome.tests[which][1], outcome.tests[which][0]), strict=True))
        for side, which in (("unscaled", UNSCALED), ("scaled", name))
    }
    results = [r for side in sides.values() for r in side.values()]
    return sides if all(isinstance(r, RetrievalEvaluation) and r.depths for r in results) else {}
