"""From messages as OpenAI writes them to messages that one chat template takes; nothing that was said is left out."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
from collections.abc import Sequence
from typing import Any

from ropebend.chat_template import Message
from ropebend.server.chat import written
from ropebend.server.chat.shape import ABSENT, ROLES, Shape

#: What a message that was thought, not said, is called: by OpenAI's compatible servers, by gpt-oss, by OpenRouter.
REASONING = ("reasoning_content", "thinking", "reasoning")

_NINE = re.compile(r"[A-Za-z0-9]{9}")
_NAMED = re.compile(r"functions\.[^:]+:\d+")


def adapt(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, shape: Shape
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Messages and tools in this shape.  What is passed is not changed.

    tools: None or an empty list if there are none
    """
    turns = [_plain(m, shape) for m in messages]
    _link(turns, shape)
    turns = _ordered(turns)
    given = [_filled(tool) for tool in tools or []] if shape.filled else list(tools or [])
    if given and not shape.tools:
        turns = _with_system(turns, written.describe(given, shape))
        given = []
    if not shape.calls:
        turns = [written.write_out(turn, text_of, shape) for turn in turns]
    else:
        if not shape.parallel:
            turns = _one_call_a_message(turns)
        turns = [t for turn in turns for t in _calling(turn, shape)]
    if shape.system != "anywhere":
        turns = _systems(turns, shape.system == "first")
    if not shape.repeats:
        turns = _alternating(turns, shape.beside)
    if not shape.opens:
        turns = _opened(turns)
    for turn in turns:
        if "content" in turn and turn["content"] is not None:
            turn["content"] = _content(turn["content"], turn["role"], shape)
    return turns, given or None


def text_of(content: Any) -> str:
    """A content as one string; parts are joined by line breaks, as llama.cpp does."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""


def _content(content: Any, role: str, shape: Shape) -> Any:
    if role not in ROLES:
        role = "system" if role == "developer" else "user"
    if isinstance(content, list):
        return content if role in shape.parts else text_of(content)
    return content if role in shape.text else [{"type": "text", "text": content}]


def _plain(given: Message, shape: Shape) -> Message:
    """A copy without nulls; with the role as the template knows it and the thoughts under each of their names."""
    turn = {k: v for k, v in given.items() if v is not None}
    if turn["role"] == "developer" and not shape.developer:
        turn["role"] = "system"
    elif turn["role"] == "function":
        turn["role"] = "tool"
    thought = next((turn[key] for key in REASONING if turn.get(key)), None)
    if thought is not None:
        turn = {"thinking": thought, **turn, "reasoning_content": thought}
    if turn.get("tool_calls"):
        turn["tool_calls"] = [{"type": "function", **c, "function": dict(c["function"])} for c in turn["tool_calls"]]
    else:
        turn.pop("tool_calls", None)
        turn.setdefault("content", "")
    return turn


# ---- calls


def _link(turns: list[Message], shape: Shape) -> None:
    """Give each call an id of the template's kind, and each result that id and the name of its function."""
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    waiting: list[str] = []
    n = 0
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            name = call["function"]["name"]
            old = call.get("id") or f"call_{n}"
            new = _id(old, name, n, shape)
            n += 1
            while shape.ids == "nine" and new in ids.values() and ids.get(old) != new:
                new = _nine(new)
            call["id"] = ids[old] = new
            names[new] = name
            waiting.append(new)
        if turn["role"] == "tool":
            old = turn.get("tool_call_id") or (waiting[0] if waiting else f"call_{n}")
            new = ids.get(old) or (old if old in names else _id(old, turn.get("name", "function"), n, shape))
            if new in waiting:
                waiting.remove(new)
            turn["tool_call_id"] = new
            if "name" not in turn and new in names:
                turn["name"] = names[new]


def _ordered(turns: list[Message]) -> list[Message]:
    """With results in the order of their calls: many templates show no ids."""
    out: list[Message] = []
    order: list[str] = []
    for called, run in itertools.groupby(turns, lambda turn: turn["role"] == "tool"):
        group = list(run)
        if called:
            group.sort(
                key=lambda turn: order.index(turn["tool_call_id"]) if turn["tool_call_id"] in order else len(order)
            )
        else:
            order = [call["id"] for call in group[-1].get("tool_calls", ())]
        out += group
    return out


def _id(id: str, name: str, n: int, shape: Shape) -> str:
    if shape.ids == "nine":
        return id if _NINE.fullmatch(id) else _nine(id)
    if shape.ids == "named":
        return id if _NAMED.fullmatch(id) else f"functions.{name}:{n}"
    return id


def _nine(id: str) -> str:
    """Nine letters and digits, always the same for an id."""
    number = int.from_bytes(hashlib.sha256(id.encode(errors="surrogatepass")).digest()[:8], "big")
    alphabet = string.digits + string.ascii_letters
    digits = ""
    for _ in range(9):
        number, digit = divmod(number, len(alphabet))
        digits += alphabet[digit]
    return digits


