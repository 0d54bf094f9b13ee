"""The application without sockets: while loading, and the shapes of errors."""

from typing import Any

import pytest

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
    answer = ask("GET", "/v1/completions")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"
