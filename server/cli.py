"""`serve`: the command and its options."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ropebend.cli.options import takes_runtime, takes_scales
from ropebend.errors import RopebendError, UsageError
from ropebend.files import read_text
from ropebend.runtime import Runtime
from ropebend.scaling.source import ScaleSource
from ropebend.server.openai.defaults import Defaults
from ropebend.server.sampling_options import takes_sampling

if TYPE_CHECKING:
    from ropebend.server.chat.chats import Chats

log = logging.getLogger("ropebend.server")


Pooling = Literal["none", "mean", "cls", "last"]
Reasoning = Literal["none", "deepseek", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]

#: As llama-server: many texts share a step, so that prompts are computed in larger pieces than a search does.
RUNTIME = Runtime(n_ubatch=512, flash_attn=True)


@takes_runtime(RUNTIME)
@takes_sampling
@takes_scales(env=True)
def serve(
    model: Annotated[
        Path | None,
        typer.Argument(
            envvar=["ROPEBEND_MODEL", "LLAMA_ARG_MODEL"],
            metavar="MODEL",
            help="GGUF file. Layer scales in it are in effect without any flag.",
            show_default=False,
        ),
    ] = None,
    *,
    model_option: Annotated[
        Path | None, typer.Option("--model", "-m", help="The same, as llama-server has it.", show_default=False)
    ] = None,
    host: Annotated[
        str,
        typer.Option(envvar=["ROPEBEND_HOST", "LLAMA_ARG_HOST"], help="Address to listen on; several between commas."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar=["ROPEBEND_PORT", "LLAMA_ARG_PORT"], min=0, max=65535, help="Port to listen on; 0: any free one."
        ),
    ] = 8080,
    ctx_size: Annotated[
        int,
        typer.Option(
            "--ctx-size",
            "-c",
            envvar=["ROPEBEND_CTX_SIZE", "LLAMA_ARG_CTX_SIZE"],
            min=0,
            help="Context in tokens, may go beyond the trained length; 0: the trained length, or what the scales were "
            "tested at if that is more.",
        ),
    ] = 0,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            "-np",
            envvar=["ROPEBEND_PARALLEL", "LLAMA_ARG_N_PARALLEL"],
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
    runtime: Runtime = RUNTIME,
    defaults: Defaults = Defaults(),
    alias: Annotated[
        list[str] | None,
        typer.Option(
            "--alias",
            "-a",
            envvar=["ROPEBEND_ALIAS", "LLAMA_ARG_ALIAS"],
            help="Model id; may be given several times, the first is shown. Default: the file's name.",
        ),
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(envvar=["ROPEBEND_TAGS", "LLAMA_ARG_TAGS"], help="Words for the list of models, between commas."),
    ] = None,
    slots: Annotated[
        bool,
        typer.Option(envvar=["ROPEBEND_SLOTS", "LLAMA_ARG_ENDPOINT_SLOTS"], help="Whether /slots is there."),
    ] = True,
    metrics: Annotated[
        bool,
        typer.Option(envvar=["ROPEBEND_METRICS", "LLAMA_ARG_ENDPOINT_METRICS"], help="Whether /metrics is there."),
    ] = True,
    ui: Annotated[
        bool,
        typer.Option(
            "--ui/--no-ui",
            "--webui/--no-webui",
            envvar=["ROPEBEND_UI", "LLAMA_ARG_UI"],
            help="Whether the pages / and /docs are there.",
        ),
    ] = True,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", envvar="ROPEBEND_VERBOSE", help="Log at level debug, and put the prompt into answers."
        ),
    ] = False,
    any_model: Annotated[
        bool,
        typer.Option("--any-model", envvar="ROPEBEND_ANY_MODEL", help="Answer to every other model id, too."),
    ] = False,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=["ROPEBEND_API_KEY", "LLAMA_API_KEY"],
            help="Key that clients must send; may be given several times, in the variable separated by blanks.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar=["ROPEBEND_API_KEY_FILE", "LLAMA_ARG_API_KEY_FILE"],
            help="File with more keys, one a line; # begins a comment.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar=["ROPEBEND_CORS_ORIGIN", "LLAMA_ARG_CORS_ORIGINS"],
            help="Let web pages of this origin ask, e.g. https://chat.example; several are possible, * is all.",
        ),
    ] = None,
    max_body_size: Annotated[
        int, typer.Option(envvar="ROPEBEND_MAX_BODY_SIZE", min=1024, help="Largest request body in bytes.")
    ] = 16 * 2**20,
    scales: ScaleSource = ScaleSource(),
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            envvar=["ROPEBEND_POOLING", "LLAMA_ARG_POOLING"],
            help="What an embedding is: the mean over all tokens, the first (cls) or the last one; none: all of them.",
            show_default="what the file says, else mean",
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            envvar=["ROPEBEND_CHAT_TEMPLATE", "LLAMA_ARG_CHAT_TEMPLATE"],
            metavar="NAME|FILE",
            help="Chat template to use instead of the model's: a built-in one, as chatml or llama3, or a jinja file.",
        ),
    ] = None,
    chat_template_file: Annotated[
        Path | None,
        typer.Option(
            envvar=["ROPEBEND_CHAT_TEMPLATE_FILE", "LLAMA_ARG_CHAT_TEMPLATE_FILE"],
            help="The same, certainly a file, as llama-server has it.",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            envvar=["ROPEBEND_CHAT_TEMPLATE_KWARGS", "LLAMA_ARG_CHAT_TEMPLATE_KWARGS"],
            metavar="JSON",
            help='Variables for the chat template, as {"enable_thinking": false}; a request\'s go before them.',
        ),
    ] = None,
    prefill_assistant: Annotated[
        bool,
        typer.Option(
            "--prefill-assistant/--no-prefill-assistant",
            envvar=["ROPEBEND_PREFILL_ASSISTANT", "LLAMA_ARG_PREFILL_ASSISTANT"],
            help="Continue a last message that is the assistant's, or answer it.",
        ),
    ] = True,
    chat_parse_special: Annotated[
        bool,
        typer.Option(
            "--chat-parse-special/--no-chat-parse-special",
            envvar="ROPEBEND_CHAT_PARSE_SPECIAL",
            help="Read control tokens that are written in messages as such: users can then forge others' messages.",
        ),
    ] = False,
    reasoning_format: Annotated[
        Reasoning,
        typer.Option(
            envvar=["ROPEBEND_REASONING_FORMAT", "LLAMA_ARG_THINK"],
            help="Where a model's thinking goes: reasoning_content (deepseek, auto), or none: it stays in the text.",
        ),
    ] = "auto",
    queue_size: Annotated[
        int,
        typer.Option(
            envvar="ROPEBEND_QUEUE_SIZE", min=0, help="Requests that may wait beside --parallel; further ones get 503."
        ),
    ] = 64,
    cache_ram: Annotated[
        int,
        typer.Option(
            envvar="ROPEBEND_CACHE_RAM",
            min=0,
            metavar="MIB",
            help="Memory for checkpoints of texts, of models with a sliding window or recurrent state; 0: none.",
        ),
    ] = 2048,
    grace: Annotated[
        float,
        typer.Option(
            envvar="ROPEBEND_GRACE", min=0, max=3600, help="Seconds open requests may go on after SIGTERM or Ctrl+C."
        ),
    ] = 5,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="ROPEBEND_LOG_LEVEL", help="What to print on stderr; debug logs each access.")
    ] = "info",
) -> None:
    """Serve MODEL over the OpenAI API until SIGTERM or Ctrl+C."""
    model = _model(model, model_option)
    if verbose:
        log_level = "debug"
        defaults = replace(defaults, verbose=True)
    n_batch = runtime.n_batch
    if runtime.n_ubatch == RUNTIME.n_ubatch:  # nobody asked for it
        runtime = replace(runtime, n_ubatch=min(runtime.n_ubatch, n_batch))
    if runtime.n_ubatch > n_batch:
        raise UsageError(f"--ubatch-size: expected at most --batch-size {n_batch}, got {runtime.n_ubatch}")
    _refuse_blank(ROPEBEND_API_KEY=api_key, LLAMA_API_KEY=api_key, ROPEBEND_API_KEY_FILE=api_key_file)
    keys = [key.strip() for key in api_key or []]
    if not all(keys):
        raise UsageError("--api-key: expected a key, got an empty one")
    if api_key_file is not None:
        keys += _keys_of(api_key_file)
    if parallel is not None and parallel >= n_batch:
        raise UsageError(f"--parallel: expected less than --batch-size {n_batch}, got {parallel}")
    hosts = _split(host)
    if not hosts:
        raise UsageError("--host: expected an address, got none")
    # later, for the command line's sake: llama.cpp and FastAPI take longer than --help
    from ropebend.server.engine import Engine, EngineOptions
    from ropebend.server.openai.app import create_app
    from ropebend.server.openai.serving import names_of
    from ropebend.server.process import Server, run

    options = EngineOptions(
        model=model,
        n_ctx=ctx_size,
        n_cells=kv_size,
        n_slots=parallel or min(16, n_batch - 1),
        runtime=runtime,
        scales=scales,
        pooling=pooling,
        queue_size=queue_size,
        cache_ram=cache_ram,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    log.setLevel(log_level.upper())
    chats = _chats(chat_template, chat_template_file, chat_template_kwargs)
    chats.prefill, chats.read_control, chats.reasoning = prefill_assistant, chat_parse_special, reasoning_format
    engine = Engine(options, on_failure=lambda: server.end_now(), on_loaded=chats.prepare)
    aliases = [name for names in alias or () for name in _split(names)]
    names = names_of(model, aliases, any_model, _split(tags or ""))
    off = [name for name, on in (("slots", slots), ("metrics", metrics), ("ui", ui)) if not on]
    app = create_app(
        engine,
        keys,
        names=names,
        chats=chats,
        defaults=defaults,
        off=off,
        cors_origins=cors_origin or [],
        max_body=max_body_size,
    )
    server = Server(app, engine, grace, debug=log_level == "debug")
    run(server, engine, hosts, port)


def _chats(template: str | None, file: Path | None, variables: str | None) -> Chats:
    from ropebend.server.chat.chats import Chats, read_template, read_template_file, read_variables

    if template is not None and file is not None:
        raise UsageError("--chat-template and --chat-template-file: expected only one of them")
    source, name = None, ""
    if file is not None:
        source, name = read_template_file(file)
    elif template is not None:
        source, name = read_template(template)
    given = read_variables(variables) if variables else {}
    return Chats(source, name, variables=given)


def _model(argument: Path | None, option: Path | None) -> Path:
    """The file to serve.  A variable gives way to the option."""
    if argument is not None and option is not None and not {"ROPEBEND_MODEL", "LLAMA_ARG_MODEL"} & os.environ.keys():
        raise UsageError("MODEL and --model: expected only one of them")
    model = option or argument
    if model is None:
        raise UsageError("expected a GGUF file: serve MODEL, or --model MODEL")
    return model


def _split(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _refuse_blank(**given: object) -> None:
    """UsageError if one of these variables is set but blank: typer drops it, and everybody would be let in."""
    for name, value in given.items():
        if not value and not os.environ.get(name, "set").strip():
            raise UsageError(f"{name} is set but empty: expected a value, or unset it to serve without a key")


def _keys_of(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise RopebendError(f"{path}: expected an API key on each line, got none")
    return keys
