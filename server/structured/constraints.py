"""Constraints: compiled once a grammar, walked once a text."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from ropebend.server.structured import check
from ropebend.server.structured.lark import LARK, Written, json_rule, written
from ropebend.server.structured.parts import Grammar, GrammarError, Part
from ropebend.server.structured.schemas import unusable
from ropebend.server.structured.tokens import specials_of

log = logging.getLogger("ropebend.server")

#: Characters of a grammar in Lark, most of which are written here; one of GBNF grows tenfold.
_MAX_WRITTEN = 2**21

#: Characters of a grammar that a client sends.
MAX_GRAMMAR = 100_000

#: Compiled grammars that are kept; agents send the same schemas with every request.
_N_KEPT = 32


@dataclass(frozen=True, eq=False)
class Constraint:
    """A compiled grammar.  warnings: about what it leaves out of what was asked for."""

    _matcher: LLMatcher
    warnings: tuple[str, ...] = ()

    def begin(self) -> Walk:
        """At the beginning of a text."""
        return Walk(self._matcher.deep_copy())


class Walk:
    """One text on its way through a grammar.  Not for several threads at once."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def allows(self, token: int) -> bool:
        """Whether this token may come next; cheap."""
        return self._matcher.validate_tokens([token]) == 1

    def allowed(self, n_vocab: int) -> npt.NDArray[np.int64]:
        """The ids of all tokens that may come next.  GrammarError if that is beyond the limits of one step."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.flatnonzero(np.unpackbits(bits, count=min(n_vocab, bits.size * 8), bitorder="little"))

    def accept(self, token: int) -> None:
        """Go past a token that may come next."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def ended(self) -> bool:
        """True if nothing can follow: the text is complete."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error() or self._matcher.stop_reason() in _GIVEN_UP:
            reason = self._matcher.get_error() or self._matcher.stop_reason()
            raise GrammarError(f"the grammar cannot be followed: {_plain(reason)}")


#: Words of llguidance for an end that is none of the text's.
_GIVEN_UP = ("ParserTooComplex", "LexerTooComplex", "InternalError", "MaxTokensTotal")


_UNUSABLE = "the grammar cannot be used: "
_NOTHING = "no text can follow it"
_OF_A_SCHEMA = "failed to compile JSON schema: "

_ONE_OF = 'oneOf of schemas that may both hold is not supported; use anyOf ("strict": false reads it so)'

#: Parts of a schema that are tried by themselves to find the one at fault.
_MAX_TRIES = 200


def _plain(error: str) -> str:
    """llguidance's words without the whole grammar around them."""
    error = error.replace("<non-verbose/>", "").strip()
    if error == "NoExtensionBias":
        return _NOTHING
    if "regex parse error" in error and "\nerror: " in error:
        reason = error.rpartition("\nerror: ")[2].split("\n")[0]
        return f"{_OF_A_SCHEMA * (_OF_A_SCHEMA in error)}a regular expression: {reason}"
    if _OF_A_SCHEMA in error:
        error = _OF_A_SCHEMA + error.partition(_OF_A_SCHEMA)[2].split("\n")[0]
    if "oneOf constraints are not supported" in error:
        error = _OF_A_SCHEMA * (_OF_A_SCHEMA in error) + _ONE_OF
    # lines of the grammar are quoted with their numbers
    return "\n".join(line[:100] if line.startswith(" ") else line for line in error.split("\n"))[:500]


class Compiler:
    """Compiles for one vocabulary; any thread may ask.

    specials  name of each control token → its id
    """

    def __init__(self, tokenizer: LLTokenizer):
        self._tokenizer = tokenizer
        self.specials = specials_of(tokenizer)
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._checker = _Checker()

    def compile(self, part: Part | Grammar) -> Constraint:
        """GrammarError, with the reason, if that cannot be done."""
        asked = written(part, self.specials)
        grammar = asked.source
        if len(grammar) > _MAX_WRITTEN:
            raise GrammarError(f"all schemas together have {len(grammar)} characters, expected at most {_MAX_WRITTEN}")
        with self._lock:
            matcher = self._kept.get(grammar)
        if matcher is None:
            matcher = self._compiled(asked)
        with self._lock:
            self._kept[grammar] = matcher
            self._kept.move_to_end(grammar)
            if len(self._kept) > _N_KEPT:
                self._kept.popitem(last=False)
        own = [w for _, settled in asked.schemas for w in settled.warnings]
        # of keywords llguidance's own have no place, and those that it does not know are out already
        return Constraint(matcher, tuple(own + list(dict.fromkeys(matcher.get_grammar_warnings()))))

    def _compiled(self, asked: Written) -> LLMatcher:
        try:
            self._checker.check(asked.source)
        except GrammarError as e:
            raise self._placed(e, asked) from None
        matcher = LLMatcher(self._tokenizer, asked.source, log_level=0, limits=check.limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the copies need not begin with it
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            raise GrammarError(_UNUSABLE + (_plain(matcher.get_error()) or _NOTHING))
        return matcher

    def _placed(self, error: GrammarError, asked: Written) -> GrammarError:
        """The same error with the place in the schema: the innermost of its schemas that has it by itself."""
        _, found, reason = str(error).partition(_OF_A_SCHEMA)
        if not found:
            return error
        tries = 0
        for part, settled in asked.schemas:
            definitions: dict[str, Any] = {
                k: settled.root[k] for k in ("$schema", "$defs", "definitions") if k in settled.root
            }
            for path, node in sorted(settled.places.items(), key=lambda place: -place[0].count("/")):
                tries += 1
                if tries > _MAX_TRIES:
                    return unusable(part, reason)
                try:
                    self._checker.check(f"{LARK} {{}}\nstart: {json_rule({**definitions, **node}, part)}")
                except GrammarError as e:
                    if str(e).endswith(found + reason):
                        return unusable(part, f"{reason}, at {path or '/'}")
        return error

    def close(self) -> None:
        """End the process that grammars are tried in."""
        self._checker.close()


class _Checker:
    """The process of `check`, started with the first grammar and again whenever a grammar has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def check(self, grammar: str) -> None:
        """GrammarError if the grammar does not compile, or takes too much."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._reap()
                command = [sys.executable, str(Path(check.__file__).resolve())]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(grammar).encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = b""
            if not answer:
                code = process.wait()
                log.info("a grammar was refused: its compilation ended with %d", code)
                raise GrammarError(f"{_UNUSABLE}{_DEATHS.get(-code, 'it takes too much memory')}")
        error = _plain(json.loads(answer))
        if error:
            raise GrammarError(_UNUSABLE + error)

    def close(self) -> None:
        """End the process; whoever waits for it gets an error."""
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_DEATHS = {
    int(signal.SIGPROF): f"it takes more than {check.MAX_SECONDS:g} seconds to compile",
    int(signal.SIGSEGV): "it is nested too deeply, or refers in too long a chain",
    int(signal.SIGBUS): "it is nested too deeply, or refers in too long a chain",
}
