"""GBNF grammars from JSON schemas, by llama-cpp-python's converter."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from ropebend.errors import RopebendError


def from_schema(schema: dict[str, Any]) -> str:
    """A grammar for JSON that follows `schema`.  RopebendError if the schema is wrong or uses what GBNF cannot say."""
    try:
        return str(json_schema_to_gbnf(json.dumps(schema)))
    except RecursionError:
        raise RopebendError("the JSON schema is nested too deeply") from None
    except Exception as e:  # the converter asserts, indexes and raises in its own ways
        raise RopebendError(f"the JSON schema cannot be used: {type(e).__name__}: {e}"[:300]) from None


def any_object() -> str:
    """A grammar for any JSON object."""
    return from_schema({"type": "object"})


def tool_calls(functions: Sequence[tuple[str, dict[str, Any] | None]], tags: tuple[str, str], several: bool) -> str:
    """A grammar for calls ``{"name": …, "arguments": …}`` of these functions (name, schema of its arguments).

    tags: what stands before and after each call; several: more than one call may follow (needs tags).
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": schema or {"type": "object"}},
            "required": ["name", "arguments"],
        }
        for name, schema in functions
    ]
    call = from_schema(calls[0] if len(calls) == 1 else {"anyOf": calls})
    call = re.sub(r"(?m)^root ::=", "call ::=", call)
    before, after = (json.dumps(tag) for tag in tags)
    root = f"root ::= {before} call {after}" if tags[0] else "root ::= call"
    if several and tags[0]:
        root += f' ("\\n" {before} call {after})*'
    return f"{root}\n{call}"
