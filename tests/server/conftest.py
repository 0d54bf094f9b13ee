"""Tiny random models, and the server as a process on a free port."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import gguf
import httpx
import numpy as np
import openai
import pytest
from random_models import add_scaling

from ropebend.runtime import Runtime
from ropebend.scaling import LayerScaling
from ropebend.server.cli import RUNTIME
from ropebend.server.engine import Engine, EngineOptions
from ropebend.server.openai.app import create_app

N_LAYER, N_EMBD, N_HEAD, N_FF, N_CTX_TRAIN = 3, 64, 4, 96, 256
END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
WORDS = ["the", "and", "to", "was", "of", "said", "she", "little", "day", "big", "they", "in", "dog"]
WORDS += ["play", "happy", "it", "on", "with", "sun", "tree"]
PIECES = [
    *(t.encode() for t in (END, USER, ASSISTANT)),
    *(bytes([b]) for b in range(256)),
    *(f" {w}".encode() for w in WORDS),
    "né".encode(),
    "€".encode(),
]
TOKEN = {piece: i for i, piece in enumerate(PIECES)}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "rain": {"type": "boolean"}},
            "required": ["unit", "rain"],
            "additionalProperties": False,
        },
    },
}
THINKS = (
    "{% for m in messages %}{{ m.role }}:"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}\n{% endfor %}{% if tools %}<tool_call>{% endif %}{% if add_generation_prompt %}assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% elif reasoning_effort %}{{ reasoning_effort }}<think>\n{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}"
    "{% if m['content'] == 'refuse me' %}{{ raise_exception('as you wish') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_rwkv(w: gguf.GGUFWriter) -> None:
    """A tokeniser that takes the longest match of all bytes and a few words."""
    w.add_tokenizer_model("rwkv")
    escaped = [b"".join(bytes([b]) if 0x20 <= b < 0x7F and b != 0x5C else b"\\x%02x" % b for b in p) for p in PIECES]
    w.add_token_list(escaped)
    w.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(PIECES) - 3))
    w.add_eos_token_id(TOKEN[END.encode()])


def write_spm(w: gguf.GGUFWriter, added: Sequence[str] = ()) -> None:
    """A SentencePiece tokeniser as llama 2 has it: BOS before a text, and a blank before its first word.

    added: tokens that were added to it, which are read in every text.
    """
    words = ["▁", "▁d", "▁do", "▁dog", *"abcdefghijklmnopqr"]
    assert 3 + 256 + len(words) == len(PIECES)
    words = words[: len(words) - len(added)]
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *added])
    w.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(words) + len(added))])
    kinds = gguf.TokenType
    of_words = [kinds.NORMAL] * len(words) + [kinds.USER_DEFINED] * len(added)
    w.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *of_words])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(True)


def write_model(
    path: Path,
    scaling: LayerScaling | None = None,
    *,
    name: str = "tiny",
    template: str | None = CHAT_TEMPLATE,
    write_tokenizer: Callable[[gguf.GGUFWriter], None] = write_rwkv,
) -> Path:
    """A llama model with seeded random weights."""
    rng = np.random.default_rng(7)
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(name)
    w.add_context_length(N_CTX_TRAIN)
    w.add_embedding_length(N_EMBD)
    w.add_block_count(N_LAYER)
    w.add_feed_forward_length(N_FF)
    w.add_head_count(N_HEAD)
    w.add_head_count_kv(N_HEAD)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(N_EMBD // N_HEAD)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(len(PIECES))
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    write_tokenizer(w)
    if template is not None:
        w.add_chat_template(template)
    if scaling is not None:
        add_scaling(w, scaling)
    embd = rng.normal(0, 0.4, (len(PIECES), N_EMBD)).astype(np.float32)
    for i, piece in enumerate(PIECES):
        # Logits are products with these rows: at zero, bytes that are no text and the end are never the likeliest.
        if i < 3 or (len(piece) == 1 and not piece.isalnum()):
            embd[i] = 0
    w.add_tensor("token_embd.weight", embd)
    w.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for i in range(N_LAYER):
        shapes = {f"attn_{x}": (N_EMBD, N_EMBD) for x in ("q", "k", "v", "output")}
        shapes |= {"ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
        for tensor, shape in shapes.items():
            sharp = 2.0 if tensor.startswith("attn") else 1.0  # so that attention, and with it RoPE, matters
            value = rng.normal(0, sharp * shape[1] ** -0.5, shape).astype(np.float32)
            w.add_tensor(f"blk.{i}.{tensor}.weight", value)
        for tensor in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{tensor}.weight", np.ones(N_EMBD, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def engine_options(model: Path, **given: Any) -> EngineOptions:
    """Options by name, those of `Runtime` among them; one thread and a server's other defaults."""
    names = {f.name for f in fields(Runtime)}
    runtime = replace(RUNTIME, n_threads=1, **{k: given.pop(k) for k in [*given] if k in names})
    return EngineOptions(model, runtime=runtime, **given)


