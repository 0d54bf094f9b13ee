"""llama-server's own endpoints and fields: /completion, /embedding, timings, progress, /slots and its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ..conftest import N_CTX_TRAIN, N_EMBD, TOKEN, Server

PROMPT = "the little dog said to the big sun"


def own(http: httpx.Client, **body: Any) -> Any:
    answer = http.post("/completion", json={"seed": 5, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx.Client, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with http.stream("POST", path, json={"stream": True, **body}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def test_a_text_and_how_it_came_about(http: httpx.Client) -> None:
    answer = own(http, prompt=PROMPT, n_predict=6, return_tokens=True, ignore_eos=True)
    n = len(http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"])
    assert (answer["tokens_predicted"], len(answer["tokens"]), answer["tokens_evaluated"]) == (6, 6, n)
    assert (answer["stop"], answer["stop_type"], answer["prompt"]) == (True, "limit", PROMPT)
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["content"] == answer["content"]
    settings = answer["generation_settings"]
    assert (settings["temperature"], settings["top_k"], settings["min_p"]) == (0.8, 40, 0.05)  # llama-server's
    assert settings["logit_bias"] == [{"token": TOKEN[b"<|end|>"], "bias": None}]
    t = answer["timings"]
    assert t["cache_n"] + t["prompt_n"] == n
    assert t["predicted_per_second"] == pytest.approx(1000 * 5 / t["predicted_ms"])
    stopped = own(http, prompt=PROMPT, n_predict=50, stop=[answer["content"][1]], ignore_eos=True)
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", answer["content"][1])


def test_its_stream_joins_to_the_whole(http: httpx.Client) -> None:
    body = {"prompt": PROMPT, "n_predict": 20, "seed": 3, "ignore_eos": True}
    *parts, last = events(http, "/completion", body)
    whole = own(http, **body, return_tokens=True)
    assert "".join(p["content"] for p in parts) == whole["content"]
    assert [t for p in parts for t in p["tokens"]] == whole["tokens"]
    assert (last["stop"], last["content"], last["tokens_predicted"]) == (True, "", 20)


def test_prompts_in_every_form(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    forms = [PROMPT, tokens, {"prompt_string": PROMPT}, [*tokens[:2], " dog"]]
    answers = own(http, prompt=forms, n_predict=8, temperature=0)
    assert len(answers) == 4
    assert len({a["content"] for a in answers[:3]}) == 1
    assert answers[3]["prompt"] == http.post("/detokenize", json={"tokens": tokens[:2]}).json()["content"] + " dog"
    for wrong in ([], {"prompt_string": 5}, {"multimodal_data": "x", "prompt_string": "a"}, [[True]], ""):
        assert http.post("/completion", json={"prompt": wrong}).status_code == 400


def test_fields_that_are_asked_for(http: httpx.Client) -> None:
    answer = own(http, prompt=PROMPT, n_predict=2, response_fields=["content", "generation_settings/n_predict"])
    assert set(answer) == {"content", "generation_settings/n_predict"}
    assert answer["generation_settings/n_predict"] == 2


def test_probabilities_before_and_after_the_filters(http: httpx.Client) -> None:
    body = {"prompt": PROMPT, "n_predict": 3, "n_probs": 5, "ignore_eos": True}
    before = own(http, **body)["completion_probabilities"]
    assert [len(t["top_logprobs"]) for t in before] == [5, 5, 5]
    assert all(t["id"] >= 0 and t["logprob"] <= 0 for t in before)
    after = own(http, **body, top_k=3, post_sampling_probs=True)["completion_probabilities"]
    for token in after:
        assert sum(t["prob"] for t in token["top_probs"]) == pytest.approx(1)
        assert token["prob"] in [t["prob"] for t in token["top_probs"]]
        assert 1 <= len(token["top_probs"]) <= 3


def test_biases_in_every_form(http: httpx.Client) -> None:
    banned = {" dog": TOKEN[b" dog"], " sun": TOKEN[b" sun"]}
    forms: list[Any] = [
        {str(i): False for i in banned.values()}, dict.fromkeys(banned, -100),
        [[i, False] for i in banned.values()], [[text, False] for text in banned],
    ]  # fmt: skip
    texts = [own(http, prompt=PROMPT, n_predict=40, logit_bias=f, temperature=2)["content"] for f in forms]
    assert not any(text in answer for text in banned for answer in texts)
    favoured = own(http, prompt=PROMPT, n_predict=4, logit_bias={" dog": 100})
    assert favoured["content"] == " dog" * 4


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_progress_and_timings(http: httpx.Client, path: str) -> None:
    words = " ".join(["dog the sun"] * 12) + path
    ask = {"messages": [{"role": "user", "content": words}]} if "chat" in path else {"prompt": words}
    found = list(events(http, path, {**ask, "max_tokens": 4, "return_progress": True, "timings_per_token": True}))
    steps = [e["prompt_progress"] for e in found if "prompt_progress" in e]
    assert steps[0]["processed"] == steps[0]["cache"]
    assert steps[-1]["processed"] == steps[-1]["total"] > 20
    assert next(e for e in found if "prompt_progress" in e)["timings"]["prompt_ms"] == 0
    timed = [e["timings"] for e in found if "timings" in e and "prompt_progress" not in e]
    assert [t["predicted_n"] for t in timed] == sorted(t["predicted_n"] for t in timed)
    assert timed[-1]["predicted_n"] <= 4
    plain = [e for e in events(http, path, {**ask, "max_tokens": 4}) if "timings" in e or "prompt_progress" in e]
    assert len(plain) == 1  # the last one
    assert plain[0]["timings"]["cache_n"] > 20


def test_texts_to_embed_in_every_form(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    parts = {"content": [{"type": "text", "text": PROMPT[:5]}, {"type": "text", "text": PROMPT[5:]}]}
    forms = [PROMPT, tokens, {"prompt_string": PROMPT}, parts]
    data = http.post("/v1/embeddings", json={"input": forms}).json()["data"]
    for d in data[1:]:
        assert np.dot(d["embedding"], data[0]["embedding"]) == pytest.approx(1, abs=1e-4)
    alone = http.post("/embedding", json={"content": PROMPT}).json()
    assert np.dot(alone[0]["embedding"][0], data[0]["embedding"]) == pytest.approx(1, abs=1e-4)
    raw = http.post("/embeddings", json={"input": PROMPT, "embd_normalize": -1}).json()[0]["embedding"][0]
    assert np.allclose(np.array(raw) / np.linalg.norm(raw), alone[0]["embedding"][0], atol=1e-5)
    taxi = http.post("/embeddings", json={"input": PROMPT, "embd_normalize": 1}).json()[0]["embedding"][0]
    assert np.abs(taxi).sum() == pytest.approx(1, abs=1e-4)
    for wrong in ([], {"content": "a"}, {"content": [{"type": "image_url"}]}):
        assert http.post("/v1/embeddings", json={"input": wrong}).status_code == 400


def test_slots_and_metrics_by_llama_servers_names(http: httpx.Client) -> None:
    slots = http.get("/slots").json()
    assert len(slots) == 16
    assert all(s["n_ctx"] == N_CTX_TRAIN and not s["is_processing"] for s in slots)
    own(http, prompt=PROMPT, n_predict=3)
    lines = http.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("llamacpp:"))
    assert float(values["llamacpp:n_decode_total"]) > 0
    assert float(values["llamacpp:n_tokens_max"]) > 3
    assert "# TYPE llamacpp:n_tokens_max counter" in lines
    assert "# TYPE llamacpp:predicted_tokens_seconds gauge" in lines


def test_count_of_a_chats_tokens(http: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "the dog"}]}
    n = http.post("/v1/chat/completions/input_tokens", json=chat).json()["input_tokens"]
    answer = http.post("/v1/chat/completions", json={**chat, "max_tokens": 1, "verbose": True}).json()
    assert answer["usage"]["prompt_tokens"] == n
    assert answer["__verbose"]["prompt"] == "<|user|>the dog<|end|><|assistant|>"


def test_flags_switch_off_and_set_defaults(start: Callable[..., Server], models: dict[str, Path]) -> None:
    server = start(
        "-m", models["plain"], "--no-slots", "--no-metrics", "--no-ui", "--pooling", "none", "--alias", "x,y",
        "--tags", "a,b", "--temp", "0.5", "--top-k", "3", "--seed", "9", "-n", "7", "--samplers", "top_k;temperature",
        "-fa", "off", "-ctk", "f32", "--no-mmap", "--split-mode", "layer", "--main-gpu", "0", "--tensor-split", "1,1",
        "--override-tensor", "ffn_up=CPU", "--cpu-moe",
        env={"LLAMA_ARG_CTX_SIZE": "128", "LLAMA_ARG_N_PARALLEL": "3"},
    ).wait_until_ready()  # fmt: skip
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert [http.get(p).status_code for p in ("/slots", "/metrics", "/")] == [501, 501, 404]
        props = http.get("/props").json()
        assert (props["n_ctx"], props["total_slots"]) == (128, 3)
        params = props["default_generation_settings"]["params"]
        assert (params["temperature"], params["top_k"], params["seed"]) == (0.5, 3, 9)
        assert params["samplers"] == ["top_k", "temperature"]
        card = http.get("/v1/models").json()["data"][0]
        assert (card["id"], card["aliases"], card["tags"]) == ("x", ["x", "y"], ["a", "b"])
        answer = own(http, prompt=PROMPT, ignore_eos=True)
        assert answer["tokens_predicted"] == 7
        again = http.post("/v1/completions", json={"prompt": PROMPT, "ignore_eos": True, "model": "y"}).json()
        assert again["usage"]["completion_tokens"] == 7
        vectors = http.post("/embedding", json={"input": PROMPT}).json()[0]["embedding"]
        assert len(vectors) == answer["tokens_evaluated"]
        assert len(vectors[0]) == N_EMBD
        assert http.post("/v1/embeddings", json={"input": PROMPT}).status_code == 400
