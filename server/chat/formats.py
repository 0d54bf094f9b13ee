"""Which models write their calls and thoughts in which way: one row a format.

What an answer may hold is read for every model (`WAYS`): a call is one only if it names a function there is, so that
nothing is lost by looking for more.  The format says what is expected of a model: what is asked of it by force, its
ids, its thinking.  It is found from marks in the chat template, as llama.cpp finds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ropebend.server.chat import channels
from ropebend.server.chat.events import mistral_id, openai_id
from ropebend.server.chat.pythonic import Gemma, Pythonic
from ropebend.server.chat.tagged import Tagged
from ropebend.server.chat.ways import (
    Action,
    Fenced,
    JsonCalls,
    Named,
    Several,
    Way,
    kimi_name,
)

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


@dataclass(frozen=True)
class Format:
    """A row of the table.

    marks     all of these are in the chat template; absent: and none of these
    protocol  reads the whole answer, if it is nothing but messages to recipients
    new_id    makes ids of calls
    calls_end_thinking  a call ends thinking that was not closed
    """

    name: str
    marks: tuple[str, ...]
    absent: tuple[str, ...] = ()
    protocol: channels.Protocol | None = None
    new_id: Callable[[], str] = openai_id
    calls_end_thinking: bool = False

    def fits(self, template: str) -> bool:
        """Whether a model with this chat template writes so."""
        return all(m in template for m in self.marks) and not any(m in template for m in self.absent)


GENERIC = Format("generic", ())

#: The first that fits a chat template is the model's.
FORMATS = (
    Format("harmony", ("<|channel|>", "<|message|>"), protocol=channels.harmony),
    Format("functionary-3.2", (">>>",), protocol=channels.functionary),
    Format("kimi-k2", ("<|tool_calls_section_begin|>",), calls_end_thinking=True),
    Format("deepseek-3.2", ("DSML", "function_calls")),
    Format("deepseek-4", ("DSML", "tool_calls")),
    Format("deepseek-r1", ("<｜tool▁call▁begin｜>", "```json")),
    Format("deepseek-3.1", ("<｜tool▁call▁begin｜>",)),
    Format("mistral-ids", ("[TOOL_CALLS]", "[CALL_ID]"), new_id=mistral_id),
    Format("mistral-args", ("[TOOL_CALLS]", "[ARGS]"), new_id=mistral_id),
    Format("mistral", ("[TOOL_CALLS]",), new_id=mistral_id),
    Format("command-r7b", ("<|START_ACTION|>",)),
    Format("command-r-plus", ("Action:", "tool_name")),
    Format("lfm2", ("<|tool_call_start|>",)),
    Format("lfm2", ("List of tools: [",)),
    Format("glm-4.5", ("<arg_key>",), calls_end_thinking=True),
    Format("seed-oss", ("seed:tool_call",)),
    Format("minimax-m2", ("minimax:tool_call",)),
    Format("qwen3-coder", ("<function=", "<parameter="), calls_end_thinking=True),
    Format("functionary-3.1", ("<function=",)),
    Format("granite", ("<|tool_call|>", "granite")),
    Format("granite", ("<|tool_call|>", "<|start_of_role|>")),
    Format("phi-4-mini", ("<|tool|>",)),
    Format("nemotron-2", ("<TOOLCALL>",)),
    Format("apriel", ("<tool_calls>",)),
    Format("firefunction", ("functools",)),
    Format("gemma-4", ("<|tool_call>call:",)),
    Format("apertus", ("<|tools_prefix|>",)),
    Format("gigachat", ("<|function_call|>",)),
    Format("gigachat", ("<|role_sep|>", "function call")),
    Format("hunyuan", ("tool_calls:opensource",)),
    Format("hunyuan", ("<tool_call", ":opensource")),
    Format("hermes", ("<tool_call>",)),
    Format("llama-3", ("<|python_tag|>",)),
    Format("llama-3", ('"parameters": dictionary of argument name',)),
)


def format_of(template: str | None) -> Format:
    """How a model with this chat template writes calls."""
    return next((f for f in FORMATS if f.fits(template or "")), GENERIC)


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
TOKENS = frozenset(
    text
    for text in (*WAYS, *_literals(tuple(WAYS.values())), *_literals(THINKING), *WRAPPERS, *channels.HARMONY_MARKS)
    if len(text) > 2
)
