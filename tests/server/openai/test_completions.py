"""/v1/completions and /v1/models with the openai client against a server process."""

import json
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import numpy as np
import openai
import pytest

from ropebend.context import Context
from ropebend.model import Model
from ropebend.server.openai.serving import names_of

from ..conftest import EXACT, N_CTX_TRAIN, N_EMBD, TOKEN, Server, counts, wait_for
from ..exactness import EPSILON, is_equal, margin

PROMPT = "the happy dog and the little sun"


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Model:
    with Model(models["plain"]) as model:
        yield model


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == ("tiny", "model", "ropebend")
    assert card.meta == {
        "n_ctx": N_CTX_TRAIN,
        "n_ctx_train": N_CTX_TRAIN,
        "n_params": 122880,
        "n_vocab": len(TOKEN),
        "n_embd": N_EMBD,
    }
    assert client.models.retrieve("tiny") == card
    with pytest.raises(openai.NotFoundError, match="'a/b' does not exist"):
        client.models.retrieve("a/b")


def test_a_slash_at_the_end_changes_nothing(http: httpx.Client) -> None:
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health(http: httpx.Client, path: str) -> None:
    assert http.get(path).json() == {"status": "ok"}
    assert http.head(path).status_code == 200


def test_a_completion(client: openai.OpenAI, model: Model) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert answer.object == "text_completion"
    assert answer.system_fingerprint == "ropebend-unscaled"
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(model.tokenize(PROMPT))
    assert answer.usage.completion_tokens == 12 == len(model.tokenize(choice.text))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_greedy_text_is_that_of_llama_cpp_python(client: openai.OpenAI, model: Model, models: dict[str, Path]) -> None:
    n = N_CTX_TRAIN - 40
    llama = llama_cpp.Llama(
        str(models["plain"]), n_ctx=N_CTX_TRAIN, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    try:
        theirs = llama.create_completion(PROMPT, max_tokens=n, temperature=0.0)["choices"][0]["text"]
        tokens = llama.input_ids[len(model.tokenize(PROMPT)) : llama.n_tokens].tolist()
        logits = llama.scores[llama.n_tokens - len(tokens) - 1 : llama.n_tokens]
    finally:
        llama.close()
    tokens.append(int(logits[-1].argmax()))  # the last one was not decoded
    assert model.detokenize(tokens) == theirs
    ours = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=n, temperature=0).choices[0].text
    is_equal(ours, model, tokens, [margin(x) for x in logits], EPSILON[False])


def test_max_tokens_is_16_by_default_as_with_openai(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="", prompt=PROMPT, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_text_tokens_and_lists_of_them_are_the_same_prompt(client: openai.OpenAI, model: Model) -> None:
    tokens = model.tokenize(PROMPT)
    texts = []
    for prompt in (PROMPT, tokens, [PROMPT, "dog"], [tokens, model.tokenize("dog")]):
        answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=10)
        assert [c.index for c in answer.choices] == list(range(len(answer.choices)))
        texts.append([c.text for c in answer.choices])
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(tokens) + (3 if len(answer.choices) == 2 else 0)
    assert texts[0] == texts[1] == texts[2][:1]
    assert texts[2] == texts[3]


def test_control_tokens_in_the_prompt_are_recognised(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="<|user|>a<|end|>", max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("stop", [None, "o", ["zz", "happy", "99"]])
def test_streamed_text_joins_to_the_whole(client: openai.OpenAI, temperature: float, stop: str | None) -> None:
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "seed": 5, "temperature": temperature, "stop": stop}
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == []
    assert counts(chunks[-1].usage) == counts(whole.usage)
    assert all(c.usage is None for c in chunks[:-1])
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1


