"""`TextStream`: the bytes of generated tokens in, text that is safe to send out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes UTF-8 across token borders and watches for stop strings.

    What `feed` returns is final: it never holds part of a character, nor text that may turn out to be the beginning
    of a stop string.  However the bytes are split over calls, the pieces join to the same text.  Hidden bytes, the
    names of control tokens, take part in stop strings and are not returned.

    stopped    True once a stop string was found; it and what follows is dropped
    stopped_by  that stop string
    n_decoded  characters decoded so far, sent or held back
    n_sent     characters returned so far
    """

    def __init__(self, stop: Sequence[str] = ()):
        # Bytes that are not UTF-8 become U+FFFD, as in `Model.detokenize`.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self._hidden = bytearray()  # for each held character, 1 if it is not to be returned
        self.stopped = False
        self.stopped_by = ""
        self.n_decoded = 0
        self.n_sent = 0

    def feed(self, data: bytes, *, final: bool = False, hidden: bool = False) -> str:
        """Add bytes and return the text that is now certain; with `final` everything that is left."""
        if self.stopped:
            return ""
        if hidden:  # a whole name; half a character before it goes on after it
            decoded = data.decode(errors="replace")
        else:
            decoded = self._decoder.decode(data, final)
            self.n_decoded += len(decoded)
        self._held += decoded
        self._hidden += bytes([hidden]) * len(decoded)
        # The match that ends first wins: that is the one a character-by-character reader would see.
        hits = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if hits:
            self.stopped = True
            end, cut = min(hits)
            self.stopped_by = self._held[cut:end]
        else:
            cut = len(self._held) if final else len(self._held) - self._n_suspect()
        out, self._held = self._held[:cut], self._held[cut:]
        hidden_out, self._hidden = self._hidden[:cut], self._hidden[cut:]
        if any(hidden_out):
            out = "".join(c for c, h in zip(out, hidden_out, strict=True) if not h)
        self.n_sent += len(out)
        return out

    def _n_suspect(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for n in range(min(len(self._held), max(map(len, self._stop), default=0)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stop):
                return n
        return 0
