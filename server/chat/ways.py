"""The ways in which models write calls: each reads from after its mark and says whether it was a call.

What turns out to be none is prose: the reader goes back to the mark.  From the moment a call has begun (its function is
known and its arguments begin) it stays one; arguments go out as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ropebend.server.chat.arguments import is_object
from ropebend.server.chat.events import Output
from ropebend.server.chat.reader import Reader, Reading, Stops

#: Characters in which a name must end.
NAME = 256


@dataclass(frozen=True)
class Scene:
    """What a way works with.  functions: their parameters' schemas by name."""

    reader: Reader
    out: Output
    functions: Mapping[str, Any]


class Way(Protocol):
    """One way of writing calls."""

    def read(self, scene: Scene) -> Reading[bool]:
        """Read one call or several; False if there is none."""


def calls_in_a_row(
    scene: Scene, call: Callable[[Scene], Reading[bool]], again: tuple[str, ...], end: tuple[str, ...]
) -> Reading[bool]:
    """Calls one after the other: `again` stands between two, `end` after the last.  False if there is none."""
    r = scene.reader
    if not (yield from call(scene)):
        return False
    while True:
        place = r.at
        yield from r.space()
        if not (yield from r.take_any(again)) or not (yield from call(scene)):
            r.at = place
            break
    yield from r.close(end)
    return True


_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_ID_KEYS = ("id", "tool_call_id", "call_id")
_OTHER_KEYS = ("type", "index")


@dataclass(frozen=True)
class JsonCalls:
    """``{"name": …, "arguments": {…}}``, also ``parameters``, ``tool_name``, in a list, several one after the other.

    close    what may stand after it
    id_last  the id comes after the arguments, which wait for it
    keyed    the name is the key of the arguments (Apertus): ``[{"f": {…}}]``
    """

    close: tuple[str, ...] = ()
    id_last: bool = False
    keyed: bool = False

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        r = scene.reader
        yield from r.space()
        listed = yield from r.take("[")
        yield from r.space()
        if not (yield from self._object(scene)):
            return False
        while True:
            place = r.at
            yield from r.space()
            yield from r.take_any((",", ";"))
            yield from r.space()
            if not (yield from self._object(scene)):
                r.at = place
                break
        if listed:
            yield from r.close(("]",))
        yield from r.close(self.close)
        return True

    def _object(self, scene: Scene) -> Reading[bool]:
        """One call."""
        r, out = scene.reader, scene.out
        if not (yield from r.take("{")):
            return False
        name: str | None = None
        call_id: str | None = None
        held: str | None = None
        begun = False
        while True:
            yield from r.space()
            if (yield from r.take("}")):
                break
            key = yield from r.string()
            yield from r.space()
            if key is None or not (yield from r.take(":")):
                return begun
            yield from r.space()
            if self.keyed and not begun and key in scene.functions:
                if (yield from r.peek()) != "{":
                    return False
                out.begin(key)
                begun = True
                if not (yield from r.value(out.arguments)):
                    return True
            elif key == "function" and (yield from r.peek()) == "{" and name is None:
                begun = yield from self._object(scene)
                if not begun:
                    return False
            elif key in _NAME_KEYS and name is None and not begun:
                name = yield from r.string()
                if name not in scene.functions:
                    return False
            elif key in _ARGUMENT_KEYS and held is None and not begun:
                first = yield from r.peek()
                if name is not None and first == "{" and not self.id_last:
                    out.begin(name, call_id)
                    begun = True
                    if not (yield from r.value(out.arguments)):
                        return True
                else:
                    source = yield from r.source()
                    held = None if source is None else _arguments(source)
                    if held is None:
                        return False
            elif key in _ID_KEYS or key in _OTHER_KEYS or begun:
                source = yield from r.source()
                if source is None:
                    return begun
                if key in _ID_KEYS:
                    call_id = json.loads(source) if source.startswith('"') else source
            else:
                return False
            yield from r.space()
            if not (yield from r.take(",")) and (yield from r.peek()) != "}":
                return begun
        if begun:
            return True
        if name is None:
            return False
        out.begin(name, call_id)
        out.arguments("{}" if held is None else held)
        return True


def _arguments(source: str) -> str | None:
    """Arguments as an object's source; None if they are none.  Some models write the object into a string."""
    if source == "null":
        return "{}"
    if source.startswith('"'):
        try:
            source = json.loads(source, strict=False)
        except ValueError:
            return None
    return source if is_object(source) else None


@dataclass(frozen=True)
class Fenced:
    """JSON calls in a code fence, after its three backticks."""

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        yield from scene.reader.take_any(("json", "tool_call", "tool_code"))
        yield from scene.reader.space()
        if (yield from scene.reader.peek()) not in ("{", "["):
            return False
        return (yield from JsonCalls(("```",)).read(scene))


@dataclass(frozen=True)
class Action:
    """Command-R+: ``Action:`` and a fence."""

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        yield from scene.reader.space()
        if not (yield from scene.reader.take("```")):
            return False
        return (yield from Fenced().read(scene))


def _plain(written: str) -> tuple[str, str | None]:
    return written, None


def kimi_name(written: str) -> tuple[str, str | None]:
    """``functions.name:0``: all of it is the id."""
    name, _, _ = written.removeprefix("functions.").rpartition(":")
    return name, written


@dataclass(frozen=True)
class Named:
    """A name, then the arguments as JSON: ``<|mark|>name<|separator|>{…}<|end|>``.

    before   what may stand between the mark and the name; of these as many as come
    after    what ends the name; "{" belongs to the arguments
    lead     what may stand between that and the arguments
    close    what may stand after the arguments, in this order
    again    marks of the next call
    end      what may stand after the last call
    name     from what is written there to name and id
    id_mark  what stands between the name and an id
    """

    after: tuple[str, ...]
    before: tuple[str, ...] = ()
    lead: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    name: Callable[[str], tuple[str, str | None]] = _plain
    id_mark: str = ""

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        return (yield from calls_in_a_row(scene, self._call, self.again, self.end))

    def _call(self, scene: Scene) -> Reading[bool]:
        r, out = scene.reader, scene.out
        yield from r.skip(self.before)
        stops = Stops((*self.after, *([self.id_mark] if self.id_mark else [])))
        written, stop = yield from r.until(stops, NAME)
        name, call_id = self.name(written.strip())
        if not stop or name not in scene.functions:
            return False
        if self.id_mark and stop == self.id_mark:
            call_id, stop = yield from r.until(Stops(self.after), NAME)
            if not stop:
                return False
        if stop == "{":
            r.at -= 1
        yield from r.space()
        yield from r.take_any(self.lead)
        yield from r.space()
        if (yield from r.peek()) != "{":
            return False
        out.begin(name, call_id)
        if not (yield from r.value(out.arguments)):
            return True
        for literal in self.close:
            yield from r.close((literal,))
        return True


@dataclass(frozen=True)
class Several:
    """The first of these ways that fits."""

    ways: tuple[Way, ...]

    def read(self, scene: Scene) -> Reading[bool]:
        """See `Way`."""
        place = scene.reader.at
        for way in self.ways:
            scene.reader.at = place
            if (yield from way.read(scene)):
                return True
        return False