def test_the_wire_format_of_a_stream(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 2, "stream": True, "logit_bias": {str(TOKEN["€".encode()]): 100}}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    assert [c["choices"][0] for c in chunks] == [
        {"index": 0, "text": "€", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "€", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"},
    ]
    assert all("usage" not in c for c in chunks)


def test_a_control_token_may_be_a_stop_string(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
    always = {str(TOKEN[b"<|user|>"]): 100}
    for stop in ("<|user|>", "r|>", ["zz", "<|us"]):
        answer = client.completions.create(**ask, logit_bias=always, stop=stop)
        assert (answer.choices[0].finish_reason, answer.choices[0].text) == ("stop", "")
    free = client.completions.create(**ask, logit_bias=always, stop="<|assistant|>")
    assert (free.choices[0].finish_reason, free.choices[0].text) == ("length", "")


def test_no_tokens_are_asked_for(client: openai.OpenAI, http: httpx.Client) -> None:
    for more in ({"max_tokens": 0}, {"max_completion_tokens": 0}, {"n_predict": 0}):
        body = {"messages": [{"role": "user", "content": "a"}], **more}
        answer = http.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == ""
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 0


def test_one_bos_is_enough(start: Callable[..., Server], models: dict[str, Path]) -> None:
    server = start(models["spm"], *EXACT).wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def tokens(text: str) -> Any:
            return http.post("/tokenize", json={"prompt": text}).json()["tokens"]

        assert tokens("<s> dog") == [1, *tokens(" dog")[1:]]
        assert tokens("<s><s>dog")[:2] == [1, 1]  # the second one is asked for
        for path, body in (("completions", "prompt"), ("embeddings", "input")):
            answer = http.post(f"/v1/{path}", json={body: "<s> dog"}).json()
            assert answer["usage"]["prompt_tokens"] == len(tokens("<s> dog"))
    assert server.stop() == 0


def test_names(start: Callable[..., Server], models: dict[str, Path], http: httpx.Client) -> None:
    def status(http: httpx.Client, name: str) -> tuple[int, str]:
        answer = http.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 1})
        return answer.status_code, answer.json().get("error", {}).get("message", "")

    code, says = status(http, "tiny:base")
    assert code == 404
    assert ":base is there where scales are in effect" in says
    assert "see --alias and --any-model" in status(http, "gpt")[1]
    server = start(models["scaled"], "--alias", "a", "-a", "b", "--any-model").wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=60) as named:
        cards = named.get("/models").json()["data"]
        assert [(m["id"], m["aliases"]) for m in cards] == [("a", ["a", "b"]), ("a:base", ["a", "b"])]
        fingerprints = {}
        for name in ("a", "b", "gpt-4o", "a:base", "gpt-4o:base"):
            answer = named.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 1}).json()
            assert answer["model"] == name
            fingerprints[name] = answer["system_fingerprint"]
    assert fingerprints["a"] == fingerprints["b"] == fingerprints["gpt-4o"] != fingerprints["a:base"]
    assert fingerprints["a:base"] == fingerprints["gpt-4o:base"] == "ropebend-unscaled"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("file", "name"), [("My model Q4.gguf", "My-model-Q4"), ("x-00001-of-00003.gguf", "x"), ("a.b.gguf", "a.b")]
)
def test_the_default_name_is_the_files_in_one_word(file: str, name: str) -> None:
    assert names_of(Path(file)).ids == (name,)


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    free = client.completions.create(**ask)
    stop = free.choices[0].text[20:24]
    stopped = client.completions.create(**ask, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == free.choices[0].text.split(stop)[0]
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens < 60


def test_the_end_token_ends_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, logit_bias={str(TOKEN[b"<|end|>"]): 100}, temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == ""
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_seeds(client: openai.OpenAI) -> None:
    def text(**more: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, **more)
        return [c.text for c in answer.choices]

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(seed=1, n=2) == text(seed=1) + text(seed=2)
    assert text() != text()


def test_several_choices_are_streamed_one_after_another(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": [PROMPT, "dog"], "max_tokens": 8, "n": 2, "seed": 3}
    whole = client.completions.create(**ask)
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [c.text for c in whole.choices]
    assert len(set(texts)) == 4


def test_logprobs_are_those_of_the_model(client: openai.OpenAI, model: Model) -> None:
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0.7, "seed": 1, "logprobs": 3}
    answer = client.completions.create(**ask)
    got = answer.choices[0].logprobs
    assert got is not None
    tokens = model.tokenize(PROMPT)
    with Context(model, n_threads=1, type_k="f32", type_v="f32") as context:
        context.decode(tokens, 0)
        for i, (text, logprob, top) in enumerate(zip(got.tokens, got.token_logprobs, got.top_logprobs, strict=True)):
            logits = context.logits().astype(np.float64)
            expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert logprob == pytest.approx(expected[TOKEN[text.encode()]], abs=1e-5)
            assert list(top.values())[:3] == pytest.approx(sorted(expected)[:-4:-1], abs=1e-5)
            assert text in top
            context.decode([TOKEN[text.encode()]], len(tokens) + i)
    assert "".join(got.tokens) == answer.choices[0].text
    assert got.text_offset == [len("".join(got.tokens[:i])) for i in range(5)]
    # streamed, the same numbers come in parts
    parts = [c.choices[0].logprobs for c in client.completions.create(**ask, stream=True)]
    assert [x for p in parts if p for x in p.token_logprobs] == pytest.approx(got.token_logprobs, abs=1e-4)


def test_logprobs_of_half_a_character_and_of_a_stop_string(client: openai.OpenAI) -> None:
    first, second = (TOKEN[b] for b in (b"\xc3", b"\xa9"))
    bias = {str(first): 100, str(second): 99}
    ask = {"model": "tiny", "prompt": "a", "temperature": 0, "logit_bias": bias, "frequency_penalty": 2}
    answer = client.completions.create(**ask, max_tokens=2, logprobs=0)
    assert answer.choices[0].text == "é" or "\ufffd" in answer.choices[0].text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens[0] == "bytes:\\xc3"
    # the tokens of a stop string are not in the text, so not in the log-probabilities either
    text = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=40).choices[0].text
    cut = client.completions.create(
        model="tiny", prompt=PROMPT, temperature=0, max_tokens=40, logprobs=1, stop=text[25:28]
    ).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.logprobs is not None
    assert "".join(cut.logprobs.tokens).startswith(cut.text)
    assert cut.logprobs.text_offset[-1] < len(cut.text)


