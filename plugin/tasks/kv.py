"""Key-value retrieval as published by Liu et al., "Lost in the Middle" (2023): prompts, metric, data.

Two protocols, never mixed in one table:

published  the gold pair is moved to each depth, as the authors' script does; another JSON for each depth
           metric: the value stands in the first 100 tokens of the answer
shared     the JSON stays as it is and the key that stands at each depth is asked; one prefill serves all depths
           metric: the first value that the model says is the right one
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropebend.tasks.json_lines import read_json_lines
from ropebend.tasks.length import FilledTask
from ropebend.tasks.task import DEPTHS, Item, Question

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """One JSON object: `pairs` in order, and the index of the pair that the published data ask for."""

    pairs: Pairs
    gold: int = 0


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
        out.append(Question(depth, prompt(pairs, key), (value,), asked=key))
    return out


def uuid4(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def generate(n_pairs: int, i: int, seed: int | str) -> Sample:
    """Sample number i of `n_pairs` uuid4 pairs; depends on the seed and i alone."""
    rng = random.Random(f"kv-{seed}-{i}")
    ids = [uuid4(rng) for _ in range(2 * n_pairs)]
    return Sample(tuple(zip(ids[::2], ids[1::2], strict=True)), rng.randrange(n_pairs))


def read_published(path: str | Path) -> list[Sample]:
    """Samples from a file of the authors' format (JSON lines, plain or gzip).  Raises RopebendError naming the line."""
    return read_json_lines(path, _parse, "an object with ordered_kv_records [[key, value], …], key and value")


def _parse(data: dict[str, Any]) -> Sample:
    pairs = tuple((str(k), str(v)) for k, v in data["ordered_kv_records"])
    return Sample(pairs, pairs.index((data["key"], data["value"])))


class KVRetrieval(FilledTask):
    """Key-value retrieval on generated JSON objects, or on those of a file of the published format (arXiv 2307.03172).

    keys      pairs per object, 75 if nothing is said; or
    length    tokens that the prompt may have, which decides the number of pairs
    depths    of the questions: 0 is the first pair, 1 the last
    protocol  "shared" or "published", see above in this module
    data      a file of the authors' format, JSON lines, plain or gzip

    Raises UsageError for options that contradict each other, RopebendError for a file that cannot be read.
    """

    name = "kv"

    def __init__(
        self,
        *,
        keys: int | None = None,
        length: int | None = None,
        depths: Sequence[float] = DEPTHS,
        protocol: str = "shared",
        seed: int | str = 1,
        data: str | Path | None = None,
    ):
        super().__init__()
        self.check_protocol(protocol)
        self.check_size("--keys", keys, length, data)
        self.depths = tuple(depths)
        self.protocol, self.seed, self.data = protocol, seed, data
        if protocol == "shared":
            self.value_form, self.max_answer_tokens = UUID, None
        self._samples = read_published(data) if data is not None else None
        if self._samples is not None:
            self.n_items, self.n_units = len(self._samples), len(self._samples[0].pairs)
        elif length is None:
            self.n_units = 75 if keys is None else keys
        else:
            self.length = length

    @property
    def keys(self) -> int | None:
        """Pairs per object (of the first one in a file); None where the length decides."""
        return self.n_units

    def build(self, i: int, n: int) -> Item:
        """The questions about JSON object number i, with n pairs unless it comes from a file."""
        sample = self._samples[i] if self._samples is not None else generate(n, i, self.seed)
        return Item(tuple(questions(sample, self.depths, self.protocol)))

    def easy_item(self, i: int) -> Item:
        """Three pairs."""
        return Item(tuple(questions(generate(3, i, 0), (0.0, 1.0))))

    def config(self) -> dict[str, Any]:
        """Keys or length, protocol, depths, seed or file."""
        size = {"keys": self.keys} if self.length is None else {"length": self.length}
        source = {"seed": self.seed} if self.data is None else {"data": str(self.data)}
        return {
            "name": self.name,
            **self.chat_config,
            **size,
            "protocol": self.protocol,
            "depths": list(self.depths),
            **source,
        }
