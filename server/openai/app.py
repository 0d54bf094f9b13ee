"""`create_app`: the endpoints, the errors and what guards them in one FastAPI application."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ropebend import __version__
from ropebend.server.chat.chats import Chats
from ropebend.server.engine import Engine
from ropebend.server.openai import (
    chat,
    completions,
    embeddings,
    errors,
    info,
    native,
    pages,
    responses,
    templating,
    tokens,
)
from ropebend.server.openai.defaults import Defaults
from ropebend.server.openai.middleware import BodyLimit, CleanPath, KeyCheck
from ropebend.server.openai.serving import Names, names_of


def create_app(
    engine: Engine,
    api_keys: Sequence[str] = (),
    *,
    names: Names | None = None,
    chats: Chats | None = None,
    defaults: Defaults | None = None,
    off: Collection[str] = (),
    cors_origins: Sequence[str] = (),
    max_body: int = 16 * 2**20,
) -> FastAPI:
    """The server's application around an engine, which may still be loading.

    api_keys: none: everybody may ask; names: default: the file's; chats: how they become prompts; defaults: of requests
    that do not say how to sample; off: of slots, metrics and ui what is not there; cors_origins: pages
    of these origins may ask ("*": of all); max_body: bytes.
    """
    # FastAPI's own pages would need scripts from elsewhere
    app = FastAPI(title="ropebend", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.engine = engine
    app.state.names = names or names_of(engine.options.model)
    app.state.chats = chats or Chats()
    app.state.defaults = defaults or Defaults()
    app.state.off = off
    shown = [] if "ui" in off else [pages]
    for module in (completions, chat, responses, native, templating, embeddings, tokens, info, *shown):
        app.include_router(module.router)
    errors.install(app)
    app.add_middleware(BodyLimit, limit=max_body)
    if api_keys:
        app.add_middleware(KeyCheck, keys=[os.fsencode(key) for key in api_keys])
    if cors_origins:  # outside of the key check: a browser's preflight carries no key
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(CleanPath)
    return app
