#!/usr/bin/env python3
"""What it takes to hold texts to a schema: speed and shares of a step, of texts that are held and that are not.

bench/structured.py MODEL.gguf --slots 16 --tokens 64
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from ropebend.runtime import Runtime
from ropebend.server.engine import Completed, Engine, EngineOptions, Failed, Generation, Sampling
from ropebend.server.structured.parts import Grammar, Json, Part

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 20, "maxLength": 400},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z ]{2,40}$"}, "minItems": 8},
        "score": {"type": "number", "minimum": 0, "maximum": 10},
    },
    "required": ["name", "tags", "score"],
}
# from llama.cpp's grammars/json.gbnf
GBNF = r"""
root   ::= "{" ws string ":" ws value ("," ws string ":" ws value){8,} "}"
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    n_cells = a.slots * (a.tokens + 64)
    options = EngineOptions(
        a.model, n_slots=a.slots, n_cells=n_cells, n_ctx=n_cells, runtime=Runtime(n_threads=a.threads)
    )
    engine = Engine(options)
    engine.start()
    while engine.facts is None:
        if engine.failure is not None:
            raise SystemExit(engine.failure)
        time.sleep(0.05)
    kinds: dict[str, Part | Grammar | None] = {"free": None, "schema": Json(SCHEMA), "GBNF": Grammar(GBNF)}
    total: dict[tuple[str, float], list[float]] = {}
    for _ in range(a.rounds):
        for name, part in kinds.items():
            for temperature in (0.0, 1.0):
                got = total.setdefault((name, temperature), [0.0] * 5)
                for i, x in enumerate(measured(engine, part, temperature, a.slots, a.tokens)):
                    got[i] += x
    print("text     temperature  tokens/s   ms a step   sampling   the rest outside llama.cpp")
    for (name, temperature), (seconds, decode, sample, steps, tokens) in total.items():
        rest = seconds - decode - sample
        print(
            f"{name:8} {temperature:11.0f} {tokens / seconds:9.0f} {1e3 * seconds / steps:11.2f} "
            f"{100 * sample / seconds:8.1f} % {100 * rest / seconds:8.1f} %"
        )
    engine.stop(5)


def measured(engine: Engine, part: Part | Grammar | None, temperature: float, slots: int, tokens: int) -> list[float]:
    """Seconds of steps, of decodes and of sampling, steps, and tokens."""
    constraint = None if part is None else engine.compile(part)
    prompt = engine.tokenize("A short list of facts, as JSON:\n")
    wanted = [
        Generation(prompt, tokens, Sampling(temperature=temperature, seed=i, constraint=constraint))
        for i in range(slots)
    ]
    before, ended, failures = dataclasses.replace(engine.step_stats), threading.Event(), []

    def on_event(event: Any) -> None:
        if isinstance(event, Failed):
            failures.append(event.error)
        if isinstance(event, Completed | Failed):
            ended.set()

    engine.submit(wanted, on_event)
    ended.wait()
    if failures:
        raise SystemExit(str(failures[0]))
    s = engine.step_stats
    names = ("seconds", "decode_seconds", "sample_seconds", "steps", "generated_tokens")
    return [getattr(s, n) - getattr(before, n) for n in names]


if __name__ == "__main__":
    main()
