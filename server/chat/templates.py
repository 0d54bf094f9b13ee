"""The model's own chat template: messages in, prompt out."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ropebend.errors import RopebendError
from ropebend.server.chat.tool_calls import describe


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    # jinja2's own filter escapes HTML, which would end up in the prompt
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


class ChatTemplate:
    """A jinja template as it comes in a GGUF, with what Hugging Face's renderer gives templates.

    bos, eos: text of the special tokens.  RopebendError if the template is not valid jinja.
    """

    def __init__(self, source: str, bos: str = "", eos: str = ""):
        # sandboxed: the template came with a downloaded file
        self.knows_tools = "tools" in source
        self._knows_developers = "developer" in source
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        env.filters["tojson"] = _tojson
        env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, bos_token=bos, eos_token=eos)
        try:
            self._template = env.from_string(source)
        except jinja2.TemplateError as e:
            raise RopebendError(f"the model's chat template is not valid: {e}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that asks for the next answer.  RopebendError if the template refuses these messages.

        tools      as OpenAI writes them; a template that knows none gets them described in a message
        variables  of the template's own, as enable_thinking
        """
        if not self._knows_developers:
            messages = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in messages]
        if tools and not self.knows_tools:
            text = describe(tools)
            try:
                return self.render(_with_system(messages, text), None, variables)
            except RopebendError:  # no system messages: the first one is made to begin with it
                first, *rest = messages
                return self.render([{**first, "content": f"{text}\n\n{first['content']}"}, *rest], None, variables)
        try:
            given = {"messages": messages, "add_generation_prompt": True, "tools": tools, "documents": None}
            return self._template.render({**(variables or {}), **given})
        except jinja2.TemplateError as e:
            raise RopebendError(f"the model's chat template refuses these messages: {e}") from None
        except Exception as e:  # a template is a program; whatever it trips over, these messages made it
            raise RopebendError(f"the model's chat template failed: {type(e).__name__}: {e}") from None


def _with_system(messages: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """The messages with `text` at the end of their system message, which is made if there is none."""
    first, *rest = messages
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, first, *rest]
