"""Echo, embeddings, tokens, metrics, pages and what guards them, over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import numpy as np
import openai
import pytest
from random_models import write_llama

from ropebend.model import Model

from ..conftest import N_CTX_TRAIN, N_EMBD, TOKEN, Server, ask

PROMPT = "the happy dog and the little sun was on the big tree"


def test_echoed_logprobs_are_those_of_llama_cpp_python(client: openai.OpenAI, models: dict[str, Path]) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2, echo=True
    ).choices[0]
    assert answer.logprobs is not None
    assert answer.text.startswith(PROMPT)
    assert "".join(answer.logprobs.tokens or []) == answer.text
    offsets = answer.logprobs.text_offset or []
    assert [answer.text[o:][: len(t)] for o, t in zip(offsets, answer.logprobs.tokens or [], strict=True)] == (
        answer.logprobs.tokens
    )
    llama = llama_cpp.Llama(
        str(models["plain"]), logits_all=True, n_ctx=N_CTX_TRAIN, n_threads=1, type_k=0, type_v=0, verbose=False
    )
    try:
        tokens = llama.tokenize(PROMPT.encode(), add_bos=True, special=True)
        llama.eval(tokens)
        logits = np.array(llama.scores[: len(tokens)], np.float64)
    finally:
        llama.close()
    logprobs = logits - logits.max(1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
    expected = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
    got = answer.logprobs.token_logprobs or []
    assert got[0] is None
    assert got[1 : len(tokens)] == pytest.approx(list(expected), abs=1e-4)
    assert len(got) == len(tokens) + 3
    top = (answer.logprobs.top_logprobs or [])[1]
    assert max(top.values()) == pytest.approx(logprobs[0].max(), abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_without_new_tokens(client: openai.OpenAI, stream: bool) -> None:
    ask: dict[str, Any] = {"model": "tiny", "prompt": [PROMPT, "a dog"], "max_tokens": 0, "logprobs": 0, "echo": True}
    texts, n_logprobs, reasons = ["", ""], [0, 0], [None, None]
    for part in client.completions.create(**ask, stream=True) if stream else [client.completions.create(**ask)]:
        for c in part.choices:
            texts[c.index] += c.text
            n_logprobs[c.index] += len(c.logprobs.token_logprobs or []) if c.logprobs else 0
            reasons[c.index] = c.finish_reason or reasons[c.index]
    assert texts == [PROMPT, "a dog"]
    assert reasons == ["length", "length"]
    assert n_logprobs[1] == 2


def test_an_echo_has_the_control_tokens_of_the_prompt(client: openai.OpenAI) -> None:
    prompt = "<|user|>né dog<|end|><|assistant|>"
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, logprobs=0, echo=True).choices[0]
    assert answer.text.startswith(prompt)
    assert answer.logprobs is not None
    tokens, offsets = answer.logprobs.tokens or [], answer.logprobs.text_offset or []
    assert [prompt[o:][: len(t)] for o, t in zip(offsets[:-1], tokens[:-1], strict=True)] == tokens[:-1]
    assert offsets[-1] == len(prompt)


def test_echo_without_logprobs_and_of_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="the dog", max_tokens=2, n=2, seed=1, echo=True)
    assert all(c.text.startswith("the dog") for c in answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_cached_tokens_are_reported(client: openai.OpenAI) -> None:
    prompt = "big trees and little dogs said it to the sun " * 3
    usages = [
        client.completions.create(model="tiny", prompt=prompt + end, max_tokens=1, n=2, seed=1).usage for end in "xy"
    ]
    assert all(u is not None and u.prompt_tokens_details is not None for u in usages)
    cached = [u.prompt_tokens_details.cached_tokens for u in usages]  # type: ignore[union-attr]
    assert cached[0] == 0
    assert cached[1] == usages[1].prompt_tokens - 1  # type: ignore[union-attr]


def test_embeddings(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="tiny", input=PROMPT)  # the client asks for base64
    many = client.embeddings.create(model="tiny", input=[PROMPT, "a dog"], encoding_format="float")
    assert [d.index for d in many.data] == [0, 1]
    assert len(one.data[0].embedding) == N_EMBD
    assert np.dot(one.data[0].embedding, many.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert np.dot(one.data[0].embedding, many.data[1].embedding) < 0.99
    assert many.usage.prompt_tokens == many.usage.total_tokens == one.usage.prompt_tokens + 2  # a, " dog"
    with pytest.raises(openai.BadRequestError) as e:
        client.embeddings.create(model="tiny", input=[1] * (N_CTX_TRAIN + 1))
    assert (e.value.code, e.value.param) == ("context_length_exceeded", "input")


def test_embeddings_are_pooled_as_the_file_says_or_the_option(start: Callable[..., Server], tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf", fields={"llama.pooling_type": int(llama_cpp.LLAMA_POOLING_TYPE_LAST)})
    vectors = []
    for options in ((), ("--pooling", "last"), ("--pooling", "cls")):
        server = start(model, *options).wait_until_ready()
        with server.client() as client:
            vectors.append(client.embeddings.create(model="m", input="a dog").data[0].embedding)
        server.stop()
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)
    assert vectors[0] != pytest.approx(vectors[2], abs=0.01)


def test_tokens_in_both_dialects(http: httpx.Client, models: dict[str, Path]) -> None:
    text = "<|user|>né the dog\xe9"
    with Model(models["plain"]) as model:
        tokens = model.tokenize(text, parse_special=True)
    llama = http.post("/tokenize", json={"content": text, "add_special": True}).json()
    vllm = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert llama["tokens"] == vllm["tokens"] == tokens
    assert (vllm["count"], vllm["max_model_len"]) == (len(tokens), N_CTX_TRAIN)
    assert "".join(vllm["token_strs"][:-2]) == text[:-1]
    pieces = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert pieces[0] == {"id": TOKEN[b"<|user|>"], "piece": "<|user|>"}
    assert pieces[-1] == {"id": TOKEN[b"\xa9"], "piece": [0xA9]}
    back = http.post("/detokenize", json={"tokens": tokens}).json()
    assert back == {"content": text, "prompt": text}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    rendered = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["content"]
    assert rendered == "<|user|>a<|end|><|assistant|>"
    for path, body, param in (
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "content"),
        ("/detokenize", {"tokens": [len(TOKEN)]}, "tokens"),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


def test_tokenizer_info(http: httpx.Client) -> None:
    info = http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|end|>"
    assert info["vocab_size"] == len(TOKEN)
    assert "<|assistant|>" in info["chat_template"]


def test_metrics_count_what_was_asked(http: httpx.Client, client: openai.OpenAI) -> None:
    def read() -> dict[str, float]:
        text = http.get("/metrics").text
        return {k: float(v) for k, v in re.findall(r"^ropebend:(\S+) (\S+)$", text, re.M)}

    before = read()
    prompt = "counted once, play and happy"
    usages = [client.completions.create(model="tiny", prompt=prompt, max_tokens=7, seed=1).usage for _ in range(2)]
    after = read()
    grown = {k: after[k] - before[k] for k in after}
    assert grown['requests_total{end="done"}'] == 2
    assert grown["tokens_predicted_total"] == sum(u.completion_tokens for u in usages if u)
    asked = sum(u.prompt_tokens for u in usages if u)
    assert grown["prompt_tokens_total"] + grown["prompt_tokens_cached_total"] == asked
    assert grown["prompt_tokens_cached_total"] >= usages[1].prompt_tokens - 1  # type: ignore[union-attr]
    assert grown["step_seconds_total"] >= grown["decode_seconds_total"] > 0
    assert after["kv_cells"] == N_CTX_TRAIN


def test_slots(start: Callable[..., Server], models: dict[str, Path]) -> None:
    """So many long texts that the request is still under way when its slots are looked at."""
    server = start(models["plain"], "-c", "8192").wait_until_ready()
    body = {"prompt": "a", "max_tokens": 8000, "logit_bias": {"0": -100}, "stream": True, "n": 64}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).raise_for_status()
        with http.stream("POST", "/v1/completions", json=body) as answer:
            text = answer.iter_text()  # httpx closes the connection with it
            next(text)
            slots = http.get("/status").json()
        assert slots["n_slots"] == 16
        assert slots["slots"][0]["n_prompt"] == 1
        assert slots["slots"][0]["id"] == 1  # the second text: an id stays when others end
        assert 0 < slots["kv"]["n_used"] <= slots["kv"]["n_cells"] == 8192


def test_base_is_the_model_without_its_scales(start: Callable[..., Server], models: dict[str, Path]) -> None:
    server = start(models["scaled"], "-c", "600", "--alias", "m").wait_until_ready()
    plain = start(models["scaled"], "-c", "600", "--alias", "m", "--no-scaling").wait_until_ready()
    prompt = PROMPT * 8
    with server.client() as client, plain.client() as other:
        assert [m.id for m in client.models.list().data] == ["m", "m:base"]
        assert [m.id for m in other.models.list().data] == ["m"]

        def first(c: openai.OpenAI, model: str) -> Any:
            return c.completions.create(model=model, prompt=prompt, max_tokens=1, temperature=0, logprobs=0)

        scaled, base, unscaled = first(client, "m"), first(client, "m:base"), first(other, "m")
        assert (base.model, base.system_fingerprint) == ("m:base", "ropebend-unscaled")
        assert scaled.system_fingerprint != "ropebend-unscaled"
        values = [a.choices[0].logprobs.token_logprobs[0] for a in (scaled, base, unscaled)]
        assert values[1] == pytest.approx(values[2], abs=1e-3)
        assert abs(values[0] - values[1]) > 0.01
        with pytest.raises(openai.NotFoundError, match="'m' and 'm:base'"):
            first(client, "m:other")
        with pytest.raises(openai.NotFoundError):
            first(other, "m:base")
    assert server.stop() == plain.stop() == 0


# ---- pages and guards, without sockets


def test_the_pages_load_nothing_from_elsewhere() -> None:
    for path in ("/", "/docs"):
        page = ask("GET", path)
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)
    document = ask("GET", "/openapi.json").json()
    docs = ask("GET", "/docs").text
    assert all(path in docs for path in document["paths"])
    assert "repeat_penalty" in docs


def test_the_page_needs_no_key_but_the_rest_does() -> None:
    assert ask("GET", "/", api_keys=("k",)).status_code == 200
    assert ask("GET", "/slots", api_keys=("k",)).status_code == 401
    assert ask("GET", "/docs", api_keys=("k",)).status_code == 401


def test_other_origins_are_let_in_only_if_asked_for() -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed = ask("OPTIONS", "/v1/completions", headers=preflight)
    assert "access-control-allow-origin" not in closed.headers
    opened = ask("OPTIONS", "/v1/completions", headers=preflight, cors_origins=["https://a.example"], api_keys=("k",))
    assert opened.status_code == 200
    assert opened.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_that_are_too_large_are_refused(declared: bool) -> None:
    body = json.dumps({"prompt": "a" * 2000}).encode()

    async def parts() -> Any:
        yield body[:1000]
        yield body[1000:]

    content = body if declared else parts()
    answer = ask(
        "POST", "/v1/completions", headers={"Content-Type": "application/json"}, content=content, max_body=1500
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_keys_from_a_file(start: Callable[..., Server], models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst\n\n second \n")
    server = start(models["plain"], "--api-key", "third ", "--api-key-file", path).wait_until_ready()
    for key, status in (("first", 200), ("second", 200), ("third", 200), ("# ours", 401)):
        answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert server.stop() == 0
    path.write_text("# nothing\n")
    empty = start(models["plain"], "--api-key-file", path)
    assert empty.wait() == 1
    assert "expected an API key on each line, got none" in empty.log
