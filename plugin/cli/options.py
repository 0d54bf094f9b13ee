"""Options that several subcommands share, and how their values are read."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ropebend.choices import ProtocolName, StretchName
from ropebend.durations import read_duration
from ropebend.errors import RopebendError, UsageError
from ropebend.lengths import read_length
from ropebend.runtime import MAX_THREADS, CacheType, Runtime, SplitMode
from ropebend.scaling.source import ScaleSource


def _warn_without_gpu(n_layers: int) -> int:
    if n_layers != 0:
        import llama_cpp.llama_cpp as lib

        if not lib.llama_supports_gpu_offload():
            typer.echo("warning: this build of llama.cpp has no GPU support: --gpu-layers has no effect", err=True)
    return n_layers


def _flash_attn(text: Any) -> bool | str:
    if isinstance(text, bool):
        return text
    known: dict[str, bool | str] = {"auto": "auto"}
    known |= dict.fromkeys(("on", "1", "true", "enabled"), True)
    known |= dict.fromkeys(("off", "0", "false", "disabled"), False)
    if text not in known:
        raise typer.BadParameter(f"expected on, off or auto, got {text!r}")
    return known[text]


def read_tokens(text: str) -> int:
    try:
        return read_length(text)
    except UsageError as e:
        raise typer.BadParameter(str(e).removeprefix("length: ")) from None


ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="GGUF model file.", show_default=False)]
Task = Annotated[
    str,
    typer.Option(
        help="kv (key-value retrieval), passkey, longeval (lines), mdqa (multi-document question answering), "
        "ruler:NAME (RULER's thirteen, as ruler:niah_multikey_2, or ruler:all in eval), perplexity, "
        "or a .py file; see docs/tasks.md."
    ),
]
Keys = Annotated[
    int | None, typer.Option(min=1, help="kv: pairs per JSON object, instead of --length.", show_default="75")
]
Length = Annotated[
    int | None,
    typer.Option(
        parser=read_tokens, metavar="TOKENS",
        help="Tokens of a prompt, as 8192 or 8k: as much context as fits, never more.", show_default="4096; kv: --keys",
    ),
]  # fmt: skip
Documents = Annotated[
    int | None, typer.Option(min=1, help="mdqa: documents per question, instead of --length.", show_default="20")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", show_default=False,
        help="kv, mdqa, longeval, ruler: file of the published format (.jsonl, .jsonl.gz); ruler:qa_1, qa_2: SQuAD's, "
        "HotpotQA's.",
    ),
]  # fmt: skip
Text = Annotated[
    Path | None,
    typer.Option(
        "--text", show_default=False,
        help="Text file (plain or .gz): of perplexity, the filler of passkey, the essays of RULER's needles.",
    ),
]  # fmt: skip
TaskOption = Annotated[
    list[str] | None, typer.Option("--task-option", help="name=value for what a task has no flag for; may be repeated.")
]
DEPTHS, DEPTHS_HELP = "0,0.25,0.5,0.75,1", "Depths of the answer: 0 is first, 1 last."
Depths = Annotated[str, typer.Option(help=DEPTHS_HELP)]
Protocol = Annotated[
    ProtocolName | None,
    typer.Option(
        help="kv, longeval, ruler:niah_…: shared: ask for what stands at each depth (one prefill for all of them); "
        "published: as the authors' scripts place it.",
        show_default="shared",
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat", show_default="where easy items go better with it",
        help="Put prompts into the model's own chat template.",
    ),
]  # fmt: skip
SEED_HELP = "Seed of everything random."
Seed = Annotated[int, typer.Option(min=0, help=SEED_HELP)]

# ---- how llama.cpp runs: the names of its own programs; see `takes_runtime`

Threads = Annotated[
    int,
    typer.Option(
        "--threads", "-t", envvar=["ROPEBEND_THREADS", "LLAMA_ARG_THREADS"], min=0, max=MAX_THREADS,
        help="CPU threads (0: all this process may use).",
    ),
]  # fmt: skip
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", "-b", envvar=["ROPEBEND_BATCH_SIZE", "LLAMA_ARG_BATCH"], min=2,
        help="Tokens per llama_decode call.",
    ),
]  # fmt: skip
UbatchSize = Annotated[
    int,
    typer.Option(
        "--ubatch-size", "-ub", envvar=["ROPEBEND_UBATCH_SIZE", "LLAMA_ARG_UBATCH"], min=1,
        help="Tokens per graph; no more than --batch-size.",
    ),
]  # fmt: skip
GpuLayers = Annotated[
    int,
    typer.Option(
        "--n-gpu-layers", "--gpu-layers", "-ngl", envvar=["ROPEBEND_N_GPU_LAYERS", "LLAMA_ARG_N_GPU_LAYERS"],
        min=-1, callback=_warn_without_gpu,
        help="Layers to put on the GPU (-1: all). Needs a llama-cpp-python built for it.",
    ),
]  # fmt: skip
FlashAttn = Annotated[
    Any,
    typer.Option(
        "--flash-attn", "-fa", envvar=["ROPEBEND_FLASH_ATTN", "LLAMA_ARG_FLASH_ATTN"], parser=_flash_attn,
        metavar="on|off|auto", help="Use flash attention; auto: if the devices can.",
    ),
]  # fmt: skip
CacheTypeK = Annotated[
    CacheType,
    typer.Option(
        "--cache-type-k", "-ctk", envvar=["ROPEBEND_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_K"],
        help="Type of the cached keys.",
    ),
]  # fmt: skip
CacheTypeV = Annotated[
    CacheType,
    typer.Option(
        "--cache-type-v", "-ctv", envvar=["ROPEBEND_CACHE_TYPE_V", "LLAMA_ARG_CACHE_TYPE_V"],
        help="Type of the cached values; a q type needs --flash-attn on.",
    ),
]  # fmt: skip
Mmap = Annotated[
    bool, typer.Option("--mmap/--no-mmap", envvar="ROPEBEND_MMAP", help="Map the model's file instead of reading it.")
]
Mlock = Annotated[bool, typer.Option("--mlock", envvar="ROPEBEND_MLOCK", help="Keep the model in memory.")]
SplitModeOption = Annotated[
    SplitMode,
    typer.Option(
        "--split-mode", "-sm", envvar=["ROPEBEND_SPLIT_MODE", "LLAMA_ARG_SPLIT_MODE"],
        help="How to split the model over several GPUs.",
    ),
]  # fmt: skip
MainGpu = Annotated[
    int,
    typer.Option(
        "--main-gpu", "-mg", envvar=["ROPEBEND_MAIN_GPU", "LLAMA_ARG_MAIN_GPU"], min=0,
        help="GPU of a model that is not split.",
    ),
]  # fmt: skip
TensorSplit = Annotated[
    str,
    typer.Option(
        "--tensor-split", "-ts", envvar=["ROPEBEND_TENSOR_SPLIT", "LLAMA_ARG_TENSOR_SPLIT"],
        help="Shares of the GPUs, as 3,1.", show_default=False,
    ),
]  # fmt: skip
OverrideTensor = Annotated[
    str,
    typer.Option(
        "--override-tensor", "-ot", envvar=["ROPEBEND_OVERRIDE_TENSOR", "LLAMA_ARG_OVERRIDE_TENSOR"],
        help="Put weights elsewhere: pattern=buffer type, as exps=CPU; several between commas.", show_default=False,
    ),
]  # fmt: skip
CpuMoe = Annotated[
    bool,
    typer.Option(
        "--cpu-moe", "-cmoe", envvar=["ROPEBEND_CPU_MOE", "LLAMA_ARG_CPU_MOE"],
        help="Keep the weights of experts with the CPU.",
    ),
]  # fmt: skip

#: Field of `Runtime` -> name of the parameter (by which typer calls the flag) and its type.
RUNTIME_OPTIONS: dict[str, tuple[str, Any]] = {
    "n_threads": ("threads", Threads),
    "n_batch": ("batch_size", BatchSize),
    "n_ubatch": ("ubatch_size", UbatchSize),
    "n_gpu_layers": ("n_gpu_layers", GpuLayers),
    "flash_attn": ("flash_attn", FlashAttn),
    "type_k": ("cache_type_k", CacheTypeK),
    "type_v": ("cache_type_v", CacheTypeV),
    "use_mmap": ("mmap", Mmap),
    "use_mlock": ("mlock", Mlock),
    "split_mode": ("split_mode", SplitModeOption),
    "main_gpu": ("main_gpu", MainGpu),
    "tensor_split": ("tensor_split", TensorSplit),
    "override_tensor": ("override_tensor", OverrideTensor),
    "cpu_moe": ("cpu_moe", CpuMoe),
}


def takes_runtime(defaults: Runtime) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of llama.cpp in the place of its parameter ``runtime: Runtime``."""
    shown = "auto" if defaults.flash_attn == "auto" else "on" if defaults.flash_attn else "off"
    return takes("runtime", RUNTIME_OPTIONS, {**asdict(defaults), "flash_attn": shown}, Runtime)


