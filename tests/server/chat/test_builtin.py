"""The built-in templates write what llama.cpp's built-in ones write."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as lib
import pytest

from ropebend.errors import UsageError
from ropebend.server.chat import builtin
from ropebend.server.chat.templates import ChatTemplate


def llamas_names() -> set[str]:
    n = lib.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * n)()
    lib.llama_chat_builtin_templates(names, n)
    return {name.decode() for name in names if name}


def llamas_prompt(name: str, chat: list[tuple[str, str]]) -> str:
    messages = (lib.llama_chat_message * len(chat))()
    for i, (role, content) in enumerate(chat):
        messages[i].role, messages[i].content = role.encode(), content.encode()
    buffer = ctypes.create_string_buffer(10_000)
    n = lib.llama_chat_apply_template(name.encode(), messages, len(chat), True, buffer, len(buffer))
    assert 0 < n < len(buffer)
    return buffer.raw[:n].decode()


def test_the_names_are_llama_cpps() -> None:
    assert llamas_names() <= set(builtin.NAMES)


@pytest.mark.parametrize("name", sorted(builtin.NAMES))
def test_prompts_are_llama_cpps(name: str) -> None:
    if name not in llamas_names():
        pytest.skip("this llama.cpp has no such template")
    template = ChatTemplate(builtin.source(name))
    turns = [("user", "Hi {} | é"), ("assistant", "Yes?"), ("user", "What's this?")]
    for chat in (turns[:1], turns, [("system", "Be kind."), *turns]):
        if name == "yandex" and chat[0][0] == "system":
            continue  # llama.cpp drops it
        given = [{"role": role, "content": content} for role, content in chat]
        assert template.render(given).text == llamas_prompt(name, chat)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"no chat template is called 'chat'; there are bailing, .*zephyr"):
        builtin.source("chat")
