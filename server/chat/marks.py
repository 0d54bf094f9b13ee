"""What announces calls and thinking, in any model's answer, and how they are then written.

All of it is read for every model: a call is one only if it names a function there is, so nothing is lost by looking
for more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from ropebend.server.chat import channels
from ropebend.server.chat.arguments import GEMMA_QUOTE
from ropebend.server.chat.pythonic import Gemma, Pythonic
from ropebend.server.chat.tagged import Tagged
from ropebend.server.chat.ways import Action, Fenced, JsonCalls, Named, Several, Way, kimi_name

_QWEN = Tagged(
    before=("<function=",),
    name_end=(">",),
    key="<parameter=",
    key_end=">",
    value_end="</parameter>",
    close=("</function>", "</tool_call>"),
)
_SEED = dataclasses.replace(_QWEN, close=("</function>", "</seed:tool_call>"))
_GLM = Tagged(
    name_end=("<arg_key>", "</tool_call>", "\n"),
    keep=("<arg_key>", "</tool_call>"),
    key="<arg_key>",
    key_end="</arg_key>",
    value="<arg_value>",
    value_end="</arg_value>",
    close=("</tool_call>",),
)
_HUNYUAN = Tagged(
    before=("<tool_call:opensource>",),
    name_end=("<tool_sep:opensource>",),
    key="<arg_key:opensource>",
    key_end="</arg_key:opensource>",
    value="<arg_value:opensource>",
    value_end="</arg_value:opensource>",
    close=("</tool_call:opensource>",),
    again=("<tool_call:opensource>",),
    end=("</tool_calls:opensource>",),
)
_DEEPSEEK = Named(
    before=("<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>"),
    after=("<｜tool▁sep｜>", "\n", "```"),
    lead=("```json", "json"),
    close=("```", "<｜tool▁call▁end｜>"),
    again=("<｜tool▁call▁begin｜>",),
    end=("<｜tool▁calls▁end｜>",),
)
_KIMI = Named(
    before=("<|tool_call_begin|>",),
    after=("<|tool_call_argument_begin|>",),
    close=("<|tool_call_end|>",),
    again=("<|tool_call_begin|>",),
    end=("<|tool_calls_section_end|>",),
    name=kimi_name,
)


def _invoke(tag: str, end: str, typed: bool = False) -> Tagged:
    """``<invoke name="f"><parameter name="x">…``; tag: what stands before these words."""
    return Tagged(
        before=(f'<{tag}invoke name="',),
        name_end=('">',),
        key=f'<{tag}parameter name="',
        key_end='"' if typed else '">',
        typed=typed,
        value_end=f"</{tag}parameter>",
        close=(f"</{tag}invoke>",),
        again=(f'<{tag}invoke name="',),
        end=(end,),
    )


#: What announces calls, and how they are then written.
WAYS: dict[str, Way] = {
    "<tool_call>": Several((JsonCalls(("</tool_call>",)), _QWEN, _GLM)),
    "<function=": Several((Named(after=(">",), close=("</function>",)), _QWEN)),
    "<seed:tool_call>": _SEED,
    "<minimax:tool_call>": _invoke("", "</minimax:tool_call>"),
    "<｜DSML｜function_calls>": _invoke("｜DSML｜", "</｜DSML｜function_calls>", typed=True),
    "<｜DSML｜tool_calls>": _invoke("｜DSML｜", "</｜DSML｜tool_calls>", typed=True),
    "[TOOL_CALLS]": Several(
        (JsonCalls(id_last=True), Named(after=("[ARGS]", "{"), id_mark="[CALL_ID]", again=("[TOOL_CALLS]",)))
    ),
    "<|python_tag|>": Several((JsonCalls(), Pythonic(listed=False))),
    "<|tool_call|>": JsonCalls(("<|/tool_call|>",)),
    "<TOOLCALL>": JsonCalls(("</TOOLCALL>",)),
    "<tool_calls>": JsonCalls(("</tool_calls>",)),
    "functools": JsonCalls(),
    "<|START_ACTION|>": JsonCalls(("<|END_ACTION|>",)),
    "Action:": Action(),
    "<｜tool▁calls▁begin｜>": _DEEPSEEK,
    "<｜tool▁call▁begin｜>": _DEEPSEEK,
    "<|tool_calls_section_begin|>": _KIMI,
    "<|tool_call_begin|>": _KIMI,
    "<|tool_call>": Gemma(),
    "<|tools_prefix|>": JsonCalls(("<|tools_suffix|>",), keyed=True),
    "<|function_call|>": JsonCalls(),
    "function call<|role_sep|>": JsonCalls(),
    "<|message_sep|>\n\nfunction call<|role_sep|>": JsonCalls(),
    "<tool_calls:opensource>": _HUNYUAN,
    "<|tool_call_start|>": Several((Pythonic(close=("<|tool_call_end|>",)), JsonCalls(("<|tool_call_end|>",)))),
    "```": Fenced(),
}

#: Calls without a mark: only at the beginning of an answer.
BARE = Several((JsonCalls(), Pythonic()))

#: What some models put around their answer; none of it belongs to the text.
WRAPPERS = (
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<|CHATBOT_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
)

#: Where thinking begins and ends.
THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)


def _literals(value: object) -> Iterator[str]:
    """The texts in a way's fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _literals(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _literals(getattr(value, field.name))


#: Names of tokens that a model may write calls and thoughts with: these must reach the parser though they may be
#: control tokens, which otherwise are no text.
TOKENS = frozenset({GEMMA_QUOTE}) | frozenset(
    name
    for text in (*WAYS, *_literals(tuple(WAYS.values())), *_literals(THINKING), *WRAPPERS, *channels.HARMONY_MARKS)
    for name in re.findall(r"<[^<>\s]+>|\[/?[A-Z_]+\]", text)
)