def _scale_options(env: bool) -> dict[str, tuple[str, Any]]:
    """Field of `ScaleSource` -> the parameter's name and type."""

    def flag(kind: Any, name: str, help_: str) -> tuple[str, Any]:
        var = f"ROPEBEND_{name.upper()}" if env else None
        long = "--" + name.replace("_", "-")
        return name, Annotated[kind, typer.Option(long, envvar=var, help=help_, show_default=False)]

    return {
        "factors": flag(
            Path | None,
            "factors",
            "The scales of this factors.json, instead of those in the GGUF; auto: "
            "the ready ones for this model (ropebend factors).",
        ),
        "scale": flag(float | None, "scale", "This scale for every layer instead: 2 fits twice the length."),
        "method": flag(StretchName | None, "method", "This extension method instead; linear is interpolation."),
        "factor": flag(float | None, "factor", "The method's factor: 2 fits twice the length."),
        "no_scaling": flag(bool, "no_scaling", "Run unscaled, whatever the file says."),
    }


def takes_scales(*, env: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these flags in the place of its parameter ``scales: ScaleSource``; env: and variables."""
    return takes("scales", _scale_options(env), asdict(ScaleSource()), ScaleSource)


def takes(
    parameter: str, options: Mapping[str, tuple[str, Any]], defaults: Mapping[str, Any], make: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options in the place of one of its parameters.

    options: field -> name of the parameter (by which typer calls the flag) and its type; defaults: by field; make: the
    parameter's value from the fields.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for p in inspect.signature(command).parameters.values():
            if p.name != parameter:
                parameters.append(p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY))
                continue
            for field, (name, kind) in options.items():
                parameters.append(inspect.Parameter(name, p.KEYWORD_ONLY, annotation=kind, default=defaults[field]))

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            fields = {field: given.pop(name) for field, (name, _) in options.items()}
            command(**given, **{parameter: make(**fields)})

        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapper

    return decorate


def check_writable(path: Path) -> None:
    """Raise RopebendError now if the result could not be written after hours of work."""
    folder = path.parent if path.parent.exists() else next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is read-only"
        raise RopebendError(f"{path}: cannot be written: {reason}")


def numbers(text: str, option: str, low: float = 0.0, high: float = float("inf")) -> list[float]:
    """Comma-separated numbers in [low, high].  Raises UsageError naming the option."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option}: expected numbers separated by commas, got {text!r}") from None
    if not all(low <= v <= high and math.isfinite(v) for v in values):
        bounds = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"of {low:g} or more"
        raise UsageError(f"{option}: expected numbers {bounds}, got {text!r}")
    return values


