"""What an answer must look like that has to call a function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ropebend.server.structured.parts import Choice, Json, Part, Seq, Several, Text

#: The name of a function, the schema of its arguments (None: it has none), and whether the schema is all to be held.
Function = tuple[str, Mapping[str, Any] | None, bool]


def forced_calls(functions: Sequence[Function], tags: tuple[str, str], several: bool) -> Part:
    """Calls ``{"name": …, "arguments": …}`` of these functions, each with arguments of its schema.

    tags: what stands before and after each call; several: more than one call may follow (needs tags)
    """
    before, after = tags
    calls = Choice(
        tuple(
            Seq(
                (
                    Text(f'{before}{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '),
                    arguments_of(name, schema, strict),
                    Text(f"}}{after}"),
                )
            )
            for name, schema, strict in functions
        )
    )
    return Several(calls, 1, None if several and before else 1, "\n")


def arguments_of(name: str, schema: Mapping[str, Any] | None, strict: bool) -> Json:
    """The arguments of the function of this name: a JSON object."""
    return Json(schema or {"type": "object", "properties": {}}, strict, f"the tool {name!r}")