def _calling(turn: Message, shape: Shape) -> list[Message]:
    """The message with arguments and content as the template takes them beside calls; two if it takes no text there."""
    if "tool_calls" not in turn:
        return [turn]
    for call in turn["tool_calls"]:
        call["function"]["arguments"] = _arguments(call["function"].get("arguments"), shape)
    if text_of(turn.get("content")):
        if shape.beside:
            return [turn]
        said = {k: v for k, v in turn.items() if k != "tool_calls"}
        turn = {k: v for k, v in turn.items() if k not in REASONING}
        return [said, _emptied(turn, shape)]
    return [_emptied(turn, shape)]


def _emptied(turn: Message, shape: Shape) -> Message:
    turn = {k: v for k, v in turn.items() if k != "content"}
    return turn if shape.empty is ABSENT else {**turn, "content": shape.empty}


def _arguments(arguments: Any, shape: Shape) -> Any:
    if shape.arguments == "text":
        return arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = arguments
        # what is no object cannot be iterated over; so it is shown at least
        return value if isinstance(value, dict) else {"arguments": arguments}
    return arguments or {}


def _one_call_a_message(turns: list[Message]) -> list[Message]:
    """Each call in a message of its own, followed by its result."""
    out: list[Message] = []
    at = 0
    while at < len(turns):
        turn = turns[at]
        at += 1
        calls = turn.get("tool_calls", [])
        if len(calls) < 2:
            out.append(turn)
            continue
        results: list[Message] = []
        while at < len(turns) and turns[at]["role"] == "tool":
            results.append(turns[at])
            at += 1
        for i, call in enumerate(calls):
            alone = turn if i == 0 else {k: v for k, v in turn.items() if k not in (*REASONING, "content")}
            out.append({**alone, "tool_calls": [call]})
            mine = [r for r in results if r["tool_call_id"] == call["id"]]
            out += mine
            results = [r for r in results if r not in mine]
        out += results
    return out


def _filled(tool: dict[str, Any]) -> dict[str, Any]:
    """With a description and parameters, which some templates take for granted."""
    function = dict(tool["function"])
    function.setdefault("description", "")
    parameters = dict(function.get("parameters") or {})
    parameters.setdefault("type", "object")
    parameters.setdefault("properties", {})
    parameters.setdefault("required", [])
    return {**tool, "function": {**function, "parameters": parameters}}


# ---- who may speak when


def _joined(first: Any, second: Any) -> str:
    return "\n\n".join(text for text in (text_of(first), text_of(second)) if text)


def _with_system(turns: list[Message], text: str) -> list[Message]:
    """With the text at the end of the first system message, which is made if there is none."""
    if turns and turns[0]["role"] in ("system", "developer"):
        return [{**turns[0], "content": _joined(turns[0].get("content"), text)}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _systems(turns: list[Message], first: bool) -> list[Message]:
    """System messages become part of the user's next message; with `first` those at the beginning become one."""
    n_lead = next((i for i, turn in enumerate(turns) if turn["role"] not in ("system", "developer")), len(turns))
    out: list[Message] = []
    if first and n_lead:
        lead = turns[0]
        for turn in turns[1:n_lead]:
            lead = {**lead, "content": _joined(lead.get("content"), turn.get("content"))}
        out.append(lead)
        turns = turns[n_lead:]
    held = ""
    for turn in turns:
        if turn["role"] in ("system", "developer"):
            held = _joined(held, turn.get("content"))
            continue
        if held:
            if turn["role"] == "user":
                turn = {**turn, "content": _joined(held, turn.get("content"))}
            elif turn["role"] != "tool":
                out.append({"role": "user", "content": held})
            if turn["role"] != "tool":  # nothing may come between a call and its results
                held = ""
        out.append(turn)
    if held:
        out.append({"role": "user", "content": held})
    return out


def _alternating(turns: list[Message], beside: bool) -> list[Message]:
    """Messages of the user, or of the assistant, that follow each other become one."""
    out: list[Message] = []
    for turn in turns:
        last = out[-1] if out else None
        if last is None or turn["role"] != last["role"] or turn["role"] not in ("user", "assistant"):
            out.append(turn)
            continue
        if "tool_calls" in last or ("tool_calls" in turn and not beside):
            out.append(turn)  # text after calls would stand before them
            continue
        merged = {**last, **turn}
        if "content" in last or "content" in turn:
            merged["content"] = _joined(last.get("content"), turn.get("content"))
        for key in REASONING:
            if key in last and key in turn:
                merged[key] = _joined(last[key], turn[key])
        out[-1] = merged
    return out


def _opened(turns: list[Message]) -> list[Message]:
    """With an empty message of the user before the first one if that is the assistant's."""
    at = next((i for i, turn in enumerate(turns) if turn["role"] not in ("system", "developer")), len(turns))
    if at < len(turns) and turns[at]["role"] == "assistant":
        return [*turns[:at], {"role": "user", "content": ""}, *turns[at:]]
    return turns
