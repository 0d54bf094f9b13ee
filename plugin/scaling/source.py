"""Which scales a model runs under, as the flags of a command say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ropebend.errors import UsageError
from ropebend.scaling import LayerScaling
from ropebend.scaling.stretch import plain_stretch


@dataclass(frozen=True)
class ScaleSource:
    """Where the scales come from; as it is: from the model's file, if that has any.

    factors        a factors.json instead
    scale          every layer by this instead
    method, factor an extension method instead, with `scale` on top of it if that is given
    no_scaling     no scales, whatever the file says

    Raises UsageError for what contradicts itself.
    """

    factors: Path | None = None
    scale: float | None = None
    method: str | None = None
    factor: float | None = None
    no_scaling: bool = False

    def __post_init__(self) -> None:
        kinds = ["--factors"] * (self.factors is not None) + self._plain_flags[:1] + ["--no-scaling"] * self.no_scaling
        if len(kinds) > 1:
            raise UsageError(f"{kinds[0]} and {kinds[1]} contradict each other: leave one of them out")
        self.plain(1)  # finds what is wrong in them before a model is loaded

    @property
    def _plain_flags(self) -> list[str]:
        given = (("--method", self.method), ("--factor", self.factor), ("--scale", self.scale))
        return [f"{flag} {_word(value)}" for flag, value in given if value is not None]

    def plain(self, n_layer: int, architecture: str | None = None) -> LayerScaling | None:
        """The scales that --scale, --method and --factor stand for; None if none of them is given."""
        return plain_stretch(n_layer, architecture, scale=self.scale, method=self.method, factor=self.factor)

    @property
    def label(self) -> str:
        """A word for file names, "" for the scales in the model's file."""
        if self.no_scaling:
            return "unscaled"
        if self.factors is not None:
            return self.factors.stem
        given = (("", self.method), ("x", self.factor), ("scale", self.scale))
        return "-".join(word + _word(value) for word, value in given if value is not None)

    def __str__(self) -> str:
        """As the flags were, or "the model file"."""
        return str(self.factors) if self.factors is not None else " ".join(self._plain_flags) or "the model file"


def _word(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
