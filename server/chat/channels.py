"""Formats whose whole answer is messages to recipients: gpt-oss's harmony and functionary 3.2."""

from __future__ import annotations

import re
from collections.abc import Callable

from ropebend.server.chat.reader import Reading, Stops
from ropebend.server.chat.ways import NAME, Scene

#: What ends the message of a channel.
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_BODY = Stops(_ENDS)
_HEADER = Stops(("<|message|>", *_ENDS))
_TO = re.compile(r"to=(\S+?)(?=\s|<\||$)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")

HARMONY_MARKS = ("<|channel|>", "<|message|>", "<|constrain|>", *_ENDS)


def harmony(scene: Scene, raw: bool) -> Reading[None]:
    """``<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{…}``.

    Begins after ``<|start|>assistant``.  Messages to functions there are not are shown as text.
    raw: the thinking is left in the text, as it was written.
    """
    r, out = scene.reader, scene.out
    while (yield from r.peek()):
        start = r.at
        if not (yield from _is_header(scene)):
            yield from r.flow(_BODY, out.content)
            continue
        r.at = start
        header, stop = yield from r.until(_HEADER, NAME)
        if stop != "<|message|>":
            if not stop and (yield from r.peek()):  # no header after all
                yield from r.flow(_BODY, out.content)
            continue
        channels, to = _CHANNEL.findall(header), _TO.search(header)
        name = to[1].removeprefix("functions.") if to and to[1] != "assistant" else None
        if name in scene.functions:
            yield from _call(scene, str(name))
        elif channels and channels[-1] == "analysis" and name is None:
            if raw:
                out.content("<|channel|>analysis<|message|>")
                out.content((yield from r.flow(_BODY, out.content)))
            else:
                yield from r.flow(_BODY, out.reasoning)
                out.end_of_thinking()
        else:
            yield from r.flow(_BODY, out.content)


def _is_header(scene: Scene) -> Reading[bool]:
    """Whether a message's header comes next, perhaps after its role; what was looked at is skipped."""
    r = scene.reader
    yield from r.take("assistant")
    yield from r.space()
    return bool((yield from r.take_any(("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "to="))))


def _call(scene: Scene, name: str) -> Reading[None]:
    r, out = scene.reader, scene.out
    yield from r.space()
    if (yield from r.peek()) == "{":
        out.begin(name)
        yield from r.value(out.arguments)
        yield from r.flow(_BODY, lambda _: None)
    else:
        yield from r.flow(_BODY, out.content)


_NEXT = Stops((">>>",))


def functionary(scene: Scene, raw: bool) -> Reading[None]:
    """``all`` or a function's name, a line break and what goes there; ``>>>`` before each but the first."""
    r, out = scene.reader, scene.out
    while (yield from r.peek()):
        yield from r.take(">>>")
        start = r.at
        to, stop = yield from r.until(Stops(("\n", ">>>")), NAME)
        if stop == "\n" and to in scene.functions and (yield from r.peek()) == "{":
            out.begin(to)
            yield from r.value(out.arguments)
            yield from r.flow(_NEXT, lambda _: None)
            continue
        if stop != "\n" or to != "all":
            r.at = start
        yield from r.flow(_NEXT, out.content)


#: A whole answer's way; raw: leave the thinking in the text.
Protocol = Callable[[Scene, bool], Reading[None]]
