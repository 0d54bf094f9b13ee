"""How large the served context is, and what is said about it."""

from dataclasses import replace

import pytest

from ropebend.scaling import LayerScaling, ShorterPlan
from ropebend.scaling.rope_method import RopeMethod
from ropebend.scaling.stretch import doubts
from ropebend.server.engine import context_size

TRAINED = 256


def scales(*values: float, tested: int | None = None, judged: bool = True, method: str = "none") -> LayerScaling:
    scores = {"search_score": 1.0, **({"test": {"layers": {"kv": 0.5}}} if judged else {})}
    provenance = {"n_ctx": tested, "scores": scores} if tested else {}
    rope = RopeMethod(method, 1.0 if method == "none" else 2.0, TRAINED)
    return LayerScaling(values, "llama", rope=rope, provenance=provenance)


@pytest.mark.parametrize(
    ("asked", "scaling", "n_ctx"),
    [
        (0, None, 256),
        (0, scales(2, 3, tested=1024), 1024),
        (0, scales(2, 3, tested=100), 256),  # never less than the model can do
        (0, scales(2, 3, tested=1024, judged=False), 256),
        (0, scales(2, 3), 256),
        (0, LayerScaling((2.0,), provenance={"n_ctx": "2k", "scores": {"test": {"a": 1}}}), 256),
        (0, LayerScaling((2.0,), provenance={"n_ctx": 1024, "scores": "good"}), 256),
        (300, scales(2, 3, tested=1024), 300),
    ],
)
def test_the_size(asked: int, scaling: LayerScaling | None, n_ctx: int) -> None:
    assert context_size.choose(asked, TRAINED, scaling)[0] == n_ctx


@pytest.mark.parametrize(
    ("n_ctx", "scaling", "says"),
    [
        (256, scales(1, 1, tested=256), ["every scale is 1"]),
        (512, scales(1, 1, tested=512), ["every scale is 1", "nothing stretches"]),
        (256, scales(1, 1.5), ["never judged"]),
        (256, scales(1, 1.5, tested=1024, judged=False), ["never judged"]),
        (512, scales(1, 1.5, tested=512), []),  # it was judged there, whatever theory says
        (1024, scales(1, 1.5, tested=512), ["judged at 512 tokens, the context is 1024", "needs a stretch of 4"]),
        (1024, scales(1, 4.0, tested=512), ["judged at 512"]),
        (512, scales(1, 1, tested=512, method="linear"), []),
        (512, scales(1, 1.5), ["never judged", "needs a stretch of 2, no layer has more than 1.5"]),
        (512, scales(1, 1.5, method="linear"), ["never judged"]),
        (256, scales(2, 2), ["never judged", "stretched by 2 or more, which costs quality within the trained 256"]),
        (512, scales(2, 2), ["never judged"]),
    ],
)
def test_the_warnings(n_ctx: int, scaling: LayerScaling, says: list[str]) -> None:
    warnings = doubts(scaling, TRAINED, n_ctx)
    assert len(warnings) == len(says)
    assert all(text in warning for text, warning in zip(says, warnings, strict=True))


def test_a_context_within_a_plan_of_none() -> None:
    by_length = replace(scales(1, 4, tested=1024), shorter=(ShorterPlan(512, None),))
    assert context_size.choose(0, TRAINED, by_length)[0] == 1024
    (warning,) = doubts(by_length, TRAINED, 512)
    assert "512 tokens runs unscaled: the scales are for more than 512" in warning
    assert doubts(by_length, TRAINED, 1024) == []
    assert "nothing stretches it" in context_size.describe(512, "", TRAINED, by_length)
    assert "stretched by 1 to 4" in context_size.describe(1024, "", TRAINED, by_length)


def test_the_line_in_the_log() -> None:
    assert context_size.describe(256, "why", TRAINED, None) == "256 tokens (why)"
    assert "2 times the 256 the model was trained at: nothing" in context_size.describe(512, "", TRAINED, None)
    stretched = context_size.describe(512, "", TRAINED, scales(1, 1.5, method="linear"))
    assert stretched.endswith("the layers are stretched by 2 to 3")
    assert "stretched by 1.25" in context_size.describe(512, "", TRAINED, scales(1.25, 1.25))
