"""Errors as the OpenAI API shows them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ropebend.errors import TextError
from ropebend.server.engine import Unavailable


class ApiError(Exception):
    """An answer that is an error.

    param: the request parameter at fault; code: a word programs can test for; more: other fields.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | int | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code, **(more or {})}}
        self.headers = headers

    def response(self) -> Response:
        """The HTTP answer."""
        # ASCII JSON: the message may quote a lone surrogate of the request, which UTF-8 cannot hold
        return Response(json.dumps(self.body), self.status, dict(self.headers or {}), "application/json")


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    """503, try again later."""
    return ApiError(
        503,
        message,
        type="unavailable_error",
        code="service_unavailable",
        headers={"Retry-After": str(retry_after_s)},
    )


def loading() -> ApiError:
    """503 in the words of llama-server, for the time before the model is loaded."""
    error = unavailable("Loading model")
    error.body = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    return error


def switched_off(what: str, flag: str) -> ApiError:
    """501 in the words of llama-server."""
    return ApiError(501, f"{what} is switched off; see {flag}", type="not_supported_error", code="not_supported")


def internal(message: str) -> ApiError:
    """500: the request was fine, the server failed."""
    return ApiError(500, message, type="server_error", code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error of `app` take this shape, those of the framework included."""

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, e: ApiError) -> Response:
        return e.response()

    @app.exception_handler(Unavailable)
    async def not_now(_request: Request, e: Unavailable) -> Response:
        return unavailable(str(e)).response()

    @app.exception_handler(TextError)
    async def no_tokens(_request: Request, e: TextError) -> Response:
        return ApiError(400, str(e), code="invalid_value").response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, e: RequestValidationError) -> Response:
        return from_validation(e.errors(), e.body).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, e: HTTPException) -> Response:
        message, code = str(e.detail), None
        if e.status_code == 404:
            path = request.scope["path"]
            message, code = f"Unknown URL: {request.method} {path}", "unknown_url"
            if f"/v1{path}" in request.app.openapi()["paths"]:
                message += f"; there is /v1{path}"
        elif e.status_code == 405:
            message, code = f"{request.method} is not allowed on {request.url.path}", "method_not_allowed"
        return ApiError(e.status_code, message, code=code, headers=e.headers).response()

    @app.exception_handler(Exception)
    async def bug(_request: Request, e: Exception) -> Response:
        return internal(f"internal error: {type(e).__name__}").response()


def from_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """One 400 from pydantic's list of errors, naming the first parameter that is wrong.  body: what was sent."""
    # Of a union's errors (one for each member) the deepest comes closest to what was meant, then one that is not
    # about the type.
    first = errors[0]["loc"][:2]
    candidates = (e for e in errors if e["loc"][:2] == first)
    e = max(candidates, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
    if e["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {e['ctx']['error']} at character {e['loc'][-1]}")
    ctx = e.get("ctx", {})
    param = _param(e["loc"][1:], body, missing=e["type"] == "missing")
    if e["type"] == "not_neutral":  # found before the fields are read, so the place is that of the object
        param = f"{param}.{ctx['param']}" if param else ctx["param"]
        if not ctx["expected"]:
            return _unsupported(param)
        return ApiError(400, f"{param}: only {ctx['expected']} is supported", param=param, code="unsupported_value")
    if not param:
        return ApiError(400, "The body: expected a JSON object, sent with Content-Type: application/json")
    if e["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if e["type"] == "none_required":
        return _unsupported(param)
    if e["type"] == "missing":
        message, code = f"Missing required parameter: {param}", "missing_required_parameter"
        return ApiError(400, message, param=param, code=code)
    if e["type"] == "literal_error":
        message = f"{param}: only {ctx['expected']} is supported"
        return ApiError(400, message, param=param, code="unsupported_value")
    code = "invalid_type" if e["type"].endswith("_type") else "invalid_value"
    # pydantic's own words name the class that an object becomes
    message = "expected an object" if e["type"].startswith("model_") else str(e["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message[:1].lower()}{message[1:]}", param=param, code=code)


def _unsupported(param: str) -> ApiError:
    message = f"{param} is not supported by this server"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def _param(loc: Sequence[Any], body: Any, *, missing: bool) -> str:
    """``messages[0].content`` from a pydantic location.

    The names of union members that stand in it are left out: they are no part of the body.
    """
    path, value = "", body
    for i, part in enumerate(loc):
        inside = isinstance(value, dict) and part in value
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(part, str) and (inside or i == 0 or (missing and i == len(loc) - 1)):
            path, value = f"{path}.{part}" if path else part, value[part] if inside else None
    return path
