"""`ropebend chat`: questions from a pipe, and Ctrl-C at a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

CHAT = [sys.executable, "-m", "ropebend.cli", "chat"]
FLAGS = ["-t", "1", "--temp", "0", "-n", "24"]
EXACT = ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]


def chat(model: Path, said: str, *flags: str) -> tuple[list[str], str]:
    """The answers, and what is said about them."""
    command = [*CHAT, str(model), *FLAGS, *EXACT, *flags]
    run = subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr


def test_questions_from_a_pipe_and_the_unscaled_model_beside(models: dict[str, Path], tmp_path: Path) -> None:
    (scaled, base, again), said = chat(models["scaled"], "the big dog\n/base\n/clear\nthe big \\\ndog\n")
    assert "context 1,024 tokens (trained at 256); scale 1–3" in said
    assert "tokens of context used; stopped at the most tokens]" in said
    (unscaled,), said = chat(models["scaled"], "the big dog\n/base\n/quit\nnever asked\n", "--no-scaling")
    assert base == unscaled != scaled
    assert again != scaled  # two lines
    assert "error: no scales are in effect: this is the unscaled model already" in said
    (plain,), _ = chat(models["plain"], "the big dog\n", "--factors", str(factors(tmp_path)))
    assert plain == scaled


def factors(folder: Path) -> Path:
    path = folder / "factors.json"
    path.write_text("[1.5, 1.0, 3.0]")
    return path


def test_files_system_prompts_and_mistakes(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("the happy dog in the sun")
    lines = [
        f"/file {tmp_path / 'story.txt'}",
        "who?",
        "/file nothing.txt",
        "/frobnicate",
        "/base",
        "/help",
        "/system x",
    ]
    (first, base), said = chat(models["scaled"], "\n".join(lines))
    assert re.search(r"story.txt: \d+ tokens go before the next question", said)
    (direct,), _ = chat(models["scaled"], "the happy dog in the sun\\\n\\\nwho?\n")
    assert first == direct != base
    for expected in ("nothing.txt: No such file", "no such command: /frobnicate; /help lists them", "/system TEXT"):
        assert expected in said
    _, said = chat(models["no-template"], "")
    assert "the file has no chat template" in said
    _, said = chat(models["scaled"], "word " * 400 + "\n", "-c", "256")
    assert re.search(r"error: the chat has [\d,]+ tokens with this, the context holds 256: /clear begins anew", said)


def test_ctrl_c_stops_the_answer_and_not_the_chat(models: dict[str, Path]) -> None:
    ours, theirs = pty.openpty()
    command = [*CHAT, str(models["plain"]), "-t", "1", "--ignore-eos", "-c", "32768"]
    environ = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as run:
        os.close(theirs)
        seen = ""

        def read_until(text: str) -> None:
            nonlocal seen
            while text not in seen:
                ready, _, _ = select.select([ours], [], [], 60)
                assert ready, seen
                seen += os.read(ours, 4096).decode(errors="replace")
            seen = seen.partition(text)[2]

        read_until("> ")
        os.write(ours, b"the big dog\n")
        read_until("the big dog\r\n")
        assert os.read(ours, 1)  # of the answer
        run.send_signal(signal.SIGINT)
        read_until("stopped by you")
        read_until("> ")
        os.write(ours, b"/quit\n")
        assert run.wait(60) == 0
    os.close(ours)