def ask(method: str, path: str, *, headers: Any = None, content: Any = None, json: Any = None, **options: Any) -> Any:
    """One request, without sockets, to an application whose engine has not loaded.  options: of `create_app`."""

    async def send() -> httpx.Response:
        app = create_app(Engine(EngineOptions(Path("never-loaded.gguf"))), **options)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, headers=headers, content=content, json=json)

    return asyncio.run(send())


def counts(usage: openai.types.CompletionUsage | None) -> tuple[int, int, int]:
    """Token counts, without how many were cached: that depends on what was asked before."""
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


#: With a float32 cache results hardly depend on where in the cache a sequence lies and what else is in the batch.
EXACT = ("--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32")

SCALES = (1.5, 1.0, 3.0)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """plain, scaled (scales tested at 1,024 tokens), one without a chat template, and one with SentencePiece."""
    folder = tmp_path_factory.mktemp("models")
    scores = {"test": {"layers": {"kv": 0.5}}}
    scaling = LayerScaling(SCALES, "llama", provenance={"n_ctx": 1024, "scores": scores})
    return {
        "plain": write_model(folder / "tiny.gguf"),
        "scaled": write_model(folder / "tiny-scaled.gguf", scaling),
        "no-template": write_model(folder / "no-template.gguf", template=None),
        "spm": write_model(folder / "spm.gguf", write_tokenizer=write_spm),
    }


T = TypeVar("T")


def wait_for(condition: Callable[[], T]) -> T:
    """What `condition` gives, once that is true.  The deadline only turns a hang into a failure."""
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


class Server:
    """`python -m ropebend.server` on a free port; what it prints on stderr is kept in `log`.

    patch: Python statements to run before it, which may break it in ways that are hard to provoke from outside.
    """

    def __init__(self, *args: str | Path, env: dict[str, str] | None = None, patch: str = ""):
        program = ["-c", f"from ropebend.server.__main__ import main\n{patch}\nmain()"] if patch else []
        self.process = subprocess.Popen(
            [
                sys.executable,
                *(program or ["-m", "ropebend.server"]),
                *map(str, args),
                *("--port", "0", "--threads", "1"),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on (http://\S+),", line):
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_until_listening(self) -> Server:
        assert self._listening.wait(60), self.log
        assert self.url, self.log
        return self

    def wait_until_ready(self) -> Server:
        self.wait_until_listening()
        with httpx.Client(timeout=60) as http:

            def answered() -> httpx.Response | None:
                answer = http.get(f"{self.url}/health")
                if answer.status_code != 503:
                    return answer
                assert answer.json()["error"]["message"] == "Loading model", self.log
                return None

            assert wait_for(answered).status_code == 200, self.log
        return self

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=60)

    def wait(self) -> int:
        """Exit code, once it has ended by itself."""
        code = self.process.wait(60)
        self._reader.join(60)
        for pipe in (self.process.stderr, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Server]]:
    """Start servers, which are ended with the session if they still run."""
    started: list[Server] = []

    def run(*args: str | Path, **more: Any) -> Server:
        started.append(Server(*args, **more))
        return started[-1]

    yield run
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


@pytest.fixture(scope="session")
def server(start: Callable[..., Server], models: dict[str, Path]) -> Server:
    """The plain model at its trained length, as most tests use it; with the most exact arithmetic there is."""
    return start(models["plain"], *EXACT).wait_until_ready()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def thinker(
    start: Callable[..., Server], models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """A client of the plain model with a chat template that thinks."""
    file = tmp_path_factory.mktemp("template") / "thinks.jinja"
    file.write_text(THINKS)
    server = start(models["plain"], *EXACT, "-c", "2048", "--chat-template", str(file)).wait_until_ready()
    with server.client() as client:
        yield client
    assert server.stop() == 0


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
