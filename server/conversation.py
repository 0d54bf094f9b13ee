"""One chat with the engine in this process, without HTTP: what `ropebend chat` talks to."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from typing_extensions import Self

from ropebend.errors import RopebendError
from ropebend.server.chat.chats import Chats
from ropebend.server.chat.control import Prompt
from ropebend.server.chat.events import Content, Reasoning
from ropebend.server.chat.formats import format_of
from ropebend.server.chat.marks import TOKENS
from ropebend.server.chat.parser import ChatParser, Expected, opened_by
from ropebend.server.engine import (
    Cancelled,
    Completed,
    Engine,
    EngineOptions,
    Event,
    Facts,
    Failed,
    Finished,
    Generation,
    Piece,
    Sampling,
)


@dataclass
class Figures:
    """How an answer went; times in seconds, sizes in tokens.

    first    until the first text
    reason   "stop", "length" or "interrupted"
    """

    n_prompt: int = 0
    n_cached: int = 0
    n_tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    reason: str = "interrupted"


@dataclass
class Conversation:
    """Messages, and the engine that answers them.  `with` starts and stops it.

    sampling   fields of `Sampling`
    seed       None: a new one for each answer
    n_predict  most tokens of an answer; -1: until the context, or the plan of the prompt's length, ends
    """

    options: EngineOptions
    chats: Chats
    sampling: Mapping[str, Any]
    seed: int | None = None
    n_predict: int = -1
    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)
    _last_seed: int = 0

    def __enter__(self) -> Self:
        """Load the model.  Raises RopebendError."""
        ready = threading.Event()
        self._engine = Engine(self.options, on_failure=ready.set, on_loaded=lambda facts: self.chats.prepare(facts))
        self._engine.start()
        while self._engine.facts is None and self._engine.failure is None:
            ready.wait(0.02)
        if self._engine.failure is not None:
            raise RopebendError(self._engine.failure)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.stop(timeout=5)

    @property
    def facts(self) -> Facts:
        """Of the loaded model."""
        facts = self._engine.facts
        assert facts is not None
        return facts

    def ask(self, text: str) -> Generator[Content | Reasoning, None, None]:
        """Say something, and give the answer as it comes; both are kept in the chat, also where it is interrupted.

        Raises RopebendError where it cannot be answered; then nothing is kept.
        """
        question = {"role": "user", "content": text}
        prompt, tokens = self._prompt([*self.turns, question], scaled=True)
        self._last_seed = secrets.randbits(32) if self.seed is None else self.seed
        self.turns.append(question)
        answer = ""
        try:
            for event in self._answer(prompt, tokens, scaled=True):
                answer += event.text if isinstance(event, Content) else ""
                yield event
        except RopebendError:
            self.turns.pop()
            raise
        except BaseException:
            self.turns.append({"role": "assistant", "content": answer})
            raise
        self.turns.append({"role": "assistant", "content": answer})

    def ask_base(self) -> Generator[Content | Reasoning, None, None]:
        """The unscaled model's answer to the last question, with the same seed; the chat goes on without it."""
        if not self.turns:
            raise RopebendError("nothing was asked yet")
        prompt, tokens = self._prompt(self.turns[:-1], scaled=False)
        yield from self._answer(prompt, tokens, scaled=False)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._engine.tokenize(text, add_special=False, parse_special=False))

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.turns.clear()

    def _prompt(self, turns: list[dict[str, Any]], *, scaled: bool) -> tuple[Prompt, list[int]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        template = self.chats.template(self.facts)
        prompt = template.render([*first, *turns], None, self.chats.variables)
        tokens = prompt.tokens(
            lambda text, add, parse: self._engine.tokenize(text, add_special=add, parse_special=parse),
            template.guarded,
            add_special=not prompt.starts_with(self.facts.bos),
        )
        if len(tokens) >= self.facts.n_ctx:
            raise RopebendError(
                f"the chat has {len(tokens):,} tokens with this, the context holds {self.facts.n_ctx:,}: "
                "/clear begins anew, --ctx-size makes it larger"
            )
        return prompt, tokens

    def _answer(self, prompt: Prompt, tokens: list[int], *, scaled: bool) -> Iterator[Content | Reasoning]:
        room = self.facts.n_ctx - len(tokens)
        n = self.facts.room(scaled, len(tokens)) if self.n_predict < 0 else min(self.n_predict, room)
        generation = Generation(
            tokens, n, Sampling(**self.sampling, seed=self._last_seed), scaled=scaled, control=TOKENS
        )
        template = self.chats.template(self.facts).source()
        parser = ChatParser(Expected(format_of(template), opened=opened_by(prompt.text)))
        self.figures = figures = Figures(len(tokens))
        events: queue.Queue[Event] = queue.Queue()
        began = time.monotonic()
        submission = self._engine.submit([generation], events.put)
        try:
            while True:
                event = events.get()
                if isinstance(event, Piece):
                    figures.first = figures.first or time.monotonic() - began
                    figures.n_tokens += 1
                    yield from _texts(parser.feed(event.text))
                elif isinstance(event, Finished):
                    figures.n_tokens, figures.n_cached, figures.reason = event.n_tokens, event.n_cached, event.reason
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Completed | Cancelled):
                    break
            yield from _texts(parser.finish())
        finally:
            submission.cancel()
            figures.seconds = time.monotonic() - began


def _texts(events: list[Any]) -> Iterator[Content | Reasoning]:
    return (event for event in events if isinstance(event, Content | Reasoning))
