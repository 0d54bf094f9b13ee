#!/usr/bin/env python3
"""Our chat templates against Hugging Face's: bench/chat_templates.py TEMPLATES… --transformers PYTHON.

TEMPLATES are *.jinja files or folders of them, such as models/templates of llama.cpp (in the source distribution of
llama-cpp-python); of a *.gguf the template in it.
PYTHON is an interpreter with transformers installed; nothing else of it is needed, no PyTorch.  Every template is
rendered in every conversation by both, with the same variables.  Prints where they differ, and the counts.

--write ZIP keeps some of the templates, the conversations and what transformers made of them, for the tests.
"""

from __future__ import annotations

import datetime
import difflib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer

from ropebend.errors import RopebendError
from ropebend.server.chat import renderer
from ropebend.server.chat.templates import ChatTemplate

#: The day on which all prompts are written.
TODAY = datetime.datetime(2025, 1, 31, 12)
BOS, EOS = "<s>", "</s>"

HUGGING_FACE = """
import datetime, json, sys
import transformers
from transformers.utils import chat_template_utils as utils

asked = json.load(sys.stdin)
today = datetime.datetime.fromisoformat(asked["today"])
utils.datetime = type("datetime", (), {"now": staticmethod(lambda: today)})
out = []
for template, messages, tools, variables in asked["prompts"]:
    try:
        texts, _ = utils.render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=True,
            bos_token=asked["bos"], eos_token=asked["eos"], **variables)
        out.append([texts[0], None])
    except Exception as e:
        out.append([None, f"{type(e).__name__}: {e}"])
print(json.dumps({"version": transformers.__version__, "prompts": out}))
"""


