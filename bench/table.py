"""Puts a generated table into a page: below the mark stands what the script writes, above it what a person wrote."""

from pathlib import Path


def write(page: Path, script: str, lines: list[str]) -> None:
    """Replace what stands below the script's mark in `page`."""
    mark = f"<!-- the rest is written by bench/{script} -->"
    text = page.read_text(encoding="utf-8") if page.exists() else mark
    page.write_text(text[: text.index(mark)] + "\n".join([mark, "", *lines, ""]), encoding="utf-8")
