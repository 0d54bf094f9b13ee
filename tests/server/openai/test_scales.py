"""The scales in the file are in effect without a flag, and shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ropebend.context import Context
from ropebend.model import Model
from ropebend.scaling import LayerScaling, ShorterPlan
from ropebend.scaling.rope_method import RopeMethod

from ..conftest import N_CTX_TRAIN, SCALES, Server, write_model

N_PROMPT, N_NEW = 400, 40  # beyond the trained length


def prompt_of(model: Model) -> list[int]:
    return model.tokenize("the happy dog and a big little sun to play with they said " * 20)[:N_PROMPT]


def direct(path: Path, scaling: LayerScaling | None, n_ctx: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and the first step's logits, from a Context of our own."""
    with Model(path) as model, Context(model, n_ctx=n_ctx, n_threads=1, scaling=scaling) as context:
        prompt = prompt_of(model)
        context.decode(prompt, 0)
        logits = context.logits().tolist()
        tokens: list[int] = []
        while len(tokens) < N_NEW:
            tokens.append(int(context.logits().argmax()))
            context.decode(tokens[-1:], len(prompt) + len(tokens) - 1)
        return tokens, logits


def served(server: Server, path: Path) -> tuple[str, float, dict[str, Any]]:
    """Greedy text, the first log-probability and /props."""
    with Model(path) as model:
        prompt = prompt_of(model)
    body = {"prompt": prompt, "max_tokens": N_NEW, "temperature": 0, "logprobs": 0}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        props = http.get("/props").json()
        hash_ = props["plan_hash"]
        assert answer.json()["system_fingerprint"] == f"ropebend-{hash_ or 'unscaled'}"
        return choice["text"], choice["logprobs"]["token_logprobs"][0], props


def logprob(logits: list[float], token: int) -> float:
    import numpy as np

    x = np.array(logits)
    return float(x[token] - x.max() - np.log(np.exp(x - x.max()).sum()))


def test_the_scales_in_the_file_are_in_effect(start: Callable[..., Server], models: dict[str, Path]) -> None:
    path = models["scaled"]
    scaled = start(path, "--flash-attn", "off").wait_until_ready()
    text, first, props = served(scaled, path)
    assert props["layer_scale"] == list(SCALES)
    assert props["rope"] == {"method": "none", "factor": 1.0, "original_context": None}
    assert (props["n_ctx"], props["n_ctx_train"]) == (1024, N_CTX_TRAIN)  # the file says where they were tested
    assert props["model_path"] == str(path)
    assert props["model"] == "tiny-scaled"
    assert "<|assistant|>" in props["chat_template"]
    assert scaled.stop() == 0
    assert "layer scales: scale 1–3, from the model file" in scaled.log
    assert "1024 tokens (what the scales were tested at), 4 times the 256 the model was trained at" in scaled.log

    plain = start(path, "--no-scaling", "-c", "512", "--flash-attn", "off").wait_until_ready()
    plain_text, plain_first, plain_props = served(plain, path)
    assert plain_props["layer_scale"] is None
    assert plain_props["rope"] is None
    assert plain_props["plan_hash"] is None
    assert plain_props["n_ctx"] == 512
    assert plain.stop() == 0
    assert "layer scales: off (--no-scaling), although the file carries some" in plain.log
    assert "nothing stretches it, expect worse answers there" in plain.log

    assert text != plain_text
    assert abs(first - plain_first) > 1e-3
    tokens, logits = direct(path, LayerScaling(SCALES, "llama"), 1024)
    with Model(path) as model:
        assert text == model.detokenize(tokens)
    assert first == pytest.approx(logprob(logits, tokens[0]), abs=1e-5)
    plain_tokens, plain_logits = direct(path, None, 512)
    assert plain_first == pytest.approx(logprob(plain_logits, plain_tokens[0]), abs=1e-5)