def seconds(text: str | None, option: str) -> float | None:
    """A time such as 90s, 5m, 2h.  Raises UsageError naming the option."""
    if text is None:
        return None
    found = read_duration(text)
    if found is None:
        raise UsageError(f"{option}: expected a time such as 90s, 5m or 2h, got {text!r}")
    return found


def check_effect(task: str, data: Path | None, **given: Any) -> None:
    """Raise UsageError if one of these flags, None by default, was given but changes nothing in this task."""
    from ropebend.tasks import option_types, unused_with_data

    known = option_types(task)
    unused = unused_with_data(task, data)
    for name in (name for name, value in given.items() if value is not None):
        if known is not None and name not in known:
            raise UsageError(f"--{name}: task {task} has no such option")
        if name == "depths" and given.get("protocol") == "published" and task != "kv":
            raise UsageError("--depths has no effect on --protocol published: the answer is placed at random")
        if name in unused:
            raise UsageError(f"--{name} has no effect on --data: the items are those of the file")


def task_options(
    task: str, *, seed: str, depths: list[float], extra: list[str] | None = None, **given: Any
) -> dict[str, Any]:
    """The options of a task from the flags that were given.  Raises UsageError for one that the task does not have."""
    from ropebend.tasks import option_types, read_option

    known = option_types(task)
    options = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    wrong = [k for k in options if known is not None and k not in known]
    if wrong:
        raise UsageError(f"--{wrong[0]}: task {task} has no such option")
    if known is None or "seed" in known:
        options["seed"] = seed
    if known is None or "depths" in known:
        options["depths"] = depths
    for text in extra or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--task-option: expected name=value, got {text!r}")
        kind = (known or {}).get(name, str)
        try:
            options[name] = read_option(value, kind, name)
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}.get(kind, "numbers separated by slashes")
            wanted = "tokens, as 8192 or 8k" if name == "length" else "true or false" if kind is bool else wanted
            raise UsageError(f"--task-option {name}: expected {wanted}, got {value!r}") from None
    return options
