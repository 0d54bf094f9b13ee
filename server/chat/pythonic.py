"""Calls that look like calls: as in Python (LFM2, Llama), and Gemma 4's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from ropebend.server.chat.arguments import GEMMA_QUOTE, json_of_gemma, json_of_python
from ropebend.server.chat.reader import Reader, Reading, Stops
from ropebend.server.chat.ways import NAME, Scene

_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Pythonic:
    """Calls as in Python: ``[f(a=1), g(b="x")]``.

    listed  the brackets must be there
    close   what may stand after it
    """

    listed: bool = True
    close: tuple[str, ...] = ()

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        r, n = scene.reader, scene.out.n_calls
        yield from r.space()
        listed = yield from r.take("[")
        if self.listed and not listed:
            return False
        while True:
            place = r.at
            yield from r.space()
            if not (yield from self._call(scene)):
                r.at = place
                break
            place = r.at
            yield from r.space()
            if not (yield from r.take(",")):
                r.at = place
                break
        if scene.out.n_calls == n:
            return False
        if listed:
            yield from r.close(("]",))
        yield from r.close(self.close)
        return True

    def _call(self, scene: Scene) -> Reading[bool]:
        r = scene.reader
        name = yield from r.word()
        if name not in scene.functions:  # Llama's own tools are written with a method
            name = name.removesuffix(".call")
        if name not in scene.functions or not (yield from r.take("(")):
            return False
        scene.out.begin(name)
        yield from _arguments(scene, "=", ")", json_of_python)
        return True


@dataclass(frozen=True)
class Gemma:
    """Gemma 4: ``call:f{city:<|"|>Berlin<|"|>,days:2}<tool_call|>``."""

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        r = scene.reader
        yield from r.space()
        if not (yield from r.take("call:")):
            return False
        name = yield from r.word()
        if name not in scene.functions or not (yield from r.take("{")):
            return False
        scene.out.begin(name)
        if (yield from _arguments(scene, ":", "}", json_of_gemma, GEMMA_QUOTE)):
            yield from r.close(("<tool_call|>",))
        return True


def _arguments(scene: Scene, between: str, end: str, as_json: Callable[[str], str], mark: str = "") -> Reading[bool]:
    """Arguments, with `between` after their names, and the end of them; False if they are cut off.

    mark: what stands around texts instead of quotes
    """
    r, out, n = scene.reader, scene.out, 0
    while True:
        yield from r.space()
        if (yield from r.take(end)):
            break
        key, stop = yield from r.until(Stops((between,)), NAME)
        if not stop:
            return False
        if mark:
            key = key.replace(mark, "")
        out.arguments(f"{', ' if n else '{'}{json.dumps(key.strip(), ensure_ascii=False)}: ")
        n += 1
        source = yield from _literal(r, mark)
        if source is None:
            return False
        out.arguments(as_json(source))
        yield from r.take(",")
    out.arguments("}" if n else "{}")
    return True


def _literal(r: Reader, mark: str = "") -> Reading[str | None]:
    """The source of a value in a list of arguments: to the comma or bracket after it; None if it is cut off.

    mark: what stands around texts instead of quotes
    """
    start, depth, quote = r.at, 0, ""
    while c := (yield from r.peek()):
        if mark:
            if (yield from r.take(mark)):
                quote = "" if quote else mark
                continue
        elif quote and c == "\\":
            r.at += 1
            if not (yield from r.peek()):
                return None
        elif quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        if not quote:
            if c in _OPENING:
                depth += 1
            elif depth == 0 and (c == "," or c in _CLOSING):
                return r.since(start)
            elif c in _CLOSING:
                depth -= 1
        r.at += 1
    return None
