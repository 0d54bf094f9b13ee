"""`ChatTemplate`: a model's chat template, for every conversation that OpenAI's API can hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ropebend.chat_template import Message, Refused, Renderer
from ropebend.errors import RopebendError
from ropebend.server.chat.adapt import REASONING, adapt, text_of
from ropebend.server.chat.control import ControlTokens, Part, Prompt
from ropebend.server.chat.shape import KEY, Shape, probe, probe_tool

Tools = Sequence[dict[str, Any]]

#: What is appended to a message that is to be continued, and found again in the text.  The blank shows whether the
#: template trims.
_HERE = "zqcontinue "


class ChatTemplate:
    """Messages in, prompt out.

    source    jinja, as in a GGUF
    bos, eos  text of the special tokens
    tool_use  another template, for requests with tools (``tokenizer.chat_template.tool_use``)
    control   the control tokens, see `guard`
    """

    def __init__(
        self, source: str, bos: str = "", eos: str = "", tool_use: str | None = None, control: Mapping[str, int] = {}
    ):
        self._default = _Adapting(Renderer(source, bos, eos))
        self._tool_use = _Adapting(Renderer(tool_use, bos, eos)) if tool_use else self._default
        self._read_control = ControlTokens(())
        self.guard(control)

    def guard(self, control: Mapping[str, int]) -> None:
        """Let these tokens, ids by text, stay text where messages hold them; without any they are read as such."""
        self._control = ControlTokens(control)
        self.guarded = frozenset(control.values())

    def turn_tokens(self, texts: Collection[str]) -> set[str]:
        """Of these texts those that the template writes around messages, and that look like a tag."""
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": f"zq{i}text"} for i, role in enumerate(roles)]
        try:
            text = self._default.render(messages, None, None, self._read_control, False).text
        except RopebendError:
            return set()
        # the others are line ends, blanks and words, which a message may write as it likes
        tags = ControlTokens([t for t in texts if not (t[:1].isalnum() or t[:1].isspace())])
        return {text[a:b] for a, b in tags.find(text)}

    def shape(self, with_tools: bool = False) -> Shape:
        """What conversations the template takes."""
        return (self._tool_use if with_tools else self._default).shape

    def source(self, with_tools: bool = False) -> str:
        """The jinja of the template that is used with tools, or without."""
        return (self._tool_use if with_tools else self._default).source

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final: Literal["content", "reasoning_content"] | None = None,
        read_control: bool = False,
    ) -> Prompt:
        """The prompt.  RopebendError if the template refuses these messages however they are put.

        messages        as OpenAI writes them: a content is a string or a list of parts
        variables       of the template's own, as enable_thinking
        continue_final  which text of the last message the answer continues
        read_control    control tokens in messages are read as such
        """
        if not messages:
            raise RopebendError("messages: expected at least one")
        adapting = self._tool_use if tools else self._default
        control = self._read_control if read_control else self._control
        if continue_final is None:
            return adapting.render(messages, tools or None, variables, control, add_generation_prompt)
        last = messages[-1]
        in_parts = continue_final == "content" and isinstance(last.get("content"), list)
        if in_parts and "assistant" not in adapting.shape.parts:  # llama-server joins the parts of this message so
            last = {**last, "content": "\n\n".join(part["text"] for part in last["content"])}
        if last["role"] != "assistant" or last.get("tool_calls") or not text_of(last.get(continue_final)):
            raise RopebendError("the last message cannot be continued: expected a text of the assistant")
        tagged = {**last, continue_final: _tagged(last[continue_final])}
        if continue_final != "content":
            tagged = {**{k: v for k, v in tagged.items() if k not in REASONING}, continue_final: tagged[continue_final]}
        with_tag = [*messages[:-1], tagged]
        prompt = adapting.render(with_tag, tools or None, variables, control, False)
        if _HERE.strip() in prompt.text:
            return _cut(prompt)
        prompt = adapting.render(messages[:-1], tools or None, variables, control, True)
        return Prompt((*prompt.parts, Part(text_of(last[continue_final]), read_control)))


def _tagged(content: Any) -> Any:
    if isinstance(content, list):
        return [*content[:-1], {**content[-1], "text": content[-1]["text"] + _HERE}]
    return content + _HERE


def _cut(prompt: Prompt) -> Prompt:
    """The prompt up to where the answer goes on.  If the template trims, without the blanks there: as Hugging Face."""
    text = prompt.text
    at = text.rindex(_HERE.strip())
    end = at if text.startswith(_HERE, at) else len(text[:at].rstrip())
    parts: list[Part] = []
    for part in prompt.parts:
        parts.append(Part(part.text[:end], part.special, tuple(cut for cut in part.cuts if cut < end)))
        end -= len(parts[-1].text)
    return Prompt(tuple(part for part in parts if part.text))


class _Adapting:
    """One jinja template and the shape of its conversations."""

    def __init__(self, renderer: Renderer):
        self._renderer = renderer
        self.source = renderer.source
        self._kept: dict[Any, bool] = {}

    @functools.cached_property
    def shape(self) -> Shape:
        return probe(self._renderer)

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools | None,
        variables: Mapping[str, Any] | None,
        control: ControlTokens,
        add_generation_prompt: bool,
    ) -> Prompt:
        variables = variables or {}
        if "enable_thinking" in variables:  # some templates call it so
            variables = {"thinking": variables["enable_thinking"], **variables}
        refusal: RopebendError | None = None
        best: Prompt | None = None
        for shape in _ladder(self.shape):

            def write(value: Any, shape: Shape = shape) -> str:
                messages, tools, variables = value
                turns, shown = adapt(messages, tools, shape)
                return self._renderer.render(
                    turns,
                    shape.no_tools if shown is None else shown,
                    add_generation_prompt=add_generation_prompt,
                    variables=variables,
                )

            try:
                prompt = control.render((messages, tools, dict(variables)), write)
            except Refused as e:
                refusal = refusal or e
                continue
            if _all_there(messages, tools, prompt.text) or self._keeps(messages, tools, shape):
                return prompt
            best = best or prompt
        if best is not None:
            return best
        assert refusal is not None
        raise refusal

    def _keeps(self, messages: Sequence[Message], tools: Tools | None, shape: Shape) -> bool:
        """Whether the template shows all that a conversation of this form says, found with words that stand out."""
        key = (shape, bool(tools), tuple(map(_form, messages)))
        if key not in self._kept:
            if len(self._kept) > 500:
                self._kept.clear()
            skeleton = [_skeleton(i, m) for i, m in enumerate(messages)]
            probes = [probe_tool()] if tools else None
            turns, shown = adapt(skeleton, probes, shape)
            try:
                text = self._renderer.render(turns, shape.no_tools if shown is None else shown)
                self._kept[key] = _all_there(skeleton, probes, text)
            except Refused:
                self._kept[key] = False
        return self._kept[key]


def _ladder(shape: Shape) -> Iterator[Shape]:
    """The shape, then others that a template may take which refuses a conversation, or leaves a part of it out."""
    tried: list[Shape] = []
    for change in (
        {},
        {"filled": True},
        {"parallel": False},
        {"repeats": False, "opens": False},
        {"system": "first"},
        {"system": "never"},
        {"system": "never", "repeats": False, "opens": False},
        {"calls": False, "results": False},
        {"calls": False, "results": False, "repeats": False, "opens": False},
        {"calls": False, "results": False, "repeats": False, "opens": False, "system": "never"},
        {"calls": False, "results": False, "repeats": False, "opens": False, "system": "never", "tools": False},
    ):
        if change.get("system") == "first" and shape.system == "never":
            continue
        other = replace(shape, **change)
        if other not in tried:
            tried.append(other)
            yield other


def _all_there(messages: Sequence[Message], tools: Tools | None, text: str) -> bool:
    """Whether all that was said, called and answered stands in the text; thoughts may be left out."""
    return all(_is_in(word, text) for word in _said(messages, tools))


def _said(messages: Sequence[Message], tools: Tools | None) -> Iterator[str]:
    for m in messages:
        content = m.get("content")
        yield from (p.get("text", "") for p in content) if isinstance(content, list) else [content or ""]
        for call in m.get("tool_calls") or ():
            yield call["function"]["name"]
            arguments = call["function"].get("arguments")
            if isinstance(arguments, str):
                try:
                    arguments = json.loads(arguments)
                except (ValueError, RecursionError):
                    yield arguments
                    continue
            for value in arguments.values() if isinstance(arguments, dict) else ():
                if isinstance(value, str):
                    yield value
    yield from (tool["function"]["name"] for tool in tools or ())


def _is_in(said: str, text: str) -> bool:
    said = said.strip()
    return said in text or any(json.dumps(said, ensure_ascii=a)[1:-1] in text for a in (False, True))


def _form(m: Message) -> Any:
    """All of a message but its words."""
    content = m.get("content")
    n = len(content) if isinstance(content, list) else -1 if content else -2
    calls = tuple(bool(c.get("id")) for c in m.get("tool_calls") or ())
    return m["role"], n, calls, bool(m.get("tool_call_id")), any(m.get(key) for key in REASONING)


def _skeleton(i: int, m: Message) -> Message:
    """The message with words of our own; ids are kept."""
    out = {k: v for k, v in m.items() if k in ("role", "tool_call_id", "name")}
    content = m.get("content")
    if isinstance(content, list):
        out["content"] = [{"type": "text", "text": f"zq{i}part{j}x"} for j in range(len(content))]
    elif content is not None:
        out["content"] = f"zq{i}text" if content else ""
    if m.get("tool_calls"):
        out["tool_calls"] = [
            {**c, "function": {"name": f"zq{i}call{j}x", "arguments": {KEY: f"zq{i}value{j}x"}}}
            for j, c in enumerate(m["tool_calls"])
        ]
    if any(m.get(key) for key in REASONING):
        out["reasoning_content"] = f"zq{i}thought"
    return out
