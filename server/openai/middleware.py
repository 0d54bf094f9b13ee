"""What every request passes before its route: the key check and the size limit."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ropebend.server.openai.errors import ApiError

#: Open without a key: for load balancers, and the page, which holds nothing and asks for the key.
OPEN_PATHS = frozenset(["/", "/health", "/v1/health"])


class KeyCheck:
    """Lets in who sends one of the keys, before anything of the body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]):
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # no early exit, and compare_digest: the time must not tell how much of a key was right
            right = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self.keys]
            if scheme.lower() != "bearer" or not any(right):
                message = "Incorrect API key provided" if given else "No API key: expected Authorization: Bearer KEY"
                error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses bodies of more than `limit` bytes, before they are in memory, with or without a Content-Length."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self.limit:
            await self._too_large().response()(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                await self._too_large().response()(scope, receive, send)
                return
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message if message is not None else await receive()

        await self.app(scope, replay, send)

    def _too_large(self) -> ApiError:
        message = f"The body: expected at most {self.limit} bytes; see --max-body-size"
        return ApiError(413, message, code="request_too_large")
