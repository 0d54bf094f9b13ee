"""`create_app`: the endpoints, the errors and the key check in one FastAPI application."""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ropebend import __version__
from ropebend.server import errors, info_routes, routes, text_routes
from ropebend.server.engine import Engine


def create_app(engine: Engine, api_keys: Sequence[str] = ()) -> FastAPI:
    """The server's application around an engine, which may still be loading; no key: everybody may ask."""
    # FastAPI's own pages would need scripts from elsewhere
    app = FastAPI(title="ropebend", version=__version__, docs_url=None, redoc_url=None)
    app.state.engine = engine
    for module in (routes, text_routes, info_routes):
        app.include_router(module.router)
    errors.install(app)
    if api_keys:
        app.add_middleware(_KeyCheck, keys=[os.fsencode(key) for key in api_keys])
    return app


class _KeyCheck:
    """Lets in who sends one of the keys, before anything of the body is read.  /health is open, for load balancers."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]):
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # no early exit, and compare_digest: the time must not tell how much of a key was right
            right = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self.keys]
            if scheme.lower() != "bearer" or not any(right):
                message = "Incorrect API key provided" if given else "No API key: expected Authorization: Bearer KEY"
                error = errors.ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)
