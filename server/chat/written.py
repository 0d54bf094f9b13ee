"""Tools, calls and results as ordinary text, for chat templates that know none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ropebend.chat_template import Message
from ropebend.server.chat.shape import KEY, NAME, VALUE, Shape, Way


def describe(tools: Sequence[dict[str, Any]], shape: Shape) -> str:
    """What to tell a model whose chat template does not show the tools."""
    lines = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
    how = 'with nothing but {"name": its name, "arguments": an object with its arguments}.'
    if shape.sample:
        how = f"like this:\n{shape.sample.replace(NAME, 'name').replace(KEY, 'argument').replace(VALUE, 'value')}"
    return f"You can call these functions:\n{lines}\nTo call one, answer {how}"


def write_out(turn: Message, text_of: Callable[[Any], str], shape: Shape) -> Message:
    """The message with its calls in its text; a result becomes the user's message if the template shows none."""
    if turn["role"] == "tool":
        if shape.results:
            return turn
        name = f" of {turn['name']}" if turn.get("name") else ""
        return {"role": "user", "content": f"Result{name}:\n{text_of(turn.get('content'))}"}
    if "tool_calls" not in turn:
        return turn
    lines = [text_of(turn.get("content"))] if text_of(turn.get("content")) else []
    calls = [(c["function"]["name"], _source(c["function"].get("arguments"))) for c in turn["tool_calls"]]
    lines.append(_WAYS[shape.way](calls))
    return {**{k: v for k, v in turn.items() if k != "tool_calls"}, "content": "\n".join(lines)}


def _source(arguments: Any) -> str:
    """Arguments as JSON; what is none becomes a string."""
    source = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    try:
        json.loads(source or "{}")
    except (ValueError, RecursionError):
        return json.dumps(source, ensure_ascii=False)
    return source or "{}"


Calls = list[tuple[str, str]]


def _objects(calls: Calls) -> list[str]:
    return [f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {source}}}' for name, source in calls]


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _pythonic(calls: Calls) -> str:
    parts = []
    for name, source in calls:
        arguments = json.loads(source)
        if not isinstance(arguments, dict):
            arguments = {"arguments": arguments}
        shown = (f"{k}={_literal(v)}" for k, v in arguments.items())
        parts.append(f"{name}({', '.join(shown)})")
    return f"<|tool_call_start|>[{', '.join(parts)}]<|tool_call_end|>"


_WAYS: dict[Way, Callable[[Calls], str]] = {
    "json": lambda calls: "\n".join(_objects(calls)),
    "granite": lambda calls: f"<|tool_call|>[{', '.join(_objects(calls))}]",
    "lfm2": _pythonic,
}
