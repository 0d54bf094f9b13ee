#!/usr/bin/env python3
"""Loglikelihoods that lm-evaluation-harness gets from our server / those computed directly with llama-cpp-python.

Needs `pip install 'lm_eval[api]'`, here or in another environment (--lm-eval), and no network: the task is local.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import llama_cpp
import numpy as np
import typer

TASK = """task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def documents(n: int, seed: int) -> list[dict[str, object]]:
    """Beginnings of stories with four ways to go on."""
    r = random.Random(seed)
    who, did = ["Lily", "Tom", "The dog", "A little girl"], ["saw", "liked", "found", "had"]
    what = [" a big tree.", " the sun.", " her mom and a ball.", " it was a happy day.", " to play with the cat."]
    out = []
    for _ in range(n):
        text = " ".join(f"{r.choice(who)} {r.choice(did)}{r.choice(what)}" for _ in range(r.randrange(2, 9)))
        choices = r.sample(what, 4)
        out.append({"text": f"{text} {r.choice(who)} {r.choice(did)}", "choices": choices, "gold": r.randrange(4)})
    return out


def direct(model: Path, docs: list[dict[str, object]], flash_attn: bool) -> list[list[float]]:
    """Sum of log-probabilities of each choice after its text, by llama-cpp-python, one sequence at a time."""
    llama = llama_cpp.Llama(str(model), logits_all=True, n_ctx=1024, n_threads=2, flash_attn=flash_attn, verbose=False)
    out = []
    for doc in docs:
        row = []
        context = llama.tokenize(str(doc["text"]).encode(), add_bos=False)
        for choice in doc["choices"]:  # type: ignore[attr-defined]
            tokens = llama.tokenize(f"{doc['text']}{choice}".encode(), add_bos=False)
            llama.reset()
            llama.eval(tokens)
            logits = np.array(llama.scores[: len(tokens)], np.float64)
            logprobs = logits - logits.max(1, keepdims=True)
            logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
            row.append(sum(float(logprobs[i - 1, tokens[i]]) for i in range(len(context), len(tokens))))
        out.append(row)
    llama.close()
    return out


def through_lm_eval(lm_eval: str, url: str, folder: Path, name: str, concurrent: int) -> list[list[float]]:
    """Run the harness on the local task and read the loglikelihoods out of its samples."""
    arguments = f"model={name},base_url={url}/v1/completions,tokenizer_backend=remote,max_length=1024"
    arguments += f",num_concurrent={concurrent}"
    command = [lm_eval, "--model", "local-completions", "--model_args", arguments, "--tasks", "local_choice"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder), "NO_PROXY": "*"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    (path,) = (folder / "out").rglob("samples_local_choice*.jsonl")
    samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda s: s["doc_id"])
    return [[float(answer[0][0]) for answer in s["resps"]] for s in samples]


def main(
    model: Annotated[Path, typer.Argument(help="GGUF without layer scales.")],
    lm_eval: Annotated[str, typer.Option(help="The harness's command.")] = "lm_eval",
    n: Annotated[int, typer.Option(help="Documents, each with 4 choices.")] = 40,
    concurrent: Annotated[int, typer.Option(help="Requests at once; 1: nothing else is in the batch.")] = 1,
    tolerance: Annotated[float, typer.Option(help="Of a sum over a choice, in nats.")] = 0.01,
    flash_attn: Annotated[bool, typer.Option(help="Flash attention, on both sides.")] = False,
) -> None:
    """Print the largest difference; exit 1 if it is more than the tolerance.

    A float model keeps to 0.01 of a nat.  With quantised weights llama.cpp rounds activations to 8 bits, and where a
    sequence lies in the cache can decide a rounding: rare steps of some tenths.
    """
    docs = documents(n, seed=1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, docs)))
        (folder / "task.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
        flash = ["--flash-attn", "on" if flash_attn else "off"]
        serve = [sys.executable, "-m", "ropebend.server", str(model), "--port", "0", "-c", "1024", "-a", "m", *flash]
        with subprocess.Popen([*serve, "--log-level", "info"], stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            url = ""
            for line in server.stderr:
                if found := re.search(r"listening on (http://\S+),", line):
                    url = found[1]
                if line.rstrip().endswith("ready"):
                    break
            drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
            try:
                ours = np.array(through_lm_eval(lm_eval, url, folder, "m", concurrent))
            finally:
                server.terminate()
                server.wait()
                drain.wait()
    theirs = np.array(direct(model, docs, flash_attn))
    worst = float(np.abs(ours - theirs).max())
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    print(f"{model.name}: {ours.size} loglikelihoods from {theirs.min():.2f} to {theirs.max():.2f}")
    print(f"largest difference {worst:.5f}, the same choice in {same} of {n} documents")
    raise SystemExit(worst > tolerance)


if __name__ == "__main__":
    typer.run(main)
