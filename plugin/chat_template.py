"""A jinja chat template as it comes with a model, run the way Hugging Face's `apply_chat_template` runs it."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import SandboxedEnvironment

from ropebend.errors import RopebendError

Message = dict[str, Any]

#: `tools` when there are none: what templates expect differs, and some fail on the wrong one.
UNDEFINED = object()


class Refused(RopebendError):
    """The template does not take these messages; the text says why."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the assistant said, for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 has it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The block as a call of `_said`: it has a scope of its own, as with Hugging Face."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which would end up in the prompt
    # default: what `map` gives is no list
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=list
    )


def now() -> datetime.datetime:
    """The time that prompts show."""
    return datetime.datetime.now()


def standard() -> dict[str, Any]:
    """Variables that llama-server gives every template: today's date, and that the model may think."""
    today = now()
    return {"date_string": today.strftime("%d %b %Y"), "datetime": today.strftime("%b %d %Y"), "enable_thinking": True}


def _strftime_now(format: str) -> str:
    return now().strftime(format)


class Renderer:
    """Messages exactly as given in, text out; `templates.ChatTemplate` shapes them before.

    bos, eos: text of the special tokens.
    RopebendError if the template is not valid jinja.
    """

    def __init__(self, source: str, bos: str = "", eos: str = ""):
        self.source = source
        # Sandboxed, because the template came with a downloaded file.  Not the immutable sandbox: some templates append
        # to lists of their own, and what they are given is a copy.
        env = SandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        env.filters["tojson"] = _tojson
        env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, bos_token=bos, eos_token=eos)
        try:
            self._template = env.from_string(source)
            self._wants_functions = "functions" in jinja2.meta.find_undeclared_variables(env.parse(source))
        except jinja2.TemplateError as e:
            raise RopebendError(f"the chat template is not valid: {e}") from None
        except RecursionError:
            raise RopebendError("the chat template is not valid: it is nested too deep") from None

    def render(
        self,
        messages: Sequence[Message],
        tools: Any = None,
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text.  `Refused` if the template raises or fails on these messages.

        tools      a list as OpenAI writes them, None or `UNDEFINED`
        variables  of the template's own, as enable_thinking; they do not replace the messages
        """
        given: dict[str, Any] = {**standard(), **(variables or {}), "messages": messages, "documents": None}
        given["add_generation_prompt"] = add_generation_prompt
        if tools is not UNDEFINED:
            given["tools"] = tools
        if self._wants_functions and "functions" not in given:  # as firefunction has it
            functions = [t["function"] for t in tools] if isinstance(tools, list) else []
            given["functions"] = json.dumps(functions, indent=4, ensure_ascii=False) if functions else ""
        try:
            return self._template.render(copy.deepcopy(given))
        except jinja2.TemplateError as e:
            raise Refused(f"the model's chat template refuses these messages: {e}") from None
        except Exception as e:  # a template is a program; whatever it trips over, these messages made it
            raise Refused(f"the model's chat template failed: {type(e).__name__}: {e}") from None
