"""Which models write their calls in which way: one row a format.

The format says what is expected of a model: how calls are written that are demanded, their ids, and whether the whole
answer has a form of its own.  It is found from marks in the chat template, as llama.cpp finds it: the first row that
fits.  How calls are read stands in `marks.WAYS`, for all models alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ropebend.server.chat import channels
from ropebend.server.chat.demanded import Layout, Tags
from ropebend.server.chat.events import mistral_id, openai_id
from ropebend.server.chat.marks import THINKING
from ropebend.server.structured.parts import Regex

_NINE = Regex("[a-zA-Z0-9]{9}")
_JSON = ('{"name": "{name}", "arguments": ',)

#: Where nothing is known of how a model writes calls: as the server tells it to, where its template knows no tools.
_PLAIN = Layout(_JSON, ("}",), between="\n")


def _marked(mark: str, end: str) -> Layout:
    """A list of calls between marks."""
    return Layout(_JSON, ("}",), begin=f"{mark}[", between=", ", end=f"]{end}")


def _invoked(tag: str, begin: str, end: str, types: tuple[str, str] = ("", "")) -> Layout:
    parameter = Tags(f'<{tag}parameter name="{{key}}"' + ("" if types[0] else ">"), f"</{tag}parameter>\n", types)
    return Layout((f'<{tag}invoke name="{{name}}">\n',), (f"</{tag}invoke>\n",), begin=begin, end=end, tags=parameter)


_SEPARATOR = "<｜tool▁sep｜>"
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


@dataclass(frozen=True)
class Format:
    """A row of the table.

    marks     all of these are in the chat template
    layout    how calls are written where they are demanded
    protocol  reads the whole answer, if it is nothing but messages to recipients
    new_id    makes ids of calls
    wrapped   the answer's text stands in tags (`WRAPPERS`)
    calls_end_thinking  a call ends thinking that was not closed
    """

    name: str
    marks: tuple[str, ...]
    layout: Layout
    protocol: channels.Protocol | None = None
    new_id: Callable[[], str] = openai_id
    wrapped: bool = False
    calls_end_thinking: bool = False

    def fits(self, template: str) -> bool:
        """Whether a model with this chat template writes so."""
        return all(m in template for m in self.marks)


GENERIC = Format("generic", (), _PLAIN)

#: The first that fits a chat template is the model's.
FORMATS = (
    Format(
        "harmony",
        ("<|channel|>", "<|message|>"),
        Layout(
            ("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",),
            between="<|call|><|start|>assistant",
            thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
            answer=("<|channel|>final <|constrain|>json<|message|>", ""),
        ),
        protocol=channels.harmony,
    ),
    Format(
        "functionary-3.2",
        (">>>",),
        Layout(("{name}\n",), between=">>>", answer=("all\n", "")),
        protocol=channels.functionary,
    ),
    Format(
        "kimi-k2",
        ("<|tool_calls_section_begin|>",),
        Layout(
            ("<|tool_call_begin|>functions.{name}:", Regex("[0-9]{1,3}"), "<|tool_call_argument_begin|>"),
            ("<|tool_call_end|>",),
            begin="<|tool_calls_section_begin|>",
            end="<|tool_calls_section_end|>",
        ),
        calls_end_thinking=True,
    ),
    *(
        Format(
            name,
            ("DSML", word),
            _invoked("｜DSML｜", f"<｜DSML｜{word}>\n", f"</｜DSML｜{word}>", (' string="true">', ' string="false">')),
        )
        for name, word in (("deepseek-3.2", "function_calls"), ("deepseek-4", "tool_calls"))
    ),
    Format(
        "deepseek-r1",
        ("<｜tool▁call▁begin｜>", "```json"),
        Layout(
            (f"<｜tool▁call▁begin｜>function{_SEPARATOR}{{name}}\n```json\n",),
            ("\n```<｜tool▁call▁end｜>",),
            between="\n",
            begin=_CALLS_BEGIN,
            end=_CALLS_END,
        ),
    ),
    Format(
        "deepseek-3.1",
        ("<｜tool▁call▁begin｜>",),
        Layout(
            (f"<｜tool▁call▁begin｜>{{name}}{_SEPARATOR}",),
            ("<｜tool▁call▁end｜>",),
            begin=_CALLS_BEGIN,
            end=_CALLS_END,
        ),
    ),
    Format(
        "mistral-ids",
        ("[TOOL_CALLS]", "[CALL_ID]"),
        Layout(("[TOOL_CALLS]{name}[CALL_ID]", _NINE, "[ARGS]")),
        new_id=mistral_id,
    ),
    Format("mistral-args", ("[TOOL_CALLS]", "[ARGS]"), Layout(("[TOOL_CALLS]{name}[ARGS]",)), new_id=mistral_id),
    Format(
        "mistral",
        ("[TOOL_CALLS]",),
        Layout(_JSON, (', "id": "', _NINE, '"}'), begin="[TOOL_CALLS][", between=", ", end="]"),
        new_id=mistral_id,
    ),
    Format(
        "command-r7b",
        ("<|START_ACTION|>",),
        Layout(
            ('{"tool_call_id": "', Regex("[0-9]{1,2}"), '", "tool_name": "{name}", "parameters": '),
            ("}",),
            begin="<|START_ACTION|>[\n    ",
            between=",\n    ",
            end="\n]<|END_ACTION|>",
        ),
        wrapped=True,
    ),
    Format(
        "command-r-plus",
        ("Action:", "tool_name"),
        Layout(
            ('    {\n        "tool_name": "{name}",\n        "parameters": ',),
            ("\n    }",),
            begin="Action: ```json\n[\n",
            between=",\n",
            end="\n]```",
        ),
        wrapped=True,
    ),
    *(
        Format("lfm2", (mark,), _marked("<|tool_call_start|>", "<|tool_call_end|>"))
        for mark in ("<|tool_call_start|>", "List of tools: [")
    ),
    Format(
        "glm-4.5",
        ("<arg_key>",),
        Layout(
            ("<tool_call>{name}\n",),
            ("</tool_call>",),
            between="\n",
            tags=Tags("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"),
        ),
        calls_end_thinking=True,
    ),
    Format(
        "seed-oss",
        ("seed:tool_call",),
        Layout(
            ("<seed:tool_call>\n<function={name}>\n",),
            ("</function>\n</seed:tool_call>",),
            between="\n",
            tags=Tags("<parameter={key}>", "</parameter>\n"),
        ),
    ),
    Format("minimax-m2", ("minimax:tool_call",), _invoked("", "<minimax:tool_call>\n", "</minimax:tool_call>")),
    Format(
        "qwen3-coder",
        ("<function=", "<parameter="),
        Layout(
            ("<tool_call>\n<function={name}>\n",),
            ("</function>\n</tool_call>",),
            between="\n",
            tags=Tags("<parameter={key}>\n", "\n</parameter>\n"),
        ),
        calls_end_thinking=True,
    ),
    Format("functionary-3.1", ("<function=",), Layout(("<function={name}>",), ("</function>",))),
    Format("granite", ("<|tool_call|>",), _marked("<|tool_call|>", "")),
    Format("phi-4-mini", ("<|tool|>",), _marked("<|tool_call|>", "<|/tool_call|>")),
    Format("nemotron-2", ("<TOOLCALL>",), _marked("<TOOLCALL>", "</TOOLCALL>")),
    Format("apriel", ("<tool_calls>",), _marked("<tool_calls>", "</tool_calls>")),
    Format("firefunction", ("functools",), _marked(" functools", "")),
    Format("gemma-4", ("<|tool_call>call:",), _PLAIN),
    Format(
        "apertus",
        ("<|tools_prefix|>",),
        Layout(('{"{name}": ',), ("}",), begin="<|tools_prefix|>[", between=", ", end="]<|tools_suffix|>"),
    ),
    Format("gigachat", ("<|function_call|>",), Layout(('<|function_call|>{"name": "{name}", "arguments": ',), ("}",))),
    Format(
        "gigachat",
        ("<|role_sep|>", "function call"),
        Layout(('<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "{name}", "arguments": ',), ("}",)),
    ),
    *(
        Format(
            "hunyuan",
            marks,
            Layout(
                ("<tool_call:opensource>{name}<tool_sep:opensource>\n",),
                ("</tool_call:opensource>\n",),
                begin="<tool_calls:opensource>\n",
                end="</tool_calls:opensource>",
                tags=Tags(
                    "<arg_key:opensource>{key}</arg_key:opensource>\n<arg_value:opensource>",
                    "</arg_value:opensource>\n",
                ),
            ),
        )
        for marks in (("tool_calls:opensource",), ("<tool_call", ":opensource"))
    ),
    Format(
        "hermes",
        ("<tool_call>",),
        Layout(('<tool_call>\n{"name": "{name}", "arguments": ',), ("}\n</tool_call>",), between="\n"),
    ),
    *(
        Format("llama-3", (mark,), Layout(('{"name": "{name}", "parameters": ',), ("}",), between="; "))
        for mark in ("<|python_tag|>", '"parameters": dictionary of argument name')
    ),
)


def thinking_of(template: str | None) -> tuple[str, str] | None:
    """The tags around thinking that a chat template has; None if it has none."""
    return next((tags for tags in THINKING if all(tag in (template or "") for tag in tags)), None)


def format_of(template: str | None) -> Format:
    """How a model with this chat template writes calls."""
    return next((f for f in FORMATS if f.fits(template or "")), GENERIC)
