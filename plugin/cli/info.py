"""`ropebend info`: what a GGUF is, what its rope does, whether it can be scaled, and what to type next."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from gguf import LlamaFileType
from typing_extensions import Self

from ropebend.convert.gguf_file import GgufFile
from ropebend.errors import FileError, RopebendError
from ropebend.factors import AUTO, ReadyFactors, find
from ropebend.model_info import NOT_MODELS
from ropebend.scaling import LayerScaling
from ropebend.scaling.rope_method import OWN_METHODS
from ropebend.scaling.stretch import doubts
from ropebend.shell import command

PREFILL, DECODED = 256, 16  # tokens of the speed measurement


def info(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any GGUF file.", show_default=False)],
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Load the model and measure a few seconds.")] = True,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="CPU threads of that; 0: all.")] = 0,
) -> None:
    """Say what a GGUF is, what its rope does, whether layer scales fit it, how fast it runs, and what to do next."""
    with Sheet.open(model) as sheet:
        print(sheet.text(), flush=True)
        if sheet.scaling is not None:
            for text in doubts(sheet.scaling, sheet.n_ctx_train):
                print(f"note         {text}")
        obstacle, n_ctx_train = sheet.obstacle, sheet.n_ctx_train
        known = sheet.ready_factors()
        if known is not None:
            print(f"ready scales {known.figures}, up to {known.n_ctx:,} tokens", flush=True)
    if speed and obstacle is None:
        print(f"speed        {measure_speed(model, threads)}", flush=True)
    print()
    for what, line in next_steps(model, obstacle, sheet.scaling, n_ctx_train, ready=known is not None):
        print(f"{what + ':':<12} {line}")


class Sheet:
    """Facts of one open GGUF; nothing is computed."""

    def __init__(self, file: GgufFile):
        self._file = file
        self.path = file.path
        self.architecture = self._text("general.architecture") or "?"
        self.scaling: LayerScaling | None = None
        self.obstacle = self._read_scaling()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises FileError if this is no GGUF."""
        return cls(GgufFile(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _get(self, key: str) -> Any:
        try:
            return self._file.value(key)
        except FileError:
            return None  # a type that says nothing here

    def _own(self, key: str) -> Any:
        return self._get(f"{self.architecture}.{key}")

    def _text(self, key: str) -> str:
        value = self._get(key)
        return " ".join(value.split()) if isinstance(value, str) else ""

    def _count(self, key: str) -> int | None:
        value = self._own(key)
        return value if type(value) is int and value > 0 else None

    @property
    def n_ctx_train(self) -> int | None:
        """Tokens it was trained at, None if the file does not say."""
        return self._count("context_length")

    def _read_scaling(self) -> str | None:
        """Read the scales; returns why no scales can be applied to this file, None if they can."""
        kind = self._get("general.type")
        if kind not in (None, "model"):
            return f"it is of type {kind!r:.40}{NOT_MODELS.get(kind, '') if isinstance(kind, str) else ''}"
        n_layer = self._count("block_count")
        number, of = self._get("split.no"), self._get("split.count")
        if type(number) is int and type(of) is int and number > 0:
            return f"it is part {number + 1} of {of}: the first part has the metadata"
        fields = {k: self._get(k) for k in self._file.pairs if k.startswith("ropebend.")}
        own = str(self._own("rope.scaling.type") or "none")
        try:
            LayerScaling.uniform(1.0, n_layer or 1).check_model(n_layer or 1, self.architecture, own)
            if n_layer is None:
                return f"{self.architecture}.block_count is missing: not a model?"
            self.scaling = LayerScaling.from_metadata(
                {**fields, f"{self.architecture}.rope.scaling.type": own}, self.architecture, n_layer
            )
        except RopebendError as e:
            return str(e)
        return None

    def ready_factors(self) -> ReadyFactors | None:
        """Those that come with ropebend for this model, if it has no scales yet."""
        return find(self._file) if self.obstacle is None and self.scaling is None else None

    # ---- as lines

    def text(self) -> str:
        """A line per fact: the label, then what is known."""
        return "\n".join(f"{label:<12} {text}" for label, text in self.lines() if text)

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of every fact, empty where nothing is known."""
        template = self._text("tokenizer.chat_template")
        n = self.n_ctx_train
        can = "no: " + self.obstacle if self.obstacle else "yes"
        scaling = "" if self.obstacle else str(self.scaling) if self.scaling is not None else "none in the file"
        return [
            ("model", f"{self.path}: {self._text('general.name') or self.path.stem}"),
            ("", ""),
            ("kind", self._kind()),
            ("trained at", f"{n:,} tokens" if n else "the file does not say"),
            ("rope", self._rope()),
            ("windows", self._windows()),
            ("chat", self._chat(template)),
            ("scalable", can),
            ("scales", scaling),
        ]

    def _kind(self) -> str:
        layers, width = self._count("block_count"), self._count("embedding_length")
        size = self._text("general.size_label")
        known = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType}
        quantisation = (
            known.get(self._get("general.file_type"), "") if type(self._get("general.file_type")) is int else ""
        )
        parts = [self.architecture, size, f"{layers} layers" if layers else "", f"width {width}" if width else ""]
        return ", ".join(filter(None, [*parts, quantisation, _bytes(self._file.size)]))

    def _rope(self) -> str:
        base = self._own("rope.freq_base")
        parts = [f"base {base if type(base) in (int, float) else 10000:,.0f}"]
        kind = str(self._own("rope.scaling.type") or "none")
        if kind != "none":
            factor, original = self._own("rope.scaling.factor"), self._count("rope.scaling.original_context_length")
            name = OWN_METHODS.get(kind, kind)
            parts.append(
                name + (f" ×{factor:g}" if type(factor) is float else "") + (f" from {original}" if original else "")
            )
        heads = self._count("attention.head_count")
        width = self._count("attention.key_length") or (
            (self._count("embedding_length") or 0) // heads if heads else None
        )
        rotated = self._count("rope.dimension_count")
        if rotated and width and rotated < width:
            parts.append(f"{rotated} of {width} dimensions rotated (partial)")
        if self._file.rope_tensors:
            parts.append(f"frequency factors ({', '.join(self._file.rope_tensors)})")
        if self._own("rope.dimension_sections"):
            parts.append("positions of several parts (M-RoPE): no context shift")
        return ", ".join(parts)

    def _windows(self) -> str:
        window = self._count("attention.sliding_window")
        if not window:
            return ""
        base = self._own("rope.freq_base_swa")
        return f"some layers look back {window:,} tokens only" + (
            f", with rope base {base:,.0f}" if type(base) is float else ""
        )

    def _chat(self, template: str) -> str:
        if not template:
            return "no template: a base model, or a plain completion model"
        tools = re.search(r"\btools\b", template)
        return "has a template" + (", knows tools" if tools else ", knows no tools")


def _bytes(n: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n / 1024:.0f} KiB"


def measure_speed(model: Path, threads: int) -> str:
    """Prefill and decode in tokens per second, unscaled; why not where llama.cpp cannot run it."""
    from ropebend.context import Context
    from ropebend.model import Model

    try:
        with Model(model) as loaded:
            n_ctx = min(512, max(loaded.info.n_ctx_train, 64))
            n = min(PREFILL, n_ctx - DECODED - 1)
            with Context(loaded, n_ctx=n_ctx, n_threads=threads, scaling=None) as context:
                token = max(loaded.bos_token, 0)
                begun = time.perf_counter()
                context.decode([token] * n, 0)
                prefilled = time.perf_counter()
                for i in range(DECODED):
                    context.decode([token], n + i)
                done = time.perf_counter()
    except RopebendError as e:
        return f"not measured: {e}"
    return f"{n / (prefilled - begun):,.0f} tokens/s prefill, {DECODED / (done - prefilled):,.0f} tokens/s generating"


def next_steps(
    model: Path,
    obstacle: str | None,
    scaling: LayerScaling | None,
    n_ctx_train: int | None = None,
    *,
    ready: bool = False,
) -> list[tuple[str, str]]:
    """What to type next: label and command."""
    ctx = min(2 * n_ctx_train, 16384) if n_ctx_train else 16384
    if obstacle is not None:
        return []
    if scaling is not None:
        return [
            ("try it", command("ropebend", "chat", model)),
            ("serve it", command("ropebend", "serve", model)),
            ("the scales", command("ropebend", "show", model)),
        ]
    add = [("take those", command("ropebend", "add-scales", model, AUTO))] if ready else []
    flags = ("--factors", AUTO) if ready else ()
    return [
        *add,
        ("measure it", command("ropebend", "eval", model)),
        ("find scales", command("ropebend", "tune", model, "--ctx", ctx)),
        ("serve it", command("ropebend", "serve", model, *flags)),
    ]
