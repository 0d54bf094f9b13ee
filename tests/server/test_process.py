"""How the process starts and ends."""

import inspect
import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import typer.models

from ropebend.errors import RopebendError
from ropebend.server.cli import serve
from ropebend.server.process import listen

from .conftest import N_CTX_TRAIN, Server, wait_for

LONG = {"prompt": "a", "max_tokens": N_CTX_TRAIN - 1, "n": 128, "logit_bias": {"0": -100}, "stream": True}


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["missing.gguf"], 1, "error: missing.gguf: No such file or directory"),
        (["MODEL", "--cache-type-v", "q8_0"], 1, "cannot make a context"),
        (["MODEL", "--factors", "missing.json"], 1, "error: missing.json: No such file"),
        (["MODEL", "--factors", "missing.json", "--no-scaling"], 2, "--factors and --no-scaling contradict each other"),
        (["MODEL", "-b", "16", "-ub", "32"], 2, "--ubatch-size: expected at most --batch-size 16, got 32"),
        (["MODEL", "--api-key", " "], 2, "--api-key: expected a key"),
        (["MODEL", "--cache-type-k", "q3"], 2, "q3"),
        (["MODEL", "--no-such-flag"], 2, "--no-such-flag"),
        (["MODEL", "--host", ","], 2, "--host: expected an address"),
        (["MODEL", "--chat-template", "chatm"], 2, "--chat-template: chatm is neither a file nor one of bailing, "),
    ],
)
def test_a_start_that_fails(
    start: Callable[..., Server], models: dict[str, Path], args: list[str], code: int, says: str
) -> None:
    server = start(*(str(models["plain"]) if a == "MODEL" else a for a in args))
    assert server.wait() == code
    assert says in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("name", "value"), [("ROPEBEND_API_KEY", ""), ("ROPEBEND_API_KEY", " "), ("ROPEBEND_API_KEY_FILE", "")]
)
def test_a_blank_key_variable_opens_no_server(
    start: Callable[..., Server], models: dict[str, Path], name: str, value: str
) -> None:
    server = start(models["plain"], env={name: value})
    assert server.wait() == 2
    assert f"{name} is set but empty" in server.log


def has_ipv6() -> bool:
    """Whether there is a loopback address of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")


def test_a_port_in_use() -> None:
    with listen("127.0.0.1", 0) as first:
        assert first.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on
        port = first.getsockname()[1]
        says = rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use; see --host and --port"
        with pytest.raises(RopebendError, match=says):
            listen("127.0.0.1", port)


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(RopebendError, match=r"cannot listen on nowhere\.invalid:80: "):
        listen("nowhere.invalid", 80)


@needs_ipv6
def test_ipv6() -> None:
    with listen("::1", 0) as s:
        assert s.family == socket.AF_INET6


@needs_ipv6
def test_several_addresses_have_one_port(start: Callable[..., Server], models: dict[str, Path]) -> None:
    server = start(models["plain"], "--host", "127.0.0.1, ::1").wait_until_ready()
    port = httpx.URL(server.url).port
    assert f"listening on http://127.0.0.1:{port}, http://[::1]:{port}, loading" in server.log
    for url in (server.url, f"http://[::1]:{port}"):
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_open_requests_finish(start: Callable[..., Server], models: dict[str, Path], sig: int) -> None:
    server = start(models["plain"], "--grace", "60").wait_until_ready()
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json={**LONG, "n": 2}) as answer,
    ):
        chunks = answer.iter_text()
        next(chunks)
        server.process.send_signal(sig)
        assert "".join(chunks).endswith("data: [DONE]\n\n")
    assert server.wait() == 0
    assert "finishing open requests" in server.log
    assert "stopped" in server.lines[-1]
    assert "Traceback" not in server.log


def test_after_the_grace_requests_are_cut_with_an_error_event(
    start: Callable[..., Server], models: dict[str, Path]
) -> None:
    server = start(models["plain"], "--grace", "0", "--queue-size", "0", "--parallel", "1").wait_until_ready()
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=LONG) as answer,
    ):
        chunks = answer.iter_text()
        next(chunks)
        # one runs, none may wait
        busy = httpx.post(f"{server.url}/v1/completions", json=LONG)
        assert busy.status_code == 503
        assert int(busy.headers["Retry-After"]) > 0
        assert busy.json()["error"]["type"] == "unavailable_error"
        assert "waiting already" in busy.json()["error"]["message"]
        server.process.send_signal(signal.SIGTERM)
        rest = "".join(chunks)
    assert '"error": {"message": "the server is shutting down"' in rest
    assert "[DONE]" not in rest
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_a_second_signal_ends_at_once(start: Callable[..., Server], models: dict[str, Path]) -> None:
    server = start(models["plain"], "--grace", "3600").wait_until_ready()
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=LONG) as answer,
    ):
        texts = answer.iter_text()  # kept: when it is freed, httpx closes the connection and ends the request
        next(texts)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "finishing open requests" in server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 1


@contextmanager
def client_that_does_not_read(server: Server) -> Iterator[None]:
    """It has asked for more than fits the buffers, and all of it has been computed."""
    with socket.socket() as slow, httpx.Client(base_url=server.url, timeout=60) as http:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        body = json.dumps({**LONG, "n": 24, "logprobs": 5}).encode()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        wait_for(lambda: http.get("/props").json()["requests"]["done"])
        yield


def test_a_client_that_does_not_read_is_cut_after_the_grace(
    start: Callable[..., Server], models: dict[str, Path]
) -> None:
    server = start(models["plain"], "--grace", "0").wait_until_ready()
    with client_that_does_not_read(server):
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "Traceback" not in server.log


def test_a_crash_of_the_engine_ends_the_process_whoever_does_not_read(
    start: Callable[..., Server], models: dict[str, Path]
) -> None:
    patch = (
        "from ropebend.server.engine.runner import Runner\nrun = Runner.run\n"
        "Runner.run = lambda r, step: 1 / (len(step.chunks[0].entry.owner.request.prompt) - 7) and run(r, step)"
    )
    server = start(models["plain"], "--grace", "3600", patch=patch).wait_until_ready()
    with client_that_does_not_read(server):
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": [40] * 7}, timeout=60)
        assert server.wait() == 1
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the engine crashed: ZeroDivisionError: division by zero",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "error: the engine crashed: ZeroDivisionError" in server.lines[-1]
    assert "Traceback" not in server.log


def test_a_signal_while_loading(start: Callable[..., Server], models: dict[str, Path]) -> None:
    patch = """import threading
from ropebend.server.engine.engine import Engine
Engine._load = lambda _: threading.Event().wait()"""
    server = start(models["plain"], patch=patch).wait_until_listening()
    assert httpx.get(f"{server.url}/health").status_code == 503
    assert server.stop() == 0


def test_every_flag_is_an_environment_variable_and_has_a_help_text() -> None:
    parameters = dict(inspect.signature(serve, eval_str=True).parameters)
    del parameters["model"], parameters["model_option"]
    for name, parameter in parameters.items():
        (option,) = parameter.annotation.__metadata__
        assert isinstance(option, typer.models.OptionInfo)
        flags = [d for d in (option.default, *(option.param_decls or ())) if isinstance(d, str)]
        long = [d.partition("/")[0] for d in flags if d.startswith("--")] or [f"--{name}"]
        ours = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or [])
        assert ours[0] in [f"ROPEBEND_{d.removeprefix('--').replace('-', '_').upper()}" for d in long]
        assert all(other.startswith("LLAMA_") for other in ours[1:])
        assert option.help
