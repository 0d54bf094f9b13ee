"""How benchmarks say what they found: ratios with their spread, and generated tables in pages of docs/."""

from pathlib import Path

import numpy as np
import numpy.typing as npt


def spread(ratios: npt.NDArray[np.float64], digits: int = 2) -> str:
    """Median of the rounds' ratios, with its quartiles."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} (quartiles {low:.{digits}f} to {high:.{digits}f})"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def write(page: Path, script: str, lines: list[str]) -> None:
    """Replace what stands below the script's mark in `page`: above it is what a person wrote."""
    mark = f"<!-- the rest is written by bench/{script} -->"
    text = page.read_text(encoding="utf-8") if page.exists() else mark
    page.write_text(text[: text.index(mark)] + "\n".join([mark, "", *lines, ""]), encoding="utf-8")
