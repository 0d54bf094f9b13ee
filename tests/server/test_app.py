"""The application without sockets: while loading, and the shapes of errors."""

import asyncio
from typing import Any

import pytest

from ropebend.server.openai.middleware import BodyLimit

from .conftest import ask

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/health", None),
        ("GET", "/props", None),
        ("GET", "/v1/models", None),
        ("POST", "/v1/completions", {"prompt": "a"}),
        ("POST", "/v1/chat/completions", CHAT),
    ],
)
def test_while_loading_all_but_the_pages_answers_503_as_llama_server_does(method: str, path: str, body: Any) -> None:
    answer = ask(method, path, json=body)
    assert answer.status_code == 503
    assert answer.json() == {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "Basic right", "Bearer rightt", "Bearer ö"])
def test_without_the_key_nothing_but_health_is_shown(given: str) -> None:
    headers = {"Authorization": given.encode()} if given else {}
    for path in ("/v1/models", "/props", "/nowhere"):
        answer = ask("GET", path, headers=headers, api_keys=("other", "right"))
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert ask("GET", "/health", api_keys=("other", "right")).status_code == 503  # loading


@pytest.mark.parametrize("key", ["other", "right", "schlüssel"])
def test_each_key_opens(key: str) -> None:
    keys = ("other", "right", "schlüssel")
    answer = ask("GET", "/v1/models", headers={"Authorization": f"bearer {key}".encode()}, api_keys=keys)
    assert answer.status_code == 503  # loading: let in


def test_unknown_urls_and_methods_answer_in_the_same_shape() -> None:
    answer = ask("GET", "/v1/nowhere")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "Unknown URL: GET /v1/nowhere",
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_url",
    }
    assert ask("POST", "/responses/").json()["error"]["message"].startswith("Unknown URL: POST /responses")
    answer = ask("GET", "/v1/completions")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1/models/", "//v1//models", "/health/", "//", "/v1/chat/completions/"])
def test_slashes_too_many_change_nothing(path: str) -> None:
    assert ask("OPTIONS", f"http://test{path}").status_code == 405  # there is such a path


@pytest.mark.parametrize("header", ["X-Api-Key", "x-api-key"])
def test_a_key_may_come_in_a_header_of_its_own(header: str) -> None:
    def status(key: str, **more: str) -> int:
        return int(ask("GET", "/v1/models/", headers={header: key, **more}, api_keys=("other", "right")).status_code)

    assert status("right") == 503  # loading: let in
    assert status("right", Authorization="Basic cHJveHk6cHJveHk=") == 503
    assert status("wrong") == 401
    assert status("") == 401


def test_doubled_slashes_open_nothing() -> None:
    assert ask("GET", "http://test//props", api_keys=("right",)).status_code == 401
    assert ask("GET", "http://test//health", api_keys=("right",)).status_code == 503


class Piece(bytes):
    """Part of a body; adding it to what was read before would copy all of that for each part."""

    def __radd__(self, other: bytes) -> bytes:
        raise AssertionError("quadratic")


def test_a_body_in_pieces_is_joined_once() -> None:
    pieces = [Piece(b"ab")] * 1000
    seen: list[Any] = []

    async def inner(_scope: Any, receive: Any, _send: Any) -> None:
        seen.append(await receive())

    async def run() -> None:
        left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        left.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Any:
            return left.pop(0)

        await BodyLimit(inner, 2000)({"type": "http", "headers": []}, receive, None)  # type: ignore[arg-type]

    asyncio.run(run())
    assert seen == [{"type": "http.request", "body": b"ab" * 1000, "more_body": False}]
