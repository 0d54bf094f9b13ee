"""What every request passes before its route: its path put right, the key check and the size limit."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ropebend.server.openai import pages
from ropebend.server.openai.errors import ApiError

#: Open without a key: for load balancers, and the page, which holds nothing and asks for the key.
OPEN_PATHS = frozenset(["/", *pages.FILES, "/health", "/v1/health"])


class CleanPath:
    """Takes ``//v1/models/`` for ``/v1/models``: clients put base URLs and paths together in every way."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] == "http":
            path = re.sub("/{2,}", "/", scope["path"])
            scope = {**scope, "path": path.rstrip("/") or "/"}
        await self.app(scope, receive, send)


class KeyCheck:
    """Lets in who sends one of the keys, as a bearer token or X-Api-Key, before anything of the body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]):
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            scheme, _, token = headers.get("authorization", "").partition(" ")
            # some proxies put their own Authorization beside the key
            given = [token] * (scheme.lower() == "bearer") + headers.getlist("x-api-key")
            # no early exit, and compare_digest: the time must not tell how much of a key was right
            right = [hmac.compare_digest(g.strip().encode("latin-1"), key) for g in given for key in self.keys]
            if not any(right):
                expected = "No API key: expected Authorization: Bearer KEY, or X-Api-Key: KEY"
                message = "Incorrect API key provided" if any(given) else expected
                how = {"WWW-Authenticate": "Bearer"}
                error = ApiError(401, message, type="authentication_error", code="invalid_api_key", headers=how)
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
        # joined once: adding each piece to the body would copy all of it each time
        pieces: list[bytes] = []
        n, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            pieces.append(message.get("body", b""))
            n += len(pieces[-1])
            more = message.get("more_body", False)
            if n > self.limit:
                await self._too_large().response()(scope, receive, send)
                return
        whole: Message | None = {"type": "http.request", "body": b"".join(pieces), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message if message is not None else await receive()

        await self.app(scope, replay, send)

    def _too_large(self) -> ApiError:
        message = f"The body: expected at most {self.limit} bytes; see --max-body-size"
        return ApiError(413, message, code="request_too_large")
