"""What the texts of a request must follow."""

from __future__ import annotations

from typing import Any

from ropebend.errors import RopebendError
from ropebend.server.engine import Engine, Unavailable
from ropebend.server.openai.errors import ApiError
from ropebend.server.structured.constraints import Constraint
from ropebend.server.structured.parts import Grammar, Json, Part

#: Header with what was left out of a schema that came with "strict": false.
WARNING_HEADER = "X-Ropebend-Warning"


def compiled(part: Part | Grammar, param: str, engine: Engine) -> Constraint:
    """Blocks.  ApiError 400 with the reason if it cannot be used."""
    try:
        return engine.compile(part)
    except Unavailable:
        raise
    except (RopebendError, UnicodeEncodeError) as e:
        raise ApiError(400, f"{param}: {e}", param=param, code="invalid_value") from None


def of_body(grammar: str | None, json_schema: dict[str, Any] | None, engine: Engine) -> Constraint | None:
    """What the parameters of these names say, of which all endpoints have one; an empty grammar is none."""
    if grammar and json_schema is not None:
        raise ApiError(400, "grammar and json_schema: expected only one of them", param="json_schema")
    if json_schema is not None:
        return compiled(Json(json_schema), "json_schema", engine)
    return compiled(Grammar(grammar), "grammar", engine) if grammar else None


def headers_of(constraint: Constraint | None) -> dict[str, str]:
    """Headers of an answer that follows this."""
    if constraint is None or not constraint.warnings:
        return {}
    return {WARNING_HEADER: "; ".join(constraint.warnings).encode("ascii", "backslashreplace").decode()[:2000]}