def test_the_fingerprint_is_that_of_the_requests_own_plan(start: Callable[..., Server], tmp_path: Path) -> None:
    scaling = LayerScaling(SCALES, "llama", RopeMethod("dynamic-ntk", 2.0, N_CTX_TRAIN))
    server = start(write_model(tmp_path / "ntk.gguf", scaling), "-c", "1024").wait_until_ready()
    short, long = [40] * 3, [40] * 500
    hashes = [scaling.plan(len(p) + 1).hash for p in (short, long)]
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def fingerprint(prompt: Any, model: str = "ntk") -> str:
            body = {"model": model, "prompt": prompt, "max_tokens": 1}
            return str(http.post("/v1/completions", json=body).json()["system_fingerprint"])

        assert fingerprint(short) == f"ropebend-{hashes[0]}"
        assert fingerprint(long) == f"ropebend-{hashes[1]}"
        assert fingerprint([short, long, short]) == "ropebend-" + "-".join(sorted(hashes))
        assert fingerprint(short, "ntk:base") == "ropebend-unscaled"
        assert http.get("/props").json()["plan_hash"] == scaling.plan(1024).hash not in hashes
    assert server.stop() == 0


def test_factors_replace_the_scales_in_the_file(
    start: Callable[..., Server], models: dict[str, Path], tmp_path: Path
) -> None:
    factors = tmp_path / "factors.json"
    scaling = LayerScaling((2.0, 1.25, 1.0), "llama")
    factors.write_text(json.dumps(scaling.to_json()))
    env = {"ROPEBEND_FACTORS": str(factors), "ROPEBEND_CTX_SIZE": "512", "ROPEBEND_FLASH_ATTN": "0"}
    server = start(models["scaled"], env=env)
    text, first, props = served(server.wait_until_ready(), models["scaled"])
    assert props["layer_scale"] == [2.0, 1.25, 1.0]
    assert server.stop() == 0
    assert f"from {factors}" in server.log
    tokens, logits = direct(models["scaled"], scaling, 512)
    with Model(models["scaled"]) as model:
        assert text == model.detokenize(tokens)
    assert first == pytest.approx(logprob(logits, tokens[0]), abs=1e-5)


def test_a_plain_stretch_needs_no_file(start: Callable[..., Server], models: dict[str, Path]) -> None:
    flags = ("--method", "yarn", "--factor", "2", "-c", "512", "--flash-attn", "off")
    server = start(models["scaled"], *flags)
    _, first, props = served(server.wait_until_ready(), models["scaled"])
    assert server.stop() == 0
    scaling = LayerScaling((1.0,) * 3, "llama", RopeMethod("yarn", 2.0))  # the file's own are not in it
    assert (props["layer_scale"], props["rope"]["method"]) == ([1.0] * 3, "yarn")
    assert "from --method yarn --factor 2" in server.log
    assert "never judged" in server.log
    tokens, logits = direct(models["scaled"], scaling, 512)
    assert first == pytest.approx(logprob(logits, tokens[0]), abs=1e-5)


def test_plans_by_length_over_http(start: Callable[..., Server], tmp_path: Path) -> None:
    """A chat that names no bound stays under the plan of its prompt; one beyond takes the next."""
    value = LayerScaling(SCALES, "llama", shorter=(ShorterPlan(128, None),), up_to=512)
    server = start(write_model(tmp_path / "plans.gguf", value), "-c", "512").wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        plans = http.get("/props").json()["plans"]
        plan = value.plan(512)
        assert plan is not None
        assert [(p["up_to"], p["hash"]) for p in plans] == [(128, None), (512, plan.hash)]
        assert plans[0]["layer_scale"] is None
        assert plans[1]["layer_scale"] == list(value.layer_scale)
        seen = []
        for words, more in (("dog", {}), ("dog " * 150, {"max_tokens": 4}), ("dog", {"max_tokens": 300})):
            body = {
                "messages": [{"role": "user", "content": words}],
                "temperature": 0,
                "logit_bias": {"0": -100},
                **more,
            }
            answer = http.post("/v1/chat/completions", json=body).json()
            seen.append((answer["system_fingerprint"], answer["usage"]["total_tokens"]))
    scaled = f"ropebend-{plan.hash}"
    assert [s for s, _ in seen] == ["ropebend-unscaled", scaled, scaled]
    assert seen[0][1] <= 128
