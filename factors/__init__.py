"""Ready factors for public models: what `ropebend search` found, judged on items that no search has seen.

Each file of this folder is a factors.json of format 2 whose provenance names its model: the name, the quantisation and
the digest of the tensors.  Only a GGUF with these very tensors gets them: whether they carry over to another
quantisation must be measured (docs/results).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import RopebendError
from ropebend.scaling import LayerScaling
from ropebend.shell import command

AUTO = "auto"  # the word for "those that fit the model"
FOLDER = Path(str(resources.files(__name__)))


@dataclass(frozen=True)
class ReadyFactors:
    """One file of this folder."""

    path: Path
    scaling: LayerScaling

    @property
    def model(self) -> str:
        """The model's name and quantisation."""
        model = self.scaling.provenance["model"]
        return f"{model['name']}, {model['quantisation']}"

    @property
    def tensors(self) -> str:
        """The digest of the tensors that they were found on (`GgufFile.tensors_digest`)."""
        return str(self.scaling.provenance["model"]["tensors"])

    @property
    def n_ctx(self) -> int:
        """Tokens of the sequences that they were judged on."""
        return int(self.scaling.provenance["n_ctx"])

    @property
    def figures(self) -> str:
        """What was measured on unseen items, unscaled and with these."""
        task = self.scaling.provenance["tasks"][0]["name"]
        test = self.scaling.provenance["scores"]["test"]
        unscaled, *_, best = (by_task[task] for by_task in test.values())
        return f"{task} {unscaled:.1%} unscaled, {best:.1%} with them"

    def fits(self, file: GgufFile) -> bool:
        """True if the file holds the model that they were found on, whatever its metadata say."""
        n_bytes = file.data[1] - file.data[0]  # spares most files the reading
        return n_bytes == self.scaling.provenance["model"]["bytes"] and file.tensors_digest() == self.tensors


def ready() -> list[ReadyFactors]:
    """All files of this folder, by name."""
    return [ReadyFactors(path, LayerScaling.load(path)) for path in sorted(FOLDER.glob("*.json"))]


def find(file: GgufFile) -> ReadyFactors | None:
    """Those for this model, None if there are none."""
    return next((one for one in ready() if one.fits(file)), None)


def fitting(model: str | Path) -> ReadyFactors:
    """Those for the model in this file.  Raises RopebendError if there are none, and says what to do."""
    with GgufFile(Path(model)) as file:
        found = find(file)
    if found is None:
        raise RopebendError(
            f"{model}: there are no ready factors for this model (`ropebend factors` lists what there is); find some: "
            f"{command('ropebend', 'tune', model)}"
        )
    return found


def resolve(factors: str | Path, model: str | Path) -> Path:
    """The file that is meant by the word "auto", or else the path as it was given."""
    return fitting(model).path if str(factors) == AUTO and not Path(factors).exists() else Path(factors)


def in_words(words: Sequence[str], model: str | Path) -> list[str]:
    """FACTORS and FACTORS@TOKENS as the command line takes them, the word "auto" replaced by the file it means."""

    def one(word: str) -> str:
        name, at, length = word.partition("@")
        return f"{resolve(AUTO, model)}{at}{length}" if name == AUTO and not Path(word).exists() else word

    return [one(word) for word in words]
