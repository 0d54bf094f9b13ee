"""/v1/chat/completions with the openai client against a server process."""

from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from ropebend.model import Model

from ..conftest import N_CTX_TRAIN, TOKEN, Server, counts

MESSAGES = [{"role": "user", "content": "the dog"}]
PROMPT = "<|user|>the dog<|end|><|assistant|>"


def test_a_chat_is_a_completion_of_the_rendered_template(client: openai.OpenAI, models: dict[str, Path]) -> None:
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=20)
    plain = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=20)
    assert chat.object == "chat.completion"
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.choices[0].finish_reason == "length"
    assert counts(chat.usage) == counts(plain.usage)
    with Model(models["plain"]) as model:
        assert chat.usage is not None
        assert chat.usage.prompt_tokens == len(model.tokenize(PROMPT, parse_special=True))


def test_without_a_limit_the_answer_may_fill_the_context(client: openai.OpenAI) -> None:
    never_ends = {str(TOKEN[b"<|end|>"]): -100}
    for limit in ({}, {"max_tokens": -1}):
        chat = client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, logit_bias=never_ends, **limit
        )
        assert chat.usage is not None
        assert chat.usage.total_tokens == N_CTX_TRAIN
        assert chat.choices[0].finish_reason == "length"
    text = client.completions.create(model="tiny", prompt="a", max_tokens=-1, logit_bias=never_ends)
    assert text.usage is not None
    assert text.usage.total_tokens == N_CTX_TRAIN


def test_seed_minus_one_is_another_one_each_time(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 30, "temperature": 2.0, "seed": -1}
    assert len({client.chat.completions.create(**ask).choices[0].message.content for _ in range(4)}) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_streamed_text_joins_to_the_whole(client: openai.OpenAI, temperature: float) -> None:
    ask = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 30, "seed": 2, "temperature": temperature}
    whole = client.chat.completions.create(**ask, n=2)
    chunks = list(client.chat.completions.create(**ask, n=2, stream=True, stream_options={"include_usage": True}))
    assert [c.choices for c in chunks[-1:]] == [[]]
    assert counts(chunks[-1].usage) == counts(whole.usage)
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert mine[-1].delta.content is None


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=4)
    history = [*MESSAGES, first.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "on"}]}]
    second = client.chat.completions.create(model="tiny", messages=history, temperature=0, max_tokens=4)
    text = first.choices[0].message.content
    prompt = f"<|user|>the dog<|end|><|assistant|>{text}<|end|><|user|>on<|end|><|assistant|>"
    plain = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=4)
    assert second.choices[0].message.content == plain.choices[0].text


def test_logprobs(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    chat = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert "".join(c.token for c in content) == chat.choices[0].message.content
    for c in content:
        assert bytes(c.bytes or []).decode() == c.token
        assert [c.token, c.logprob] == [c.top_logprobs[0].token, c.top_logprobs[0].logprob]
        assert c.top_logprobs[0].logprob >= c.top_logprobs[1].logprob
    plain = client.chat.completions.create(**ask)
    assert plain.choices[0].logprobs is None
    assert plain.choices[0].message.content == chat.choices[0].message.content


def test_a_system_message_that_the_template_refuses_becomes_the_users(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "she"}, *MESSAGES]
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=4)
    prompt = "<|user|>she\n\nthe dog<|end|><|assistant|>"
    plain = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=4)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_what_the_template_refuses_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="as you wish") as e:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "refuse me"}])
    assert e.value.param == "messages"


def test_a_long_chat_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "a" * (N_CTX_TRAIN - 3)}]
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="tiny", messages=long)
    assert (e.value.code, e.value.param) == ("context_length_exceeded", "messages")
    assert f"{N_CTX_TRAIN} tokens" in e.value.message
    assert f"({N_CTX_TRAIN} in your prompt; 1 for the completion)" in e.value.message


def test_a_model_without_a_template_talks_chatml(start: Callable[..., Server], models: dict[str, Path]) -> None:
    server = start(models["no-template"], "--alias", "bare", "--api-key", "secret").wait_until_ready()
    assert "chat template: none in the model file, chatml instead; see --chat-template" in server.log
    with server.client("secret") as client:
        chat = client.chat.completions.create(model="bare", messages=MESSAGES, temperature=0, max_tokens=4)
        prompt = "<|im_start|>user\nthe dog<|im_end|>\n<|im_start|>assistant\n"
        plain = client.completions.create(model="bare", prompt=prompt, temperature=0, max_tokens=4)
        assert chat.choices[0].message.content == plain.choices[0].text
    with server.client("wrong") as client, pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client.models.list()
    assert server.stop() == 0
