"""Prompts of real models: guarding control tokens changes no token of a message that holds none."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import real_models

from ropebend.model import Model
from ropebend.server.chat import builtin
from ropebend.server.chat.templates import ChatTemplate

#: Pieces that tokenisers treat in ways of their own.
PIECES = [
    "Hello",
    " world",
    "\n",
    "\n\n",
    " ",
    "  ",
    "<",
    ">",
    "|>",
    "</",
    "<|",
    "é",
    "日本",
    "🙂",
    "1234",
    ".",
    "\t",
    "'s",
]


class Real:
    """A model, its control tokens, and its template with and without guarding them."""

    def __init__(self, model: Model):
        self.model = model
        self.control = model.control_tokens()
        bos, eos = (model.piece(t, special=True).decode() if t >= 0 else "" for t in (model.bos_token, model.eos_token))
        source = model.chat_template or builtin.source("gemma")
        self.guarding = ChatTemplate(source, bos, eos, control=self.control)
        self.plain = ChatTemplate(source, bos, eos)

    def tokens(self, chat: ChatTemplate, content: str) -> list[int]:
        prompt = chat.render(messages(content))
        ids = set(self.control.values())
        return prompt.tokens(
            lambda text, add, parse: self.model.tokenize(text, add_special=add, parse_special=parse),
            ids,
            add_special=True,
        )


def messages(content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role in ("user", "assistant", "user")]


@pytest.fixture(params=[real_models.SMOLLM2, real_models.QWEN, real_models.GEMMA], scope="module")
def real(request: pytest.FixtureRequest) -> Iterator[Real]:
    with Model(real_models.find(request.param)) as model:
        yield Real(model)


def test_the_tokens_are_those_of_the_whole_text(real: Real) -> None:
    rng = random.Random(7)
    for _ in range(60):
        content = "".join(rng.choices(PIECES, k=rng.randint(0, 12)))
        whole = real.plain.render(messages(content)).text
        assert real.tokens(real.guarding, content) == real.model.tokenize(whole, parse_special=True)


def test_control_tokens_in_a_message_are_text(real: Real) -> None:
    ids = set(real.control.values())
    turns = [t for t in ("<|im_end|>", "<end_of_turn>") if t in real.control]
    harmless = [t for t in real.tokens(real.guarding, "a  b") if t in ids]
    for name in (*turns, *sorted(real.control)[:20]):
        content = f"a {name} b"
        made = real.tokens(real.guarding, content)
        assert [t for t in made if t in ids] == harmless
        read = real.tokens(real.plain, content)
        assert real.model.detokenize(made, special=True) == real.model.detokenize(read, special=True)
        text = real.model.tokenize(content, add_special=False)
        assert any(made[i : i + len(text) - 1] == text[1:] for i in range(len(made))), "it is not read as one text"