def test_a_prompt_may_fill_the_context_to_the_last_token(client: openai.OpenAI) -> None:
    prompt = [TOKEN[b"a"]] * (N_CTX_TRAIN - 3)
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=3, temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens == N_CTX_TRAIN
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="tiny", prompt=prompt, max_tokens=4)
    assert e.value.code == "context_length_exceeded"
    assert e.value.param == "prompt"
    assert f"{N_CTX_TRAIN} tokens" in e.value.message
    assert f"{N_CTX_TRAIN + 1} tokens ({N_CTX_TRAIN - 3} in your prompt; 4 for the completion)" in e.value.message


def test_a_client_that_hangs_up_cancels_its_request(server: Server, http: httpx.Client) -> None:
    before = http.get("/props").json()["requests"]
    # a request of many choices, each of the whole context, would take long
    body = {"prompt": "a", "max_tokens": N_CTX_TRAIN - 1, "n": 128, "logit_bias": {"0": -100}}

    def requests() -> dict[str, int]:
        now: dict[str, int] = http.get("/props").json()["requests"]
        assert (now["failed"], now["done"]) == (before["failed"], before["done"])
        return now

    with httpx.Client(base_url=server.url, timeout=60) as other:
        with other.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            next(answer.iter_text())
        wait_for(lambda: requests()["cancelled"] == before["cancelled"] + 1)
    waiting = HTTPConnection(httpx.URL(server.url).netloc.decode())
    waiting.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    wait_for(lambda: requests()["open"])
    waiting.close()
    wait_for(lambda: requests()["cancelled"] == before["cancelled"] + 2)
    assert requests()["open"] == 0


def test_an_empty_grammar_is_none(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 4, "temperature": 0}
    with_it, without = (http.post("/v1/completions", json={**body, **g}).json() for g in ({"grammar": ""}, {}))
    assert with_it["choices"] == without["choices"]
