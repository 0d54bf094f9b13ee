"""A model's answer, read while it comes: text, thinking and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ropebend.server.chat.events import Answer, Event, Output
from ropebend.server.chat.formats import GENERIC, Format
from ropebend.server.chat.marks import BARE, THINKING, WAYS, WRAPPERS
from ropebend.server.chat.reader import Reader, Reading, Stops
from ropebend.server.chat.ways import Scene

ReasoningFormat = Literal["none", "deepseek", "auto"]

_MARKS = tuple(WAYS)


@dataclass(frozen=True)
class Expected:
    """What an answer may hold.

    format     how the model writes calls
    functions  those that may be called: their parameters' schemas by name
    several    False: only the first call counts
    reasoning  "none": the thinking is left in the text, as it was written
    opened     the end of the prompt from where it opens the thinking; "" if it does not
    """

    format: Format = GENERIC
    functions: Mapping[str, Any] | None = None
    several: bool = True
    reasoning: ReasoningFormat = "auto"
    opened: str = ""


def opened_by(prompt: str, inside: bool = False) -> str:
    """The end of a prompt from where it opens the thinking; "" if it ends otherwise.

    inside: the prompt ends within thinking, if it has any
    """
    bare = prompt.rstrip()
    for tag, end in THINKING:
        if inside and (at := prompt.rfind(tag)) > prompt.rfind(end):
            return prompt[at:]
        if bare.endswith(tag):
            return prompt[len(bare) - len(tag) :]
    return ""


def ends_thinking(prompt: str) -> bool:
    """Whether a prompt ends with the end of thinking, which then is over before it began."""
    return prompt.rstrip().endswith(tuple(end for _, end in THINKING))


class ChatParser:
    """Text in, events out.  Where the text is cut makes no difference to the events put together."""

    def __init__(self, expected: Expected, new_id: Callable[[], str] | None = None):
        self._expected = expected
        self._reader = Reader()
        self._out = Output(new_id or expected.format.new_id, expected.several)
        self._scene = Scene(self._reader, self._out, expected.functions or {})
        self._run = self._answer()
        self._running = True

    @property
    def n_calls(self) -> int:
        """Calls so far."""
        return min(self._out.n_calls, 1) if not self._expected.several else self._out.n_calls

    def feed(self, text: str) -> list[Event]:
        """What is certain once this text has come."""
        self._reader.feed(text)
        self._step()
        return self._out.take()

    def finish(self) -> list[Event]:
        """What is left at the end."""
        self._reader.ended = True
        self._step()
        self._out.finish()
        return self._out.take()

    def _step(self) -> None:
        if self._running:
            try:
                next(self._run)
            except StopIteration:
                self._running = False

    def _answer(self) -> Reading[None]:
        r, out, scene = self._reader, self._out, self._scene
        protocol = self._expected.format.protocol
        if protocol:
            yield from protocol(scene, self._expected.reasoning == "none")
            return
        yield from self._thinking()
        wrappers = WRAPPERS if self._expected.format.wrapped else ()
        marks = Stops((*_MARKS, *wrappers) if scene.functions else wrappers)
        if scene.functions:
            yield from self._bare()
        while stop := (yield from r.flow(marks, out.content)):
            if stop in WAYS:
                yield from self._call(stop, out.content)

    def _bare(self) -> Reading[None]:
        """A call without a mark."""
        r = self._reader
        place = r.at
        yield from r.space()
        if (yield from r.peek()) not in ("{", "[") or not (yield from BARE.read(self._scene)):
            r.at = place

    def _call(self, mark: str, otherwise: Callable[[str], object]) -> Reading[bool]:
        """What follows a mark; if that is no call, the mark is text."""
        place = self._reader.at
        if (yield from WAYS[mark].read(self._scene)):
            return True
        self._reader.at = place
        otherwise(mark)
        return False

    def _thinking(self) -> Reading[None]:
        """The thinking at the beginning of an answer, if there is any."""
        r, out = self._reader, self._out
        raw = self._expected.reasoning == "none"
        opened = self._expected.opened
        place = r.at
        if opened:
            tag = next(tag for tag, _ in THINKING if opened.startswith(tag))
        else:
            yield from r.space()
            tag = yield from r.take_any(tag for tag, _ in THINKING)
            if not tag:
                r.at = place
                return
            opened = r.since(place)
        close = dict(THINKING)[tag]
        say = out.content if raw else out.reasoning
        if raw:
            say(opened)
        else:  # some write again what the prompt has written
            place = r.at
            yield from r.space()
            if not (yield from r.take(tag)):
                r.at = place
        marks = _MARKS if self._expected.format.calls_end_thinking and self._scene.functions else ()
        stops = Stops((close, *marks))
        while (stop := (yield from r.flow(stops, say))) and stop != close:
            if (yield from self._call(stop, say)):
                break
        if raw:
            say(stop if stop == close else "")
        else:
            out.end_of_thinking()


def parse(text: str, expected: Expected, new_id: Callable[[], str] | None = None) -> Answer:
    """A whole answer."""
    parser = ChatParser(expected, new_id)
    answer = Answer()
    for event in (*parser.feed(text), *parser.finish()):
        answer.add(event)
    return answer
