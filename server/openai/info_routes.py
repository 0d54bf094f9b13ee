"""What the server is and does: /health, /props, /slots, /v1/models, /metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from ropebend.server.engine.loading import Facts
from ropebend.server.openai import metrics
from ropebend.server.openai.common import is_scaled, model_ids, ready

router = APIRouter()


@router.get("/health")
@router.head("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
@router.head("/v1/health", include_in_schema=False)
async def health(request: Request) -> dict[str, str]:
    """200 once requests can be served."""
    ready(request)
    return {"status": "ok"}


@router.get("/props")
async def props(request: Request) -> dict[str, Any]:
    """The model, the scales in effect and the counters of requests."""
    engine, facts = ready(request)
    scaling = facts.scaling
    return {
        "model": facts.id,
        "model_alias": facts.id,
        "model_path": facts.path,
        "architecture": facts.architecture,
        "n_ctx": facts.n_ctx,
        "n_ctx_train": facts.n_ctx_train,
        "default_generation_settings": {"n_ctx": facts.n_ctx},  # where clients of llama-server look for it
        "total_slots": facts.n_slots,
        "layer_scale": list(scaling.layer_scale) if scaling is not None else None,
        "rope": asdict(scaling.rope) if scaling is not None else None,
        "plan_hash": facts.plan_hash,
        "chat_template": facts.chat_template,
        "bos_token": facts.bos,
        "eos_token": facts.eos,
        "build_info": facts.build,
        "requests": {"open": engine.n_open, **asdict(engine.stats)},
    }


@router.get("/slots")
async def slots(request: Request) -> dict[str, Any]:
    """The requests being computed and the use of the KV cache."""
    engine, facts = ready(request)
    scheduler = engine.scheduler
    pool = scheduler.pool
    running = [
        {
            "id": t.arrival,
            "n_prompt": len(t.owner.request.prompt),
            "n_computed": seq.n_computed,
            "n_generated": t.owner.n_generated,
            "n_cached": max(t.n_cached, 0),
            "plan": t.key or None,
        }
        for t in list(scheduler.running)
        if (seq := t.seq) is not None
    ]
    return {
        "n_slots": facts.n_slots,
        "n_waiting": scheduler.n_waiting,
        "kv": {
            "n_cells": facts.n_cells,
            "n_used": facts.n_cells - pool.n_free,
            "n_sequences": facts.n_seqs,
            "n_free_sequences": pool.n_free_sequences,
            "n_cached_sequences": len(pool.cached),
        },
        "slots": running,
    }


@router.get("/metrics", response_class=PlainTextResponse)
async def prometheus(request: Request) -> Response:
    """Counters in Prometheus' text format, named in llama-server's style."""
    engine, _ = ready(request)
    return Response(metrics.text(engine), media_type=metrics.CONTENT_TYPE)


@router.get("/v1/models")
@router.get("/v1/models/", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """The model, and with layer scales in effect also the same without them (`:base`)."""
    _, facts = ready(request)
    return {"object": "list", "data": [_model_card(name, facts) for name in model_ids(facts)]}


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """The model, if it is called that."""
    _, facts = ready(request)
    is_scaled(model, facts)
    return _model_card(model, facts)


def _model_card(name: str, facts: Facts) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": facts.created,
        "owned_by": "ropebend",
        "max_model_len": facts.n_ctx,
        "meta": {
            "n_ctx": facts.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_params": facts.n_params,
            "n_vocab": facts.n_vocab,
            "n_embd": facts.n_embd,
        },
    }
