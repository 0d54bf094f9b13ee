"""`create_app`: the endpoints, the errors and what guards them in one FastAPI application."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ropebend import __version__
from ropebend.server.engine.engine import Engine
from ropebend.server.openai import errors, info_routes, pages, routes, text_routes
from ropebend.server.openai.middleware import BodyLimit, KeyCheck

MAX_BODY = 16 * 2**20


def create_app(
    engine: Engine, api_keys: Sequence[str] = (), *, cors_origins: Sequence[str] = (), max_body: int = MAX_BODY
) -> FastAPI:
    """The server's application around an engine, which may still be loading.

    api_keys: none: everybody may ask; cors_origins: pages of these origins may ask ("*": of all); max_body: bytes.
    """
    # FastAPI's own pages would need scripts from elsewhere
    app = FastAPI(title="ropebend", version=__version__, docs_url=None, redoc_url=None)
    app.state.engine = engine
    for module in (routes, text_routes, info_routes, pages):
        app.include_router(module.router)
    errors.install(app)
    app.add_middleware(BodyLimit, limit=max_body)
    if api_keys:
        app.add_middleware(KeyCheck, keys=[os.fsencode(key) for key in api_keys])
    if cors_origins:  # outermost: a browser's preflight carries no key
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"])
    return app
