#!/usr/bin/env python3
"""The official JSON Schema test suite through the masks: what is valid must be writable, what is invalid must not.

    pip download --no-deps --no-binary :all: jsonschema==4.26.0     # its source distribution has the suite
    tar xzf jsonschema-4.26.0.tar.gz
    bench/json_schema_suite.py MODEL.gguf jsonschema-4.26.0/json/tests/draft2020-12

Schemas that the server refuses are counted by what it says of them.  Of a valid object all orders of its keys are
tried, because those of the answer are the schema's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ropebend.model import Model
from ropebend.server.structured.constraints import Compiler, Constraint
from ropebend.server.structured.parts import GrammarError, Json
from ropebend.server.structured.tokens import tokenizer_of


def writings(instance: Any) -> Iterator[str]:
    """An instance as JSON, an object in up to 120 orders of its keys."""
    if not isinstance(instance, dict):
        yield json.dumps(instance, ensure_ascii=False)
        return
    for keys in itertools.islice(itertools.permutations(instance), 120):
        yield json.dumps({k: instance[k] for k in keys}, ensure_ascii=False)


def writable(model: Model, constraint: Constraint, text: str, eos: int) -> bool:
    walk = constraint.begin()
    for token in model.tokenize(text, add_special=False, parse_special=False):
        if not walk.allows(token):
            return False
        walk.accept(token)
    return walk.ended or walk.allows(eos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="GGUF with the vocabulary to write with")
    parser.add_argument("suite", type=Path, help="folder draft2020-12 of the suite")
    parser.add_argument("--optional", action="store_true", help="the optional tests, too: formats and more")
    parser.add_argument("--wrong", action="store_true", help="print every instance that went wrong")
    a = parser.parse_args()
    files = sorted(a.suite.rglob("*.json") if a.optional else a.suite.glob("*.json"))
    if not files:
        parser.error(f"{a.suite}: no *.json")
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with Model(a.model) as model:
        tokenizer = tokenizer_of(model.vocab)
        assert tokenizer is not None
        compiler, eos = Compiler(tokenizer), tokenizer.eos_tokens[0]
        for file in files:
            for group in json.loads(file.read_text()):
                counts["schemas"] += 1
                try:
                    # as the standard has it, not closed as the server takes it
                    constraint = compiler.compile(Json(group["schema"], closed=False))
                except GrammarError as e:
                    if "no text can follow" in str(e) or "Unsatisfiable" in str(e):
                        counts["schemas that nothing is valid of"] += 1
                        counts["valid"] += sum(t["valid"] for t in group["tests"])
                        counts["invalid"] += sum(not t["valid"] for t in group["tests"])
                        counts["invalid, refused"] += sum(not t["valid"] for t in group["tests"])
                        continue
                    counts["schemas refused"] += 1
                    refused[re.sub(r"^.*cannot be used: | (at|is) /.*|, at .*|'[#/].*", "", str(e))[:60]] += 1
                    continue
                for test in group["tests"]:
                    kind = "valid" if test["valid"] else "invalid"
                    ok = any(writable(model, constraint, text, eos) for text in writings(test["data"]))
                    counts[kind] += 1
                    counts["valid, accepted" if test["valid"] else "invalid, refused"] += ok is test["valid"]
                    if a.wrong and ok is not test["valid"]:
                        print(f"{kind} {json.dumps(test['data'])[:80]} of {json.dumps(group['schema'])[:200]}")
        compiler.close()
    for what in ("schemas", "schemas refused", "schemas that nothing is valid of"):
        print(f"{counts[what]:6} {what}")
    for kind, what in (("valid", "accepted"), ("invalid", "refused")):
        n, right = counts[kind], counts[f"{kind}, {what}"]
        print(f"{right:6} of {n} {kind} instances {what}: {100 * right / max(n, 1):.1f} %")
    for reason, n in refused.most_common(25):
        print(f"{n:6} schemas refused: {reason}")


if __name__ == "__main__":
    main()
