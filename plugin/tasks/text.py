"""Running text: reading it, and predicting it in windows (perplexity)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError, UsageError
from ropebend.tasks.task import TextTask, Tokenize


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, plain or gzip.  Raises RopebendError naming the file."""
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
            text = f.read()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise RopebendError(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    if not text.strip():
        raise RopebendError(f"{path}: expected text, the file is empty")
    return text


class Perplexity(TextTask):
    """Perplexity of a text in windows of `length` tokens, as ``llama-perplexity -c length`` cuts and scores them.

    text  a UTF-8 file, plain or gzip

    Raises UsageError for a length below 8, RopebendError for a text that cannot be read; `prepare` if it does not fill
    one window.
    """

    name = "perplexity"

    def __init__(self, *, text: str | Path, length: int = 4096):
        if length < 8:
            raise UsageError(f"perplexity: expected a length of at least 8 tokens, got {length}")
        self.text, self.length = text, length
        self._content = read_text(text)  # at once: a worker that gets this task needs no file
        self._tokens: list[int] = []

    def prepare(self, tokenize: Tokenize) -> None:
        """Tokenise the text once.  Raises RopebendError if it does not fill one window."""
        self._tokens = tokenize(self._content)
        self.n_items = len(self._tokens) // self.length
        if self.n_items < 1:
            raise RopebendError(f"{self.text}: {len(self._tokens)} tokens do not fill a window of {self.length}")

    def window(self, i: int) -> Sequence[int]:
        """Tokens [i * length, (i + 1) * length)."""
        return self._tokens[i * self.length : (i + 1) * self.length]

    def config(self) -> dict[str, Any]:
        """Text and length."""
        return {"name": self.name, "text": str(self.text), "length": self.length}
