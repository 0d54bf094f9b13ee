"""`Chats`: how a server makes prompts of chats, as its command line says and the loaded model wants."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ropebend.chat_template import Renderer
from ropebend.errors import RopebendError, UsageError
from ropebend.files import read_text
from ropebend.server.chat import builtin
from ropebend.server.chat.formats import format_of
from ropebend.server.chat.parser import ReasoningFormat
from ropebend.server.chat.templates import ChatTemplate

log = logging.getLogger("ropebend.server")


class ModelFacts(Protocol):
    """What a template needs of a model."""

    @property
    def chat_template(self) -> str | None:
        """Of every chat."""

    @property
    def tool_template(self) -> str | None:
        """Of chats with tools."""

    @property
    def bos(self) -> str:
        """Text of the token that begins a text."""

    @property
    def eos(self) -> str:
        """Text of the token that ends a text."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Texts that the tokeniser can read as control tokens, with their ids."""

    @property
    def user_defined_tokens(self) -> Mapping[str, int]:
        """Texts that the tokeniser always reads as tokens of their own, with their ids."""


class Chats:
    """How chats become prompts.

    source        jinja to use instead of the model's
    name          what that is called in the log
    variables     for the template, beside those that it always gets
    prefill       a last message of the assistant is continued, unless the request says otherwise
    read_control  control tokens written in messages are read as such: a user can then forge messages of others
    reasoning     where the thinking goes, unless the request says otherwise
    """

    def __init__(
        self,
        source: str | None = None,
        name: str = "",
        *,
        variables: Mapping[str, Any] | None = None,
        prefill: bool = True,
        read_control: bool = False,
        reasoning: ReasoningFormat = "auto",
    ):
        self._source = source
        self._name = name
        self.variables = dict(variables or {})
        self.prefill = prefill
        self.read_control = read_control
        self.reasoning: ReasoningFormat = reasoning
        self._lock = threading.Lock()
        self._ready: tuple[ModelFacts, ChatTemplate] | None = None

    def template(self, facts: ModelFacts) -> ChatTemplate:
        """The template for this model.  RopebendError if the one in its file is not valid."""
        with self._lock:
            if self._ready is None or self._ready[0] is not facts:
                own = facts.chat_template or facts.tool_template
                source = self._source or own or builtin.source(builtin.FALLBACK)
                tools = facts.tool_template if self._source is None else None
                template = ChatTemplate(source, facts.bos, facts.eos, tools)
                # older converters gave <|im_start|> and the like this type: then users could forge turns with them
                turns = template.turn_tokens(facts.user_defined_tokens)
                template.guard({**facts.control_tokens, **{text: facts.user_defined_tokens[text] for text in turns}})
                self._ready = facts, template
            return self._ready[1]

    @property
    def has_own(self) -> bool:
        """Whether a template was given beside the model's."""
        return self._source is not None

    def source(self, facts: ModelFacts) -> str:
        """The jinja in use."""
        return self._source or facts.chat_template or facts.tool_template or builtin.source(builtin.FALLBACK)

    def prepare(self, facts: ModelFacts) -> None:
        """Try the template once, and say in the log what is used."""
        try:
            shape = self.template(facts).shape(with_tools=True)
        except RopebendError as e:
            log.warning("%s: chats are refused; see --chat-template", e)
            return
        if self._source is not None:
            origin = self._name
        elif facts.chat_template or facts.tool_template:
            origin = "from the model file"
        else:
            origin = f"none in the model file, {builtin.FALLBACK} instead; see --chat-template"
        tools = "tools are part of it" if shape.tools and shape.calls else "it knows no tools: they are written out"
        format = format_of(self.template(facts).source(with_tools=True)).name
        log.info("chat template: %s; %s; calls are written as %s", origin, tools, format)


def read_template(given: str) -> tuple[str, str]:
    """Jinja and its name, of a file, a built-in template's name, or jinja itself.  UsageError if it is none of them."""
    path = Path(given)
    if "{{" in given or "{%" in given:
        source, name = given, "from the command line"
    elif given in builtin.NAMES:
        source, name = builtin.source(given), given
    elif path.is_file():
        return read_template_file(path)
    else:
        names = ", ".join(builtin.NAMES)
        raise UsageError(f"--chat-template: {given} is neither a file nor one of {names}")
    _check(source, "--chat-template")
    return source, name


def read_template_file(path: Path) -> tuple[str, str]:
    """Jinja and its name, of a file.  FileError if it cannot be read, UsageError if it is not valid."""
    source = read_text(path)
    _check(source, str(path))
    return source, str(path)


def _check(source: str, where: str) -> None:
    if not source.strip():
        raise UsageError(f"{where}: the chat template is empty")
    try:
        Renderer(source)
    except RopebendError as e:
        raise UsageError(f"{where}: {e}") from None


def read_variables(given: str) -> dict[str, Any]:
    """The variables in a JSON object.  UsageError if it is none."""
    try:
        value = json.loads(given)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"--chat-template-kwargs: not JSON: {e}") from None
    if not isinstance(value, dict):
        message = f"--chat-template-kwargs: expected a JSON object like {json.dumps({'enable_thinking': False})}"
        raise UsageError(f"{message}, got {given}")
    return value
