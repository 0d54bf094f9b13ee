"""`ropebend chat`: a chat in the terminal, with the unscaled model a word away."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ropebend.cli.options import ModelPath, takes_runtime, takes_scales
from ropebend.durations import brief
from ropebend.errors import RopebendError
from ropebend.files import read_text
from ropebend.runtime import Runtime
from ropebend.scaling.source import ScaleSource
from ropebend.server.cli import RUNTIME
from ropebend.server.openai.defaults import Defaults
from ropebend.server.sampling_options import takes_sampling

if TYPE_CHECKING:
    from rich.console import Console

    from ropebend.server.chat.events import Content, Reasoning
    from ropebend.server.conversation import Conversation

#: As llama.cpp's own programs chat.
USUAL = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}

HELP = """\
/base           the unscaled model's answer to the last question, to compare
/file PATH      put a text file before the next question
/system TEXT    set the system prompt; without a text: none
/clear          begin anew
/quit           end (or Ctrl-D); Ctrl-C stops an answer
A line that ends in \\ goes on in the next."""


@takes_runtime(RUNTIME)
@takes_sampling
@takes_scales()
def chat(
    model: ModelPath,
    *,
    ctx_size: Annotated[
        int,
        typer.Option(
            "--ctx-size", "-c", min=0,
            help="Context in tokens, may go beyond the trained length; 0: the trained length, or what the scales were "
            "tested at if that is more.",
        ),
    ] = 0,
    system: Annotated[str, typer.Option(help="System prompt.", show_default=False)] = "",
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", show_default="the model's",
            help="Chat template: a built-in one, as chatml or llama3, or a jinja file.",
        ),
    ] = None,
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="Let models think that can; their thoughts are shown dim.")
    ] = True,
    scales: ScaleSource,
    defaults: Defaults,
    runtime: Runtime,
) -> None:  # fmt: skip
    """Chat with MODEL in the terminal; /base asks the unscaled model the same, /help lists what else there is.

    Tokens are chosen as llama.cpp's own programs do it where no flag says otherwise. Only answers go to stdout, so that
    questions can come from a pipe, one a line.
    """
    print(f"{model.name}: loading", file=sys.stderr, flush=True)
    from rich.console import Console

    from ropebend.server.chat.chats import Chats, read_template
    from ropebend.server.conversation import Conversation
    from ropebend.server.engine import EngineOptions

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.addLevelName(logging.WARNING, "warning")
    source, name = (None, "") if chat_template is None else read_template(chat_template)
    options = EngineOptions(
        model, n_ctx=ctx_size, n_slots=1, scales=scales,
        runtime=replace(runtime, n_ubatch=min(runtime.n_ubatch, runtime.n_batch)),
    )  # fmt: skip
    chats = Chats(source, name, variables={} if think else {"enable_thinking": False})
    with Conversation(
        options, chats, {**USUAL, **defaults.sampling}, defaults.seed,
        -1 if defaults.n_predict is None else defaults.n_predict, system,
    ) as conversation:  # fmt: skip
        Terminal(conversation, Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)).run()


class Terminal:
    """Reads lines, and shows the answers of a conversation; out: what is said, err: what is said about it."""

    def __init__(self, conversation: Conversation, out: Console, err: Console):
        self._conversation = conversation
        self._out, self._err = out, err
        self._file = ""  # goes before the next question
        self._talks = sys.stdin.isatty()
        if self._talks:
            import readline  # noqa: F401  (gives input() its arrows)

    def run(self) -> None:
        """Until /quit or the end of the input."""
        facts = self._conversation.facts
        scales = "unscaled" if facts.scaling is None else str(facts.scaling)
        self._note(f"context {facts.n_ctx:,} tokens (trained at {facts.n_ctx_train:,}); {scales}; /help lists commands")
        if not (facts.chat_template or facts.tool_template or self._conversation.chats.has_own):
            self._note("the file has no chat template, as base models have none: chatml is used, see --chat-template")
        while True:
            try:
                text = self._read()
                if text is None or text.split()[:1] in (["/quit"], ["/exit"], ["/bye"]):
                    return
                if text.strip():
                    self._do(text)
            except KeyboardInterrupt:
                if not self._talks:
                    raise
                self._note("\n(/quit or Ctrl-D ends)")
            except RopebendError as e:
                self._note(f"error: {e}")

    def _read(self) -> str | None:
        """What the user says next, None at the end; a line that ends in \\ goes on."""
        lines: list[str] = []
        while True:
            try:
                if self._talks:
                    line = input("... " if lines else "> ")
                else:
                    line = sys.stdin.readline()
                    if not line:
                        raise EOFError
                    line = line.rstrip("\n")
            except EOFError:
                return "\n".join(lines) if lines else None
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)

    def _do(self, text: str) -> None:
        word, _, rest = text.strip().partition(" ")
        rest = rest.strip()
        if not word.startswith("/") or "/" in word[1:]:  # a path is no command
            self._show(self._conversation.ask(self._file + text))
            self._file = ""
        elif word == "/base":
            if self._conversation.facts.scaling is None:
                raise RopebendError("no scales are in effect: this is the unscaled model already")
            self._note("unscaled:")
            self._show(self._conversation.ask_base())
        elif word == "/file":
            self._file += self._text_of(Path(rest).expanduser())
        elif word == "/system":
            self._conversation.system = rest
            self._note("the system prompt is set" if rest else "no system prompt")
        elif word == "/clear":
            self._conversation.clear()
            self._file = ""
            self._note("begun anew")
        elif word == "/help":
            self._note(HELP)
        else:
            raise RopebendError(f"no such command: {word}; /help lists them")

    def _text_of(self, path: Path) -> str:
        text = read_text(path)
        self._note(f"{path}: {self._conversation.count(text):,} tokens go before the next question")
        return f"{text}\n\n"

    def _show(self, events: Generator[Content | Reasoning, None, None]) -> None:
        """Print an answer as it comes, and how it went; Ctrl-C stops it."""
        try:
            with contextlib.closing(events):  # so that also an interrupted answer stands in the chat
                self._print(events)
        except KeyboardInterrupt:
            if not self._talks:
                raise
            self._out.print()
        self._note(self._went())

    def _print(self, events: Iterable[Content | Reasoning]) -> None:
        from ropebend.server.chat.events import Reasoning

        thinking = False
        for event in events:
            now = isinstance(event, Reasoning)
            if thinking and not now:
                self._out.print("\n")
            thinking = now
            # what a model writes must not steer the terminal
            text = event.text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
            self._out.print(text, end="", markup=False, style="dim" if now else None)
            self._out.file.flush()
        self._out.print()

    def _went(self) -> str:
        f = self._conversation.figures
        after = f.seconds - f.first
        speed = f"{(f.n_tokens - 1) / after:,.0f} tokens/s, " if f.n_tokens > 1 and after > 0 else ""
        used = f"{f.n_prompt + f.n_tokens:,} of {self._conversation.facts.n_ctx:,} tokens of context used"
        end = {"stop": "", "length": "; stopped at the most tokens", "interrupted": "; stopped by you"}[f.reason]
        return f"[first token after {brief(f.first)} s, {speed}{used}{end}]"

    def _note(self, text: str) -> None:
        self._err.print(text, markup=False, style="dim", soft_wrap=True)
