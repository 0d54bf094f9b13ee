"""Calls in tags, as Qwen3-Coder, GLM, MiniMax and DeepSeek 3.2 write them: the values are plain text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ropebend.server.chat.arguments import json_of, kinds, properties
from ropebend.server.chat.reader import Reading, Stops
from ropebend.server.chat.ways import NAME, Scene, calls_in_a_row


@dataclass(frozen=True)
class Tagged:
    """A name and parameters in tags; their values are plain text: ``<function=f><parameter=city>Berlin</parameter>``.

    before   what may stand between the mark and the name
    name_end what ends the name; those in `keep` belong to what follows
    key      before a parameter's name; key_end after it
    value    before a parameter's value; value_end after it
    typed    attributes stand between a parameter's name and ">": ``string="true"`` says what the value is (DeepSeek)
    close    what may stand after the last parameter, in this order
    again    marks of the next call
    end      what may stand after the last call
    """

    name_end: tuple[str, ...]
    key: str
    key_end: str
    value_end: str
    value: str = ""
    before: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    typed: bool = False
    close: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    end: tuple[str, ...] = ()

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        return (yield from calls_in_a_row(scene, self._call, self.again, self.end))

    def _call(self, scene: Scene) -> Reading[bool]:
        r, out = scene.reader, scene.out
        yield from r.skip(self.before)
        written, stop = yield from r.until(Stops(self.name_end), NAME)
        name = written.strip()
        if not stop or name not in scene.functions:
            return False
        if stop in self.keep:
            r.at -= len(stop)
        place = r.at
        yield from r.space()
        if not (yield from r.take_any((self.key, *self.close))):
            return False  # neither parameters nor an end: a mention
        r.at = place
        out.begin(name)
        written_names: set[str] = set()
        while True:
            place = r.at
            yield from r.space()
            if not (yield from r.take(self.key)):
                r.at = place
                break
            if not (yield from self._parameter(scene, scene.functions[name], written_names)):
                return True
        out.arguments("}" if written_names else "{}")
        for literal in self.close:
            yield from r.close((literal,))
        return True

    def _parameter(self, scene: Scene, schema: Any, written: set[str]) -> Reading[bool]:
        """One parameter; False if it is cut off."""
        r, out = scene.reader, scene.out
        key, stop = yield from r.until(Stops((self.key_end,)), NAME)
        if not stop:
            return False
        allowed = kinds(properties(schema).get(key.strip(), {}), schema)
        if self.typed:
            more, stop = yield from r.until(Stops((">",)), NAME)
            if not stop:
                return False
            allowed = frozenset({"string"}) if 'string="true"' in more else allowed - {"string"}
        if self.value:
            yield from r.space()
            if not (yield from r.take(self.value)):
                return False
        out.arguments(f"{', ' if written else '{'}{json.dumps(key.strip(), ensure_ascii=False)}: ")
        written.add(key.strip())
        unwrap = not self.value and (yield from r.take("\n"))
        if allowed == {"string"}:
            return (yield from self._text(scene, unwrap))
        parts: list[str] = []
        stop = yield from r.flow(Stops((self.value_end,)), parts.append)
        text = "".join(parts)
        if stop:
            out.arguments(json_of(text.removesuffix("\n") if unwrap else text, allowed))
        return bool(stop)

    def _text(self, scene: Scene, unwrap: bool) -> Reading[bool]:
        """A value that is a string, as it comes."""
        out = scene.out
        held = ""  # a line break that may be the last

        def emit(text: str) -> None:
            nonlocal held
            text = held + text
            held = "\n" if unwrap and text.endswith("\n") else ""
            out.arguments(json.dumps(text.removesuffix(held), ensure_ascii=False)[1:-1])

        out.arguments('"')
        stop = yield from scene.reader.flow(Stops((self.value_end,)), emit)
        if stop:
            out.arguments('"')
        return bool(stop)
