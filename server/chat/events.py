"""What a model's answer consists of, as it comes."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, field

from ropebend.server.chat.reader import SPACE


@dataclass(frozen=True)
class Content:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call of a function; `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of call `index`: a part of the source of a JSON object."""

    index: int
    text: str


Event = Content | Reasoning | CallBegin | CallArguments


def openai_id() -> str:
    """An id as OpenAI writes it."""
    return f"call_{secrets.token_hex(12)}"


def mistral_id() -> str:
    """An id as Mistral's templates demand it: nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


@dataclass
class Call:
    """A whole call."""

    id: str
    name: str
    arguments: str


@dataclass
class Answer:
    """Events put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, event: Event) -> None:
        if isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, CallBegin):
            self.calls.append(Call(event.id, event.name, ""))
        else:
            self.calls[event.index].arguments += event.text


class Output:
    """Collects events.

    White space around the parts of an answer (thinking, calls) belongs to how the model writes them, not to the
    answer; an answer that is nothing but text stays as it is.

    new_id   makes the id of a call that the model gave none
    several  False: only the first call counts
    """

    def __init__(self, new_id: Callable[[], str] = openai_id, several: bool = True):
        self._new_id = new_id
        self._several = several
        self._events: list[Event] = []
        self._held = ""  # white space that may turn out to stand at the end
        self._said = False  # there was content that is no white space
        self._structured = False  # there was something else than content
        self._thought = ""  # as _held
        self._thinking = False
        self.n_calls = 0

    def take(self) -> list[Event]:
        """The events since the last time, neighbours of one kind joined."""
        events, self._events = self._events, []
        out: list[Event] = []
        for event in events:
            last = out[-1] if out else None
            if isinstance(last, Content) and isinstance(event, Content):
                out[-1] = Content(last.text + event.text)
            elif isinstance(last, Reasoning) and isinstance(event, Reasoning):
                out[-1] = Reasoning(last.text + event.text)
            elif isinstance(last, CallArguments) and isinstance(event, CallArguments) and last.index == event.index:
                out[-1] = CallArguments(last.index, last.text + event.text)
            else:
                out.append(event)
        return out

    def content(self, text: str) -> None:
        text = self._held + text
        if self._structured and not self._said:
            text = text.lstrip(SPACE)
        body = text.rstrip(SPACE)
        self._held = text[len(body) :]
        if body:
            self._said = True
            self._events.append(Content(body))

    def reasoning(self, text: str) -> None:
        text = self._thought + text
        if not self._thinking:
            text = text.lstrip(SPACE)
        body = text.rstrip(SPACE)
        self._thought = text[len(body) :]
        if body:
            self._thinking = self._structured = True
            self._events.append(Reasoning(body))

    def end_of_thinking(self) -> None:
        """White space so far is around the thinking."""
        self._structured = True
        self._thought = "\n" if self._thinking else ""  # before more thinking

    def begin(self, name: str, id: str | None = None) -> bool:
        """A call begins; False if it does not count."""
        self._structured = True
        self.n_calls += 1
        counts = self._several or self.n_calls == 1
        if counts:
            self._events.append(CallBegin(self.n_calls - 1, id or self._new_id(), name))
        return counts

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if text and (self._several or self.n_calls == 1):
            self._events.append(CallArguments(self.n_calls - 1, text))

    def finish(self) -> None:
        """There is no more."""
        if self._held and not self._structured:
            self._events.append(Content(self._held))
        self._held = self._thought = ""
