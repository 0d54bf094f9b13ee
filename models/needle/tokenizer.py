"""The vocabulary of `needle`: greedy longest match over bytes, hex pairs and common words.

llama.cpp calls this kind of tokeniser "rwkv" (``llm_tokenizer_rwkv``): at each position it takes the longest
token that matches.  All 256 bytes are tokens, so any UTF-8 round-trips; all 256 hex pairs with and without a
leading dash are tokens, so a UUID is always exactly 16 tokens, aligned the same way every time.
"""

from __future__ import annotations

import re
from collections import Counter

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CONTROL = [END, USER, ASSISTANT, SYSTEM]

#: JSON punctuation that the published key-value prompt repeats for every record.
STRUCTURE = ['{"', '": "', '",\n "', '"}', '"\n', ' "', "\n\n"]

_HEX = set(b"0123456789abcdef-")


def _splits_a_uuid(piece: bytes) -> bool:
    """True if longest match could prefer `piece` to a hex pair inside or at the end of a UUID."""
    return piece[0] in _HEX and all(c in _HEX or c == ord('"') for c in piece)


class Tokenizer:
    """Greedy longest match.  ``pieces[i]`` is the byte string of token i; control tokens come first."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces
        self.index = {piece: i for i, piece in enumerate(pieces)}
        if len(self.index) != len(pieces):
            raise ValueError("duplicate pieces in the vocabulary")
        self.longest = max(map(len, pieces))

    @classmethod
    def build(cls, text: str, prompt: str, n_words: int = 700) -> Tokenizer:
        """Derive the vocabulary from training text (words) and the task prompt (every word of it)."""
        pieces = [t.encode() for t in CONTROL] + [bytes([b]) for b in range(256)]
        pairs = [b"%02x" % b for b in range(256)]
        pieces += pairs + [b"-" + p for p in pairs] + [s.encode() for s in STRUCTURE]
        words = Counter(w for w in re.findall(r" ?[A-Za-z]+", text))
        ranked = sorted(words, key=lambda w: (-words[w] * (len(w) - 1), w))
        wanted = [*dict.fromkeys(re.findall(r" ?[A-Za-z]+", prompt)), *ranked]
        seen = set(pieces)
        for word in wanted:
            piece = word.encode()
            if len(piece) > 1 and piece not in seen and not _splits_a_uuid(piece):
                pieces.append(piece)
                seen.add(piece)
            if len(seen) == 4 + 256 + 512 + len(STRUCTURE) + n_words:
                break
        return cls(pieces)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`."""
        data, out, i = text.encode(), [], 0
        while i < len(data):
            for n in range(min(self.longest, len(data) - i), 0, -1):
                token = self.index.get(data[i : i + n])
                if token is not None:
                    out.append(token)
                    i += n
                    break
        return out

    def decode(self, tokens: list[int]) -> str:
        """Text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[t] for t in tokens).decode(errors="replace")

    def gguf_texts(self) -> list[bytes]:
        """Token texts in the escaped form that ``llama_unescape_rwkv_token`` reads."""
        escaped = []
        for piece in self.pieces:
            out = b""
            for b in piece:
                if b == 0x5C:
                    out += b"\\\\"
                elif 0x20 <= b < 0x7F:
                    out += bytes([b])
                else:
                    out += b"\\x%02x" % b
            escaped.append(out)
        return escaped
