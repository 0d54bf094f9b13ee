#!/usr/bin/env python3
r"""A coding agent's day: tool loops over HTTP with the openai client, streamed, as agents do it.

  bench/agent.py day MODEL.gguf…                 20 turns with files to read and write, for each model
  bench/agent.py formats MODEL.gguf TEMPLATES…   a demanded call in the format of each chat template, whole and streamed

TEMPLATES are *.jinja files or folders of them, such as models/templates of llama.cpp (in the source distribution of
llama-cpp-python).  Every argument is checked against its tool's schema; the exit code is 1 if any is wrong.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import openai
import typer

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


def tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    """A function of the agent, all of whose parameters are required."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


PATH = {"type": "string", "maxLength": 40, "description": "Path of a file"}
TOOLS = [
    tool("list_files", "The names of all files"),
    tool("read_file", "The text of a file", path=PATH),
    tool("write_file", "Replace a file's text", path=PATH, text={"type": "string", "maxLength": 200}),
    tool("replace_lines", "Put text in place of lines", path=PATH, first={"type": "integer", "minimum": 1},
         last={"type": "integer", "minimum": 1}, text={"type": "string", "maxLength": 80},
         mode={"enum": ["insert", "replace"]}, check={"type": "boolean"}),
]  # fmt: skip
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}
TASK = "You are a coding agent. Use the tools to work on the files, one call at a time."
ASKS = [
    "Which files are there?",
    "Read main.py.",
    "Write hello.txt with the text hello.",
    "Read it again.",
    "Replace line 1 of main.py by a comment.",
]


class Files:
    """What the tools work on."""

    def __init__(self) -> None:
        self.texts = {"main.py": 'print("hello")\n', "README.md": "# Hello\n"}

    def run(self, name: str, arguments: dict[str, Any]) -> str:
        """The result of a call, for the model."""
        path = arguments.get("path", "")
        if name == "list_files":
            return json.dumps(sorted(self.texts))
        if name == "write_file":
            self.texts[path] = arguments["text"]
            return "written"
        if path not in self.texts:
            return f"there is no file {path!r}"
        if name == "replace_lines":
            lines = self.texts[path].splitlines()
            first, last = arguments["first"] - 1, arguments["last"]
            lines[first : first if arguments["mode"] == "insert" else last] = [arguments["text"]]
            self.texts[path] = "\n".join(lines) + "\n"
        return self.texts[path]


@contextmanager
def served(model: Path, *options: str) -> Iterator[openai.OpenAI]:
    """A client of a server of this model."""
    command = [sys.executable, "-m", "ropebend.server", str(model), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log = []
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"listening on (http://\S+),", line):
                break
        else:
            raise SystemExit("error: the server did not start:\n" + "".join(log))
        # the pipe is read to its end, or the server would wait for that
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        client = openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", max_retries=0, timeout=600)
        while True:
            try:
                client.get("/../health", cast_to=object)
                break
            except openai.InternalServerError:
                time.sleep(0.05)
        yield client
    finally:
        process.terminate()
        process.wait()


@dataclass
class Reply:
    """A streamed answer put together.  pieces: parts that the arguments of its calls came in."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    pieces: int = 0
    reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def message(self) -> dict[str, Any]:
        """The answer as it is sent back."""
        out: dict[str, Any] = {"role": "assistant", "content": self.content or None}
        if self.calls:
            out["tool_calls"] = self.calls
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        return out


def ask(client: openai.OpenAI, messages: list[Any], **more: Any) -> Reply:
    """One streamed answer."""
    reply = Reply()
    chunks = client.chat.completions.create(
        model="", messages=messages, stream=True, stream_options={"include_usage": True}, **more
    )
    for chunk in chunks:
        if chunk.usage is not None:
            reply.prompt_tokens = chunk.usage.prompt_tokens
            details = chunk.usage.prompt_tokens_details
            reply.cached_tokens = (details.cached_tokens or 0) if details else 0
        for choice in chunk.choices:
            reply.content += choice.delta.content or ""
            reply.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            reply.reason = choice.finish_reason or reply.reason
            for part in choice.delta.tool_calls or []:
                if part.id is not None:
                    assert part.index == len(reply.calls)
                    function = {"name": part.function.name, "arguments": ""}
                    reply.calls.append({"id": part.id, "type": "function", "function": function})
                if part.function.arguments:
                    reply.calls[part.index]["function"]["arguments"] += part.function.arguments
                    reply.pieces += 1
    return reply


def wrong(call: dict[str, Any]) -> str:
    """What is wrong with a call's arguments; "" if nothing is."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    try:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    except (ValueError, KeyError, jsonschema.ValidationError) as e:
        return f"{name}({arguments}): {str(e).splitlines()[0]}"
    return ""


