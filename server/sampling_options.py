"""The flags of `serve` that say how texts are sampled where a request does not."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ropebend.cli.options import takes
from ropebend.errors import UsageError
from ropebend.server.openai.defaults import Defaults


def _option(kind: Any, names: str, help_: str, off: str, env: str = "", **bounds: Any) -> Any:
    flags = names.split()
    long = next(name for name in flags if name.startswith("--"))
    envvars = ["ROPEBEND_" + long.strip("-").replace("-", "_").upper(), *([f"LLAMA_ARG_{env}"] if env else [])]
    return Annotated[kind | None, typer.Option(*flags, envvar=envvars, help=help_, show_default=off, **bounds)]


#: Name of the flag's parameter -> its type.  Those but the last three are fields of `Sampling`.
OPTIONS: dict[str, Any] = {
    "temperature": _option(
        float, "--temp --temperature", "Temperature; 0 is greedy.", "1; /completion 0.8", "TEMPERATURE", min=0, max=2
    ),
    "top_k": _option(int, "--top-k", "Keep the K likeliest; 0: all.", "0; /completion 40", "TOP_K", min=-1),
    "top_p": _option(
        float, "--top-p", "Keep the likeliest of this much probability.", "1; /completion 0.95", "TOP_P", min=0, max=1
    ),
    "min_p": _option(
        float, "--min-p", "Keep what is this likely, next to the best.", "0; /completion 0.05", "MIN_P", min=0, max=1
    ),
    "typical_p": _option(float, "--typical --typical-p", "Locally typical sampling; 1: off.", "1", min=0, max=1),
    "top_n_sigma": _option(
        float, "--top-n-sigma --top-nsigma", "Keep logits within N standard deviations of the best.", "off", min=-1
    ),
    "xtc_probability": _option(float, "--xtc-probability", "XTC: how often; 0: off.", "0", min=0, max=1),
    "xtc_threshold": _option(float, "--xtc-threshold", "XTC: above which probability.", "0.1", min=0, max=1),
    "dynatemp_range": _option(float, "--dynatemp-range", "Dynamic temperature: by how much; 0: off.", "0", min=0),
    "dynatemp_exponent": _option(float, "--dynatemp-exp", "Dynamic temperature: exponent.", "1", min=0),
    "repeat_last_n": _option(int, "--repeat-last-n", "Tokens that the penalties look at; -1: all.", "64", min=-1),
    "repeat_penalty": _option(
        float, "--repeat-penalty", "Divides these tokens' logits; 1: off.", "1", "REPEAT_PENALTY", min=0.01, max=10
    ),
    "presence_penalty": _option(
        float, "--presence-penalty", "Subtracted for tokens that were there.", "0", "PRESENCE_PENALTY", min=-2, max=2
    ),
    "frequency_penalty": _option(
        float, "--frequency-penalty", "Subtracted for each time.", "0", "FREQUENCY_PENALTY", min=-2, max=2
    ),
    "dry_multiplier": _option(float, "--dry-multiplier", "DRY: strength; 0: off.", "0", min=0),
    "dry_base": _option(float, "--dry-base", "DRY: base of the power.", "1.75", min=0),
    "dry_allowed_length": _option(int, "--dry-allowed-length", "DRY: repeated tokens without penalty.", "2", min=0),
    "dry_penalty_last_n": _option(int, "--dry-penalty-last-n", "DRY: tokens to look at; -1: all.", "64", min=-1),
    "mirostat": _option(int, "--mirostat", "Mirostat 1 or 2; 0: off.", "0", min=0, max=2),
    "mirostat_tau": _option(float, "--mirostat-ent", "Mirostat: surprise to aim at (tau).", "5", min=0),
    "mirostat_eta": _option(float, "--mirostat-lr", "Mirostat: learning rate (eta).", "0.1", min=0),
    "samplers": _option(
        str, "--samplers", "The filters in their order, between semicolons.",
        "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
    ),
    "ignore_eos": Annotated[
        bool,
        typer.Option("--ignore-eos", envvar="ROPEBEND_IGNORE_EOS", help="Never end a text before its limit."),
    ],
    "seed": _option(int, "--seed -s", "Seed of requests without one; -1: random.", "random", min=-1),
    "n_predict": _option(
        int, "--predict --n-predict -n", "Most tokens of an answer; -1: until the context is full.",
        "-1; /v1/completions 16", "N_PREDICT", min=-1,
    ),
}  # fmt: skip


def takes_sampling(command: Any) -> Any:
    """Give a command these flags in the place of its parameter ``defaults: Defaults``."""
    off = {name: False if name == "ignore_eos" else None for name in OPTIONS}
    return takes("defaults", {name: (name, kind) for name, kind in OPTIONS.items()}, off, _defaults)(command)


def _defaults(**given: Any) -> Defaults:
    seed, n_predict = given.pop("seed"), given.pop("n_predict")
    sampling = {k: v for k, v in given.items() if v is not None and v is not False}  # 0 == False, and is given
    if "samplers" in sampling:
        from ropebend.server.engine.sampler_names import read_samplers  # later: llama.cpp takes longer than --help

        try:
            sampling["samplers"] = read_samplers([x for x in sampling["samplers"].split(";") if x])
        except ValueError as e:
            raise UsageError(f"--samplers: {e}") from None
    if sampling.get("top_k", 0) < 0:
        sampling["top_k"] = 0
    if "repeat_last_n" in sampling:
        sampling["penalize_prompt"] = True
    return Defaults(sampling, None if seed == -1 else seed, n_predict)
