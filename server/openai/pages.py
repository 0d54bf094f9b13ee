"""Pages for people: the chat at / and the API at /docs.  No build step, nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)


def _headers(styles: str) -> dict[str, str]:
    """What a model wrote is on the page: no script but ours, nothing loaded from or sent to elsewhere."""
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src {styles}; script-src 'self'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


_FOLDER = resources.files("ropebend.server.openai") / "page"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}


def _files(folder: Any, prefix: str) -> dict[str, tuple[Any, str]]:
    found = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found.update(_files(entry, f"{prefix}{entry.name}/"))
        elif media_type := _MEDIA_TYPES.get("." + entry.name.rpartition(".")[2]):
            found[prefix + entry.name] = (entry, media_type)
    return found


#: The scripts and styles of the chat by their paths.
FILES = _files(_FOLDER, "/page/")


@router.get("/")
async def chat_page() -> HTMLResponse:
    """The chat."""
    return HTMLResponse((_FOLDER / "index.html").read_text(encoding="utf-8"), headers=_headers("'self'"))


@router.get("/page/{name:path}")
async def chat_file(request: Request) -> Response:
    """A script or the style of the chat."""
    if (found := FILES.get(request.scope["path"])) is None:
        raise HTTPException(404)
    path, media_type = found
    return Response(path.read_bytes(), media_type=media_type, headers=_headers("'self'"))


@router.get("/docs")
async def docs_page(request: Request) -> HTMLResponse:
    """The endpoints and their parameters, from the OpenAPI document."""
    api = request.app.openapi()
    parts = ["<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>ropebend API</title><style>"]
    parts.append("body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}")
    parts.append("td{padding:.1rem .75rem .1rem 0;vertical-align:top}code{white-space:nowrap}</style>")
    parts.append(
        "<h1>ropebend API</h1><p>The whole of it as <a href='openapi.json'>OpenAPI document</a>; * is required.</p>"
    )
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            parts.append(_parameters(operation, api))
    return HTMLResponse("".join(parts), headers=_headers("'unsafe-inline'"))


def _parameters(operation: dict[str, Any], api: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return ""
    schema = api["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(name)}</code>{'*' if name in required else ''}</td><td>{_type(field)}</td></tr>"
        for name, field in schema["properties"].items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(t for f in field["anyOf"] if (t := _type(f)) != "null")
    if "$ref" in field:
        return escape(field["$ref"].rpartition("/")[2])
    if "const" in field or "enum" in field:
        return ", ".join(escape(repr(v)) for v in field.get("enum", [field.get("const")]))
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_type(field.get('items', {}))}"
    ends = [f"{sign} {field[k]:g}" for k, sign in (("minimum", "≥"), ("maximum", "≤")) if k in field]
    return escape(" ".join([kind, *ends]))
