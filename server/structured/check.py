"""Compiles grammars in a process of its own, which may die of them.

llguidance has limits, but compiles with recursion: a long enough chain of references overflows the stack, which ends
the process, and some schemas take minutes.  So the server has every grammar compiled here first.  This file is run as
a script, needs nothing but llguidance and ends with its standard input.

A line in: a grammar as a JSON string.  A line out: its error as a JSON string, "" if there is none.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from contextlib import suppress

from llguidance import LLMatcher, LLParserLimits

#: CPU seconds of one grammar.
MAX_SECONDS = 2.0

#: The server's threads have more, so what compiles here compiles there.
_STACK = 2**21

_MAX_MEMORY = 2**31


def limits() -> LLParserLimits:
    """Of every grammar, here and in the server."""
    # A state takes 1 to 2 kB.  Items bound a step to some ten milliseconds; grammars of single characters need more
    # of them than the defaults.
    return LLParserLimits(
        max_lexer_states=50_000, step_max_items=200_000, max_items_in_row=20_000, verbose_errors=False
    )


def _serve() -> None:
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # SIGPROF ends the process
        error = LLMatcher.validate_grammar(json.loads(line), limits=limits())
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(error).encode() + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    """Answer until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the server's
    with suppress(OSError, ValueError):  # not every system has these
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
