"""What `--help` says beside the flags' own texts: which flags matter first, groups of the others, and examples."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

MEASURED = (
    "task", "keys", "length", "lengths", "documents", "data", "text", "protocol", "chat", "depths", "task_option",
    "also", "transfer", "weights", "worst", "seed",
)  # fmt: skip
SCALES = ("factors", "scale", "method", "factor", "short_prompts_unscaled", "no_scaling")
MACHINE = (
    "threads", "n_gpu_layers", "batch_size", "ubatch_size", "flash_attn", "cache_type_k", "cache_type_v", "mmap",
    "mlock", "split_mode", "main_gpu", "tensor_split", "override_tensor", "cpu_moe", "executor", "workers",
    "ray_address",
)  # fmt: skip
FILES = ("output", "out", "in_place", "force", "resume", "shards", "verify", "dry_run", "as_json", "json_output")

#: Command → its flags that matter first, then groups; a flag stands in the first that names it.
GROUPS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "eval": [
        ("Most used", ("task", "length", "lengths", "time_limit", "factors")),
        ("What is measured", MEASURED),
        ("How long", ("samples", "within")),
        ("Scales", SCALES),
        ("Files", FILES),
        ("Machine", MACHINE),
    ],
    "tune": [
        ("Most used", ("n_ctx", "time_limit", "output", "resume", "n_gpu_layers")),
        ("Files", ("folder", "text", *FILES)),
        ("Machine", ("seed", *MACHINE)),
    ],
    "search": [
        ("Most used", ("task", "length", "budget", "output", "resume")),
        ("What is measured", MEASURED),
        (
            "What is searched",
            ("search", "genome", "optimiser", "method", "factor", "factor_range", "min_scale", "start", "population"),
        ),
        ("How it is judged", ("controls", "screen", "finals", "test", "repeat")),
        ("Files", FILES),
        ("Machine", MACHINE),
    ],
    "serve": [
        ("Most used", ("ctx_size", "port", "host", "parallel", "n_gpu_layers")),
        ("Scales", SCALES),
        (
            "Chats and answers",
            (
                "chat_template", "chat_template_file", "chat_template_kwargs", "prefill_assistant",
                "chat_parse_special", "reasoning_format", "pooling",
            ),
        ),
        ("Who may ask, and what for", (
            "alias", "any_model", "api_key", "api_key_file", "cors_origin", "max_body_size", "queue_size", "grace",
            "log_level",
        )),
        ("Machine", ("model_option", "kv_size", *MACHINE)),
    ],
    "chat": [
        ("Most used", ("ctx_size", "system", "temperature", "n_predict", "n_gpu_layers")),
        ("Scales", SCALES),
        ("Chats and answers", ("chat_template", "think")),
        ("Machine", MACHINE),
    ],
    "add-scales": [
        ("Most used", ("out", "scale", "method", "factor", "short_prompts_unscaled")),
        ("Files", ("in_place", "force", "remove", "dry_run", "verify", "shards", "as_json")),
    ],
    "doctor": [("Most used", ("full", "details")), ("Machine", MACHINE)],
}  # fmt: skip
REST = {"serve": "How tokens are chosen, where a request does not say it", "chat": "How tokens are chosen"}

#: Command → lines that can be pasted, and what each does.
EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "tune": [
        ("ropebend tune model.gguf --ctx 16k --time 1h", "writes model.ropebend.gguf where scales help"),
        ("ropebend tune --resume model.tune-16k", "goes on after Ctrl-C or a kill"),
    ],
    "info": [("ropebend info model.gguf", "the next commands are at its end")],
    "doctor": [
        ("ropebend doctor model.gguf", "15 seconds on a small model"),
        ("ropebend doctor model.gguf --full --details", "everything, with figures"),
    ],
    "eval": [
        ("ropebend eval model.gguf --length 8k", "key-value retrieval by depth, at most 5 minutes"),
        ("ropebend eval model.gguf --task ruler:niah_multikey_2 --length 4k --time 20m", "one of RULER's tasks"),
        ("ropebend eval model.gguf --lengths 1k,2k,4k --depths 11", "a heat map, length by depth"),
        ("ropebend eval model.gguf --length 16k --method yarn --factor 2", "a plain stretch, no search"),
        ("ropebend eval model.gguf --length 8k --factors search/factors.json", "what a search has found"),
    ],
    "search": [
        ("ropebend search model.gguf --length 8k --budget 1h -o search", "all in, finals and judgement too"),
        ("ropebend search --resume search", "goes on after Ctrl-C or a kill"),
        ("ropebend search model.gguf --search scale --genome bezier --optimiser ga", "as in the paper"),
        ("ropebend search model.gguf --length 16k --start search/factors.json", "from what a shorter length has found"),
    ],
    "factors": [
        ("ropebend factors", "all that come along"),
        ("ropebend factors model.gguf", "those that fit this model, and the commands that take them"),
    ],
    "show": [("ropebend show search/factors.json", ""), ("ropebend show model.gguf --json", "as factors.json")],
    "add-scales": [
        ("ropebend add-scales model.gguf search/factors.json", "writes model.ropebend.gguf"),
        ("ropebend add-scales model.gguf none@8k at-16k.json@16k at-32k.json", "other scales by length"),
        ("ropebend add-scales model.gguf --method yarn --factor 2 --short-prompts-unscaled", "no search"),
        ("ropebend add-scales model.ropebend.gguf better.json --in-place", "an instant, whatever the size"),
    ],
    "serve": [
        ("ropebend serve model.ropebend.gguf -c 16384", "the scales in the file are active"),
        ("ropebend serve model.gguf --method yarn --factor 2 -c 16384", "a plain stretch, no search"),
        ("ropebend serve model.gguf --factors search/factors.json --api-key SECRET --host 0.0.0.0", "for others, too"),
    ],
    "chat": [
        ("ropebend chat model.ropebend.gguf -c 16384", "/base asks the unscaled model the same"),
        ("ropebend chat model.gguf --scale 2 -c 16384 < question.txt", "one question"),
    ],
    "exec": [
        ("ropebend exec -- llama-server -m model.ropebend.gguf -c 16384", ""),
        ("ropebend exec -- llama-perplexity -m model.ropebend.gguf -f text.txt", ""),
    ],
    "preload-path": [('LD_PRELOAD="$(ropebend preload-path)" llama-cli -m model.ropebend.gguf', "")],
    "demo": [("ropebend demo -o demo", "3 minutes on 2 cores")],
}


class GroupedCommand(TyperCommand):
    """A command whose help shows its flags in `GROUPS` and ends in `EXAMPLES`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then the groups of flags, then what no group names."""
        records: dict[str, tuple[str, str]] = {}
        arguments = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
            else:
                records[parameter.name or ""] = record
        help_ = records.pop("help", None)
        groups = [("Arguments", arguments)]
        for title, names in GROUPS.get(self.name or "", []):
            groups.append((title, [records.pop(name) for name in names if name in records]))
        rest = [*records.values(), *([help_] if help_ else [])]
        groups.append((REST.get(self.name or "", "Options" if len(groups) == 1 else "Others"), rest))
        for title, lines in groups:
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples."""
        lines = EXAMPLES.get(self.name or "", [])
        if not lines:
            return
        with formatter.section("Examples"):
            for line, what in lines:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                if what:
                    formatter.write(f"{'':{formatter.current_indent}}    {what}\n")
