"""Words that flags, files and functions choose from: here, so that --help does not import what they stand for."""

from __future__ import annotations

from typing import Literal, get_args

MethodName = Literal["none", "linear", "ntk", "dynamic-ntk", "yarn"]
StretchName = Literal["linear", "ntk", "dynamic-ntk", "yarn"]

#: How tasks place their answers, see docs/tasks.md.
ProtocolName = Literal["shared", "published"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

# ---- of a search, see `ropebend.search.spec`

SearchMethodName = Literal["auto", "none", "linear", "ntk", "dynamic-ntk", "yarn"]
GenomeName = Literal["bezier", "line", "uniform", "knots", "free"]
OptimiserName = Literal["cma", "ga", "random"]
NumbersName = Literal["both", "scale", "attn"]
ExecutorName = Literal["local", "ray"]
OpenName = Literal["controls", "screen", "finals", "test"]

CONTROLS = ("uniform", "attn", "scales", "line", "free", "random")
USUAL_CONTROLS = ("uniform", "scales")