@app.command()
def day(
    models: Annotated[list[Path], typer.Argument(help="GGUF files of instruct models.")],
    turns: Annotated[int, typer.Option(min=1, help="Answers of the model.")] = 20,
    choice: Annotated[
        Literal["auto", "required"], typer.Option(help="required: every answer must be a call.")
    ] = "required",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
) -> None:
    """A tool loop of so many turns."""
    bad = 0
    for model in models:
        with served(model, "-c", "8192") as client:
            files, messages = Files(), [{"role": "system", "content": TASK}, {"role": "user", "content": ASKS[0]}]
            replies: list[Reply] = []
            errors: list[str] = []
            mistakes: list[str] = []
            started = time.perf_counter()
            for turn in range(turns):
                more = {"tools": TOOLS, "tool_choice": choice, "max_tokens": max_tokens, "seed": turn, "temperature": 0}
                reply = ask(client, messages, **more, parallel_tool_calls=False)
                replies.append(reply)
                if reply.reason == "length":  # cut off: nothing an agent could send back
                    errors += [f"turn {turn + 1}: cut off: {reply.message()}"] if choice == "required" else []
                    reply.calls = []
                    reply.content = reply.content or "…"
                messages.append(reply.message())
                for call in reply.calls:
                    if error := wrong(call):
                        # a model that is held to nothing may get arguments wrong
                        (errors if choice == "required" else mistakes).append(f"turn {turn + 1}: {error}")
                        result = f"error: {error}"
                    else:
                        result = files.run(call["function"]["name"], json.loads(call["function"]["arguments"]))
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
                messages.append({"role": "user", "content": ASKS[(turn + 1) % len(ASKS)]})
            seconds = time.perf_counter() - started
        n_calls = sum(len(r.calls) for r in replies)
        later = replies[1:]
        cached = sum(r.cached_tokens for r in later) / max(sum(r.prompt_tokens for r in later), 1)
        pieces, in_text = sum(r.pieces for r in replies), sum(not r.calls for r in replies)
        print(f"{model.name}, tool_choice {choice}: {turns} turns in {seconds:.0f} s")
        print(f"  {n_calls} calls, their arguments in {pieces} pieces; {in_text} answers in text")
        print(f"  {len(errors)} errors, {len(mistakes)} mistakes of the model; {cached:.0%} of later prompts cached")
        print(*errors, sep="\n", end="\n" if errors else "")
        bad += len(errors)
    raise typer.Exit(1 if bad else 0)


@app.command()
def formats(
    model: Annotated[Path, typer.Argument(help="A small GGUF file; its answers are forced.")],
    templates: Annotated[list[Path], typer.Argument(help="*.jinja files or folders of them.")],
    seeds: Annotated[int, typer.Option(min=1, help="Calls for each template.")] = 2,
) -> None:
    """A demanded call in each template's format."""
    bad = n = 0
    for template in sorted(f for path in templates for f in (path.glob("*.jinja") if path.is_dir() else [path])):
        errors = []
        with served(model, "-c", "8192", "--chat-template", str(template)) as client:
            for seed in range(seeds):
                messages = [{"role": "user", "content": ASKS[-1]}]
                more: dict[str, Any] = {"tools": TOOLS, "seed": seed, "max_tokens": 400}
                more["tool_choice"] = {"type": "function", "function": {"name": "replace_lines"}}
                more["parallel_tool_calls"] = False
                more["extra_body"] = {"reasoning_format": "none"}  # a small model may think to the limit
                reply = ask(client, messages, **more)
                if [c["function"]["name"] for c in reply.calls] != ["replace_lines"] or reply.content:
                    errors.append(f"no call: {reply.message()}")
                    continue
                if reply.reason == "tool_calls" and (error := wrong(reply.calls[0])):
                    errors.append(error)
                whole = client.chat.completions.create(model="", messages=messages, **more).choices[0].message
                # another text: what a quantised model computes depends on what is in the cache
                calls = [c.model_dump() for c in whole.tool_calls or []]
                if len(calls) != 1 or (error := wrong(calls[0])):
                    errors.append(f"whole: {calls}")
        n += seeds
        bad += len(errors)
        print(f"{template.stem:50} {'ok' if not errors else ''}", *errors, sep="\n  " if errors else "", flush=True)
    print(f"{n - bad} of {n} right")
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    app()
