"""`serve`: the command and its options."""

from __future__ import annotations

import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ropebend.errors import RopebendError, UsageError
from ropebend.runtime import MAX_THREADS
from ropebend.server.engine import Engine, EngineOptions
from ropebend.server.openai.app import MAX_BODY, create_app
from ropebend.server.openai.serving import names_of
from ropebend.server.process import Server, run

log = logging.getLogger("ropebend.server")


class CacheType(str, Enum):
    """`ropebend.runtime.CACHE_TYPES`, as choices of a flag."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q5_1 = "q5_1"
    q5_0 = "q5_0"
    q4_1 = "q4_1"
    q4_0 = "q4_0"


class Pooling(str, Enum):
    """What an embedding is made of."""

    mean = "mean"
    cls = "cls"
    last = "last"


class LogLevel(str, Enum):
    """Lowest level that is printed; debug adds an access log."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def serve(
    model: Annotated[
        Path,
        typer.Argument(envvar="ROPEBEND_MODEL", help="GGUF file. Layer scales in it are in effect without any flag."),
    ],
    host: Annotated[str, typer.Option(envvar="ROPEBEND_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="ROPEBEND_PORT", min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8080,
    ctx_size: Annotated[
        int,
        typer.Option(
            "--ctx-size",
            "-c",
            envvar="ROPEBEND_CTX_SIZE",
            min=0,
            help="Context in tokens, may go beyond the trained length; 0: what the scales were tested at, "
            "if the file says so, else the trained length.",
        ),
    ] = 0,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            "-np",
            envvar="ROPEBEND_PARALLEL",
            min=1,
            max=255,
            help="Slots: texts computed at once, fewer than --batch-size; default 16 if that leaves room.",
        ),
    ] = None,
    kv_size: Annotated[
        int,
        typer.Option(
            envvar="ROPEBEND_KV_SIZE",
            min=0,
            help="KV cells that all slots and the cache of ended texts share; 0: as many as --ctx-size.",
        ),
    ] = 0,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", "-b", envvar="ROPEBEND_BATCH_SIZE", min=2, help="Tokens of one step."),
    ] = 512,
    ubatch_size: Annotated[
        int | None,
        typer.Option(
            "--ubatch-size",
            "-ub",
            envvar="ROPEBEND_UBATCH_SIZE",
            min=1,
            help="Prompt tokens computed at once; default 512, or --batch-size if that is less.",
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            "-t",
            envvar="ROPEBEND_THREADS",
            min=0,
            max=MAX_THREADS,
            help="CPU threads; 0: every core there is.",
        ),
    ] = 0,
    n_gpu_layers: Annotated[
        int,
        typer.Option(
            "--n-gpu-layers",
            "--gpu-layers",
            "-ngl",
            envvar="ROPEBEND_N_GPU_LAYERS",
            min=-1,
            help="Layers on the GPU; -1: all. Needs a llama-cpp-python built for it.",
        ),
    ] = 0,
    flash_attn: Annotated[
        bool, typer.Option("--flash-attn/--no-flash-attn", envvar="ROPEBEND_FLASH_ATTN", help="Use flash attention.")
    ] = True,
    cache_type_k: Annotated[
        CacheType, typer.Option(envvar="ROPEBEND_CACHE_TYPE_K", help="Type of the cached keys.")
    ] = CacheType.f16,
    cache_type_v: Annotated[
        CacheType,
        typer.Option(envvar="ROPEBEND_CACHE_TYPE_V", help="Type of the cached values; a q type needs --flash-attn."),
    ] = CacheType.f16,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            "--alias",
            "-a",
            envvar="ROPEBEND_ALIAS",
            help="Model id; may be given several times, the first is shown. Default: the file's name.",
        ),
    ] = None,
    any_model: Annotated[
        bool,
        typer.Option("--any-model", envvar="ROPEBEND_ANY_MODEL", help="Answer to every other model id, too."),
    ] = False,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="ROPEBEND_API_KEY",
            help="Key that clients must send; may be given several times, in the variable separated by blanks.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(envvar="ROPEBEND_API_KEY_FILE", help="File with more keys, one a line; # begins a comment."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar="ROPEBEND_CORS_ORIGIN",
            help="Let web pages of this origin ask, e.g. https://chat.example; several are possible, * is all.",
        ),
    ] = None,
    max_body_size: Annotated[
        int, typer.Option(envvar="ROPEBEND_MAX_BODY_SIZE", min=1024, help="Largest request body in bytes.")
    ] = MAX_BODY,
    factors: Annotated[
        Path | None,
        typer.Option(envvar="ROPEBEND_FACTORS", help="factors.json with layer scales to use instead of the file's."),
    ] = None,
    no_scaling: Annotated[
        bool, typer.Option("--no-scaling", envvar="ROPEBEND_NO_SCALING", help="Run unscaled, whatever the file says.")
    ] = False,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            envvar="ROPEBEND_POOLING",
            help="What an embedding is: the mean over all tokens, the first (cls) or the last one.",
            show_default="what the file says, else mean",
        ),
    ] = None,
    queue_size: Annotated[
        int,
        typer.Option(
            envvar="ROPEBEND_QUEUE_SIZE", min=0, help="Requests that may wait beside --parallel; further ones get 503."
        ),
    ] = 64,
    grace: Annotated[
        float,
        typer.Option(
            envvar="ROPEBEND_GRACE", min=0, max=3600, help="Seconds open requests may go on after SIGTERM or Ctrl+C."
        ),
    ] = 5,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="ROPEBEND_LOG_LEVEL", help="What to print on stderr; debug logs each access.")
    ] = LogLevel.info,
) -> None:
    """Serve MODEL over the OpenAI API until SIGTERM or Ctrl+C."""
    if factors is not None and no_scaling:
        raise UsageError("--factors and --no-scaling: expected only one of them")
    if ubatch_size is not None and ubatch_size > batch_size:
        raise UsageError(f"--ubatch-size: expected at most --batch-size {batch_size}, got {ubatch_size}")
    _refuse_blank(ROPEBEND_API_KEY=api_key, ROPEBEND_API_KEY_FILE=api_key_file)
    keys = [key.strip() for key in api_key or []]
    if not all(keys):
        raise UsageError("--api-key: expected a key, got an empty one")
    if api_key_file is not None:
        keys += _keys_of(api_key_file)
    if parallel is not None and parallel >= batch_size:
        raise UsageError(f"--parallel: expected less than --batch-size {batch_size}, got {parallel}")
    options = EngineOptions(
        model=model,
        n_ctx=ctx_size,
        n_cells=kv_size,
        n_slots=parallel or min(16, batch_size - 1),
        n_batch=batch_size,
        n_ubatch=ubatch_size or min(512, batch_size),
        n_threads=threads,
        n_gpu_layers=n_gpu_layers,
        flash_attn=flash_attn,
        type_k=cache_type_k.value,
        type_v=cache_type_v.value,
        factors=factors,
        no_scaling=no_scaling,
        pooling=pooling.value if pooling is not None else None,
        queue_size=queue_size,
    )
    level = log_level.value.upper()
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    log.setLevel(level)
    engine = Engine(options, on_failure=lambda: server.end_now())
    names = names_of(model, alias or (), any_model)
    app = create_app(engine, keys, names=names, cors_origins=cors_origin or [], max_body=max_body_size)
    server = Server(app, engine, grace, debug=log_level is LogLevel.debug)
    run(server, engine, host, port)


def _refuse_blank(**given: object) -> None:
    """UsageError if one of these variables is set but blank: typer drops it, and everybody would be let in."""
    for name, value in given.items():
        if not value and not os.environ.get(name, "set").strip():
            raise UsageError(f"{name} is set but empty: expected a value, or unset it to serve without a key")


def _keys_of(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as e:
        raise RopebendError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise RopebendError(f"{path}: not UTF-8 text") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise RopebendError(f"{path}: expected an API key on each line, got none")
    return keys
