"""Where a chat template comes from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ropebend.errors import RopebendError, UsageError
from ropebend.server.chat import builtin
from ropebend.server.chat.chats import Chats, read_template, read_template_file, read_variables

USER = [{"role": "user", "content": "Hi"}]
SHOWS = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"


@dataclass(frozen=True)
class Facts:
    chat_template: str | None = None
    tool_template: str | None = None
    bos: str = "<s>"
    eos: str = "</s>"
    control_tokens: Mapping[str, int] = field(default_factory=lambda: {"<s>": 1, "</s>": 2})
    user_defined_tokens: Mapping[str, int] = field(default_factory=dict)


def test_a_flag_goes_before_the_file_and_the_file_before_chatml() -> None:
    own = Facts("own {{ messages[0].content }}", "tools {{ tools | tojson }}{{ messages[0].content }}")
    tool = {"type": "function", "function": {"name": "f"}}
    assert Chats().template(own).render(USER).text == "own Hi"
    assert Chats().template(own).render(USER, [tool]).text.startswith("tools [")
    assert Chats("flag {{ messages[0].content }}").template(own).render(USER).text == "flag Hi"
    assert Chats().template(Facts()).render(USER).text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert Chats().template(Facts(tool_template=SHOWS)).render(USER).text == "Hi"
    assert Chats().source(Facts(tool_template=SHOWS)) == SHOWS


def test_one_template_is_kept() -> None:
    facts = Facts(SHOWS)
    chats = Chats()
    assert chats.template(facts) is chats.template(facts)


@pytest.mark.parametrize(
    ("chats", "facts", "says"),
    [
        (
            Chats(),
            Facts(),
            "chat template: none in the model file, chatml instead; see --chat-template; it",
        ),
        (Chats(), Facts(SHOWS), "chat template: from the model file; it knows no tools"),
        (Chats(SHOWS, "mine"), Facts(), "chat template: mine; it knows no tools"),
        (Chats(), Facts("{% if %}"), "the chat template is not valid: "),
    ],
)
def test_the_log_says_what_is_used(chats: Chats, facts: Facts, says: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ropebend.server"):
        chats.prepare(facts)
    assert caplog.messages[0].startswith(says)


def test_what_the_flag_may_name(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(SHOWS, encoding="utf-8")
    assert read_template(str(file)) == (SHOWS, str(file))
    assert read_template("llama3") == (builtin.source("llama3"), "llama3")
    assert read_template(SHOWS) == (SHOWS, "from the command line")


@pytest.mark.parametrize("content", ["", " \n", "{% if %}"])
def test_a_file_that_is_no_template(tmp_path: Path, content: str) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"t\.jinja: the chat template is (empty|not valid)"):
        read_template(str(file))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RopebendError, match="No such file"):
        read_template_file(tmp_path / "none.jinja")
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(RopebendError, match="not UTF-8"):
        read_template_file(tmp_path / "latin.jinja")


@pytest.mark.parametrize("given", ["", "{", "[1]", "true", '"a"'])
def test_variables_that_are_no_object(given: str) -> None:
    with pytest.raises(UsageError, match="--chat-template-kwargs: "):
        read_variables(given)


def test_variables() -> None:
    assert read_variables('{"enable_thinking": false, "n": 1}') == {"enable_thinking": False, "n": 1}
