"""Key-value retrieval as published by Liu et al., "Lost in the Middle" (2023): prompts, metric, data.

Two protocols, never mixed in one table:

published  the gold pair is moved to each depth, as the authors' script does; another JSON for each depth
shared     the JSON stays as it is and the key that stands at each depth is asked; one prefill serves all depths
"""

from __future__ import annotations

import gzip
import json
import random
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.errors import RopebendError

PROTOCOLS = ("shared", "published")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """One JSON object: `pairs` in order, and the index of the pair that the published data ask for."""

    pairs: Pairs
    gold: int = 0


@dataclass(frozen=True)
class Question:
    """One prompt and the value that answers it."""

    depth: float
    prompt: str
    value: str


def prompt(pairs: Pairs, key: str) -> str:
    """The published prompt; it ends "Corresponding value:" without a space."""
    records = ",\n ".join(f'"{k}": "{v}"' for k, v in pairs)
    return (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{{{records}}}\n\nKey: "{key}"\nCorresponding value:'
    )


def questions(sample: Sample, depths: Sequence[float], protocol: str = "shared") -> list[Question]:
    """The questions about one sample, one per depth; depth 0 is the first pair, 1 the last."""
    out = []
    last = len(sample.pairs) - 1
    for depth in depths:
        index = round(depth * last)
        pairs = sample.pairs
        if protocol == "published":
            gold = pairs[sample.gold]
            others = pairs[: sample.gold] + pairs[sample.gold + 1 :]
            pairs = (*others[:index], gold, *others[index:])
        key, value = pairs[index]
        out.append(Question(depth, prompt(pairs, key), value))
    return out


def contains(answer: str, value: str) -> bool:
    """The published metric: the lower-cased value is a substring of the lower-cased answer."""
    return value.lower() in answer.lower()


def generate(n_pairs: int, n_samples: int, seed: int | str) -> list[Sample]:
    """Samples of `n_pairs` uuid4 pairs.  Sample i depends on the seed and i alone, so a longer list starts alike."""
    out = []
    for i in range(n_samples):
        rng = random.Random(f"kv-{seed}-{i}")
        ids = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2 * n_pairs)]
        out.append(Sample(tuple(zip(ids[::2], ids[1::2], strict=True)), rng.randrange(n_pairs)))
    return out


def read_published(path: str | Path, n_samples: int | None = None) -> list[Sample]:
    """Samples from a file of the authors' format (JSON lines, plain or gzip).

    Raises RopebendError naming the file, the line and what was expected.
    """
    out: list[Sample] = []
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if n_samples is not None and len(out) == n_samples:
                    break
                if line.strip():
                    try:
                        out.append(_parse(json.loads(line)))
                    except (ValueError, KeyError, TypeError) as e:
                        raise RopebendError(
                            f"{path}: line {number}: expected an object with ordered_kv_records "
                            f"[[key, value], …], key and value ({type(e).__name__}: {e})"
                        ) from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise RopebendError(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    if n_samples is not None and len(out) < n_samples:
        raise RopebendError(f"{path}: {n_samples} samples wanted, the file has {len(out)}")
    return out


def _parse(data: dict[str, Any]) -> Sample:
    pairs = tuple((str(k), str(v)) for k, v in data["ordered_kv_records"])
    return Sample(pairs, pairs.index((data["key"], data["value"])))