def tool(name: str, description: str, **properties: tuple[str, str]) -> dict[str, Any]:
    """A function as OpenAI describes it.  properties: type and description."""
    shown = {k: {"type": t, "description": d} for k, (t, d) in properties.items()}
    parameters = {"type": "object", "properties": shown, "required": list(shown)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool(
    "get_weather", 'The weather in a <city>, now & "then"', city=("string", "Its name"), days=("integer", "How many")
)
ADD = tool("add", "Add two numbers", a=("number", "One"), b=("number", "The other"))
SYSTEM = {"role": "system", "content": "You are terse."}
USER = {"role": "user", "content": "What's the weather <in> Paris & Rome?"}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "a1B2c3D4e", **CALL}]}
RESULT = {"role": "tool", "tool_call_id": "a1B2c3D4e", "name": "get_weather", "content": '{"sky": "blue"}'}
ANSWER = {"role": "assistant", "content": "Blue."}
THOUGHT = {**ANSWER, "reasoning_content": "Let me see."}
MORE = {"role": "user", "content": "And tomorrow?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "First part."}, {"type": "text", "text": "Second part."}]}

#: Messages, tools and variables.
CONVERSATIONS: dict[str, tuple[list[Any], list[Any] | None, dict[str, Any]]] = {
    "plain": ([USER], None, {}),
    "system": ([SYSTEM, USER], None, {}),
    "turns": ([SYSTEM, USER, ANSWER, MORE], None, {}),
    "parts": ([PARTS], None, {}),
    "tools": ([SYSTEM, USER], [WEATHER, ADD], {}),
    "call": ([USER, CALLED, RESULT], [WEATHER], {}),
    "called": ([USER, CALLED, RESULT, ANSWER, MORE], [WEATHER], {}),
    "thinking": ([USER, THOUGHT, MORE], None, {"enable_thinking": True, "thinking": True}),
    "not thinking": ([USER], None, {"enable_thinking": False, "thinking": False}),
}

README = """
The templates are those of llama.cpp's models/templates (MIT, Copyright (c) 2023-2026 The ggml authors) and of
SmolLM2-135M-Instruct (Apache-2.0); expected.json is what Hugging Face's transformers made of them.
Written by bench/chat_templates.py.
"""

#: What the tests keep: one or two of each family.
KEPT = (
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "google-gemma-2-2b-it",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "llama-cpp-deepseek-r1",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "microsoft-Phi-3.5-mini-instruct",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "Kimi-K2-Instruct",
    "openai-gpt-oss-120b",
    "ibm-granite-granite-3.3-2B-Instruct",
    "LFM2-8B-A1B",
    "fireworks-ai-llama-3-firefunction-v2",
    "GLM-4.6",
    "SmolLM2-135M-Instruct.Q4_1",
)


def main(
    templates: Annotated[list[Path], typer.Argument(help="*.jinja and *.gguf files, and folders of *.jinja files.")],
    transformers: Annotated[Path, typer.Option(help="Python interpreter that has transformers.")],
    write: Annotated[Path | None, typer.Option(help="Zip to keep a part of it in, for the tests.")] = None,
    show: Annotated[bool, typer.Option(help="Print how the texts differ.")] = False,
) -> None:
    """Render everything twice and compare."""
    sources = {}
    for given_path in templates:
        for path in sorted(given_path.glob("*.jinja")) if given_path.is_dir() else [given_path]:
            sources[path.stem] = in_gguf(path) if path.suffix == ".gguf" else path.read_text(encoding="utf-8")
    if not sources:
        raise SystemExit("no *.jinja files there")
    with mock.patch.object(renderer, "now", return_value=TODAY):
        given = renderer.standard()
        pairs = [(name, c) for name in sources for c in CONVERSATIONS]
        prompts = []
        for name, c in pairs:
            messages, tools, variables = CONVERSATIONS[c]
            prompts.append((sources[name], messages, tools, {**given, **variables}))
        asked = {"today": TODAY.isoformat(), "bos": BOS, "eos": EOS, "prompts": prompts}
        run = subprocess.run(
            [transformers, "-c", HUGGING_FACE], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True
        )
        answer = json.loads(run.stdout)
        theirs = dict(zip(pairs, answer["prompts"], strict=True))
        ours = {(name, c): text for name, source in sources.items() for c, text in rendered(source).items()}
    report(ours, theirs, show)
    print(f"transformers {answer['version']}")
    if write is not None:
        kept = {k: v for k, v in sources.items() if k in KEPT}
        keep(write, kept, theirs, answer["version"])


def in_gguf(path: Path) -> str:
    """The chat template in a model's file."""
    import gguf

    field = gguf.GGUFReader(path).fields["tokenizer.chat_template"]
    return str(field.contents())


def rendered(source: str) -> dict[str, str | RopebendError]:
    """Our prompt of each conversation, or why there is none."""
    template = ChatTemplate(source, BOS, EOS)
    out: dict[str, str | RopebendError] = {}
    for c, (messages, tools, variables) in CONVERSATIONS.items():
        try:
            out[c] = template.render(messages, tools, variables).text
        except RopebendError as e:
            out[c] = e
    return out


def report(ours: dict[Any, Any], theirs: dict[Any, Any], show: bool) -> None:
    """Print what is not the same."""
    counts = {"the same": 0, "different": 0, "only ours": 0, "refused by ours": 0}
    for (name, c), text in ours.items():
        their_text, error = theirs[name, c]
        if isinstance(text, RopebendError):
            counts["refused by ours"] += 1
            print(f"{name}, {c}: refused: {text}")
        elif error is not None:
            counts["only ours"] += 1
            print(f"{name}, {c}: transformers fails: {error[:100]}")
        elif text == their_text:
            counts["the same"] += 1
        else:
            counts["different"] += 1
            print(f"{name}, {c}: different")
            lines = difflib.unified_diff(their_text.splitlines(), text.splitlines(), "theirs", "ours", n=0, lineterm="")
            if show:
                print(*(f"    {line[:200]}" for line in lines), sep="\n")
    print(f"{len(ours)} prompts: " + ", ".join(f"{n} {what}" for what, n in counts.items()))


def keep(path: Path, sources: dict[str, str], theirs: dict[Any, Any], version: str) -> None:
    """A zip with the templates, the conversations and the prompts that transformers made."""
    expected = {name: {c: theirs[name, c][0] for c in CONVERSATIONS} for name in sources}
    about = {"transformers": version, "today": TODAY.isoformat(), "bos": BOS, "eos": EOS}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        when = (2025, 1, 31, 0, 0, 0)  # the same bytes each time

        def add(name: str, text: str) -> None:
            z.writestr(zipfile.ZipInfo(name, when), text, zipfile.ZIP_DEFLATED)

        add("README", README)
        add("about.json", json.dumps(about, indent=1))
        add("conversations.json", json.dumps(CONVERSATIONS, indent=1))
        add("expected.json", json.dumps(expected, indent=1, ensure_ascii=False))
        for name, source in sources.items():
            add(f"{name}.jinja", source)


if __name__ == "__main__":
    typer.run(main)
