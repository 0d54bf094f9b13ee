"""What the server is and does: /health, /props, /slots, /status, /v1/models, /metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from starlette.responses import PlainTextResponse

from ropebend.scaling import LayerScaling
from ropebend.server.openai import errors, metrics
from ropebend.server.openai.native import defaults_of, settings_of
from ropebend.server.openai.serving import Served, Serving

router = APIRouter()


@router.get("/health")
@router.head("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
@router.head("/v1/health", include_in_schema=False)
async def health(_serving: Served) -> dict[str, str]:
    """200 once requests can be served."""
    return {"status": "ok"}


@router.get("/props")
async def props(serving: Served) -> dict[str, Any]:
    """The model, the scales in effect and the counters of requests."""
    engine, facts = serving.engine, serving.facts
    scaling = facts.scaling
    seed = {} if serving.defaults.seed is None else {"seed": serving.defaults.seed}
    return {
        "model": serving.model,
        "model_alias": serving.model,
        "model_path": facts.path,
        "architecture": facts.architecture,
        "n_ctx": facts.n_ctx,
        "n_ctx_train": facts.n_ctx_train,
        # where clients of llama-server look for it
        "default_generation_settings": {
            "n_ctx": facts.n_ctx,
            "params": settings_of(defaults_of(serving), -1) | seed,
        },
        "total_slots": facts.n_slots,
        "layer_scale": list(scaling.layer_scale) if scaling is not None else None,
        "layer_attn_factor": list(scaling.layer_attn_factor) if scaling is not None else None,
        "plans": plans_of(scaling, facts.n_ctx),
        "rope": asdict(scaling.rope) if scaling is not None else None,
        "plan_hash": facts.plan_hash,
        "chat_template": serving.chats.source(facts),
        "chat_template_tool_use": facts.tool_template,
        "bos_token": facts.bos,
        "eos_token": facts.eos,
        "build_info": facts.build,
        "requests": {"open": engine.n_open, **asdict(engine.stats)},
    }


def plans_of(scaling: LayerScaling | None, n_ctx: int) -> list[dict[str, Any]]:
    """What sequences run under, by the tokens they may reach (`up_to`, null: any); hash null: unscaled."""
    if scaling is None:
        return []
    out = []
    for up_to, part in [*((p.up_to, p.scaling) for p in scaling.shorter), (scaling.up_to, scaling)]:
        plan = part.longest.plan(up_to or n_ctx) if part is not None else None
        out.append(
            {
                "up_to": up_to,
                "hash": plan.hash if plan is not None else None,
                "layer_scale": list(part.layer_scale) if part is not None else None,
                "layer_attn_factor": list(part.layer_attn_factor) if part is not None else None,
            }
        )
    return out


@router.get("/slots")
async def slots(serving: Served) -> list[dict[str, Any]]:
    """Each slot in llama-server's words: what it computes, or nothing."""
    if "slots" in serving.off:
        raise errors.switched_off("/slots", "--slots")
    running = serving.engine.slots()
    idle: dict[str, Any] = {"n_ctx": serving.facts.n_ctx, "speculative": False, "is_processing": False}
    return [
        {
            "id": i,
            **idle,
            **(
                {
                    "is_processing": True,
                    "id_task": running[i].arrival,
                    "n_prompt_tokens": running[i].n_prompt,
                    "n_prompt_tokens_processed": running[i].n_computed - running[i].n_cached,
                    "n_prompt_tokens_cache": running[i].n_cached,
                    "next_token": [{"n_decoded": running[i].n_generated}],
                }
                if i < len(running)
                else {}
            ),
        }
        for i in range(serving.facts.n_slots)
    ]


@router.get("/status")
async def status(serving: Served) -> dict[str, Any]:
    """The requests being computed and the use of the KV cache."""
    engine, facts = serving.engine, serving.facts
    scheduler = engine.scheduler
    pool = scheduler.pool
    running = [
        {
            "id": s.arrival,
            "n_prompt": s.n_prompt,
            "n_computed": s.n_computed,
            "n_generated": s.n_generated,
            "n_cached": s.n_cached,
            "plan": s.plan or None,
        }
        for s in engine.slots()
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
async def prometheus(serving: Served) -> Response:
    """Counters in Prometheus' text format, of ours and under llama-server's names."""
    if "metrics" in serving.off:
        raise errors.switched_off("/metrics", "--metrics")
    headers = {"Process-Start-Time-Unix": str(serving.facts.created)}
    return Response(metrics.text(serving.engine), media_type=metrics.CONTENT_TYPE, headers=headers)


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def models(serving: Served) -> dict[str, Any]:
    """The model, and with layer scales in effect also the same without them (`:base`)."""
    return {"object": "list", "data": [_model_card(name, serving) for name in serving.shown_ids()]}


@router.get("/v1/models/{model:path}")
async def model(model: str, serving: Served) -> dict[str, Any]:
    """The model, if it is called that."""
    serving.is_scaled(model)
    return _model_card(model, serving)


def _model_card(name: str, serving: Serving) -> dict[str, Any]:
    facts = serving.facts
    return {
        "id": name,
        "object": "model",
        "created": facts.created,
        "owned_by": "ropebend",
        "aliases": list(serving.names.ids),
        "tags": list(serving.names.tags),
        "max_model_len": facts.n_ctx,
        "meta": {
            "n_ctx": facts.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_params": facts.n_params,
            "n_vocab": facts.n_vocab,
            "n_embd": facts.n_embd,
        },
    }
