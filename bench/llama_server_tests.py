"""llama-server's own pytest files, against this server.

    bench/llama_server_tests.py LLAMA_CPP --model stories260K.gguf [-- -x -k tokenize]

LLAMA_CPP: llama.cpp's sources, as they lie in llama-cpp-python's source distribution (vendor/llama.cpp).  The tests are
copied to a temporary folder and run there; a script beside them takes llama-server's place, translates its flags and
runs ropebend.  Tests of a model that is not there are skipped, with its name.  Needs pytest, requests and openai.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

FILES = ("basic", "chat_completion", "completion", "embedding", "ignore_eos", "metrics", "security", "template",
         "tokenize", "tool_call")  # fmt: skip

#: What the tests call the models that one of ours can stand for; the embedding tests' BERT has an encoder, which is
#: not served, so a decoder stands in for it.
STORIES = ("ggml-org/test-model-stories260K", "bert-bge-small")

#: Answers that are called otherwise here.
NAMES = {
    '.startswith("b")': '.startswith("ropebend")',  # system_fingerprint
    "dict(response.headers)": "response.headers",  # names of headers know no case
}

#: In front of their conftest.py: no downloads, and a skip instead of a server without a model.
CONFTEST = """
import os, sys, types
import pytest
for _name in ("wget", "filelock"):
    try:
        __import__(_name)
    except ImportError:
        sys.modules[_name] = types.ModuleType(_name)
if not hasattr(sys.modules["filelock"], "FileLock"):
    import contextlib
    sys.modules["filelock"].FileLock = lambda path: contextlib.nullcontext()
import utils
utils.ServerPreset.load_all = staticmethod(lambda: None)
_start = utils.ServerProcess.start
def start(self, timeout_seconds=60):
    model = f"{{self.model_hf_repo}} {{self.model_hf_file or ''}}"
    if not any(name in model for name in {stories!r}):
        pytest.skip(f"no model {{model}}")
    _start(self, timeout_seconds)
utils.ServerProcess.start = start
"""

#: Flags of theirs that change nothing here: what they turn on is always on, or there is only one way.
IGNORED = {"--offline", "--cont-batching", "--embedding", "--jinja", "--no-jinja", "--backend_sampling"}
IGNORED_WITH_VALUE = {"--hf-repo", "--hf-file"}
SAME = {"--no-slots", "--slots", "--metrics", "--no-ui", "--verbose"}


def translate(args: list[str]) -> list[str]:
    """llama-server's command line as this server's."""
    out = ["--top-k", "40", "--top-p", "0.95", "--min-p", "0.05", "--any-model"]  # its defaults
    n_ctx, n_slots, unified = 0, 4, "--kv-unified" in args
    rest = iter(args)
    for flag in rest:
        if flag in IGNORED or flag == "--kv-unified":
            continue
        if flag in SAME:
            out.append(flag)
            continue
        value = next(rest)
        if flag in IGNORED_WITH_VALUE:
            continue
        if flag == "--ctx-size":
            n_ctx = int(value)
        elif flag == "--parallel":
            n_slots = int(value)
        elif flag == "--alias":
            out += [flag, ",".join(sorted(value.split(",")))]  # it shows the first of the alphabet
        elif flag == "--reasoning":
            if value == "off":
                out += ["--chat-template-kwargs", '{"enable_thinking": false}']
        else:
            out += [flag, value]
    # its slots share the context out among them, ours have it each
    out += ["--ctx-size", str(n_ctx if unified else n_ctx // n_slots), "--kv-size", str(n_ctx)]
    if "--metrics" not in args:
        out.append("--no-metrics")
    return [*out, "--parallel", str(n_slots)]


def main(
    llama_cpp: Annotated[Path, typer.Argument(help="llama.cpp's sources.", exists=True)],
    model: Annotated[Path, typer.Option(help="stories260K as GGUF.", exists=True)],
    more: Annotated[list[str] | None, typer.Argument(help="Options of pytest, after --.")] = None,
    file: Annotated[list[str] | None, typer.Option(help="basic, chat_completion, …; default: ten of them.")] = None,
) -> None:
    """Run the tests; the exit code is pytest's."""
    with tempfile.TemporaryDirectory() as made:
        tests = Path(made, "tools", "server", "tests")
        shutil.copytree(llama_cpp / "tools" / "server" / "tests", tests)
        Path(made, "models").symlink_to((llama_cpp / "models").resolve())
        for path in (tests / "utils.py", *tests.glob("unit/test_*.py")):
            text = path.read_text()
            for theirs, ours in NAMES.items():
                text = text.replace(theirs, ours)
            path.write_text(text)
        conftest = tests / "conftest.py"
        conftest.write_text(CONFTEST.format(stories=STORIES) + conftest.read_text())
        program = tests / "llama-server"
        program.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[0] = {__file__!r}\n" + SERVER)
        program.chmod(0o755)
        env = {**os.environ, "LLAMA_SERVER_BIN_PATH": str(program), "MODEL": str(model.resolve()), "PORT": free_port()}
        paths = [f"unit/test_{name}.py" for name in file or FILES]
        pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line", "-rfs"]
        raise typer.Exit(subprocess.run([*pytest, *paths, *(more or ())], cwd=tests, env=env, check=False).returncode)


#: The program in llama-server's place.
SERVER = """
import importlib.util, os
spec = importlib.util.spec_from_file_location("translation", sys.argv[0])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
args = module.translate(sys.argv[1:])
os.execv(sys.executable, [sys.executable, "-m", "ropebend.server", os.environ["MODEL"], *args])
"""


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


if __name__ == "__main__":
    typer.run(main)
