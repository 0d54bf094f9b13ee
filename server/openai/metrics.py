"""/metrics: the engine's counters for Prometheus, read when asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ropebend.server.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST


def _families(
    kind: type[CounterMetricFamily | GaugeMetricFamily], prefix: str, metrics: Mapping[str, tuple[str, float]]
) -> Iterator[Metric]:
    """Metrics from (help, value) by name."""
    for name, (text, value) in metrics.items():
        yield kind(f"{prefix}:{name}", text, value=value)


def _ratio(amount: float, by: float) -> float:
    return amount / by if by else 0.0


class _Collector:
    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics, now."""
        engine = self._engine
        steps, jobs, scheduler = engine.step_stats, engine.stats, engine.scheduler
        pool = scheduler.pool
        counters = {
            "prompt_tokens": ("Prompt tokens computed.", steps.prompt_tokens),
            "prompt_tokens_cached": ("Prompt tokens taken from the cache instead of computed.", jobs.cached_tokens),
            "prompt_seconds": ("Time of decodes, the share of prompt tokens.", steps.prompt_seconds),
            "tokens_predicted": ("Tokens generated.", steps.generated_tokens),
            "tokens_predicted_seconds": ("Time of decodes, the share of generated tokens.", steps.generated_seconds),
            "n_decode": ("Calls of llama_decode.", steps.steps),
            "n_busy_slots": ("Sequences in a decode, summed over decodes.", steps.busy_slots),
            "step_seconds": ("Time of all steps: planning, decode, sampling and delivery.", steps.seconds),
            "decode_seconds": ("Of it inside llama_decode.", steps.decode_seconds),
            "sample_seconds": ("Of it choosing tokens.", steps.sample_seconds),
            "checkpoints_saved": ("States saved of texts, to begin others with.", pool.checkpoints.n_saved),
            "checkpoints_restored": ("Texts begun with a saved state.", pool.checkpoints.n_restored),
            "preemptions": ("Requests pushed out of the KV cache and computed again.", scheduler.n_preempted),
        }
        yield from _families(CounterMetricFamily, "ropebend", counters)
        requests = CounterMetricFamily("ropebend:requests", "Requests by their end.", labels=["end"])
        for end, value in (("done", jobs.done), ("cancelled", jobs.cancelled), ("failed", jobs.failed)):
            requests.add_metric([end], value)
        yield requests
        gauges = {
            "requests_open": ("Requests that have not ended.", engine.n_open),
            "requests_processing": ("Sequences being computed.", len(scheduler.running)),
            "requests_deferred": ("Sequences waiting for a slot.", scheduler.n_waiting),
            "kv_cells": ("Cells of the KV cache.", pool.n_cells),
            "kv_cells_used": ("Of them in use, cached sequences included.", pool.n_cells - pool.n_free),
            "kv_cached_sequences": ("Sequences that have ended and stay cached.", len(pool.cached)),
            "checkpoints": ("Saved states.", len(pool.checkpoints)),
            "checkpoint_bytes": ("Memory that they take.", pool.checkpoints.n_bytes),
        }
        yield from _families(GaugeMetricFamily, "ropebend", gauges)


class _LlamaServers:
    """What llama-server's dashboards read, by its names."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics, now."""
        steps, jobs, scheduler = self._engine.step_stats, self._engine.stats, self._engine.scheduler
        counters = {
            "prompt_tokens": ("Prompt tokens computed.", steps.prompt_tokens),
            "prompt_tokens_cached": ("Prompt tokens taken from the cache.", jobs.cached_tokens),
            "prompt_seconds": ("Time of prompts.", steps.prompt_seconds),
            "tokens_predicted": ("Tokens generated.", steps.generated_tokens),
            "tokens_predicted_seconds": ("Time of generating them.", steps.generated_seconds),
            "n_decode": ("Calls of llama_decode.", steps.steps),
        }
        for name in ("draft_tokens", "accepted_tokens", "drafts"):
            counters[f"spec_decode_num_{name}"] = ("Of speculative decoding, which there is none of.", 0)
        yield from _families(CounterMetricFamily, "llamacpp", counters)
        gauges = {
            "prompt_tokens_seconds": ("Prompt tokens a second.", _ratio(steps.prompt_tokens, steps.prompt_seconds)),
            "predicted_tokens_seconds": (
                "Tokens generated a second.",
                _ratio(steps.generated_tokens, steps.generated_seconds),
            ),
            "requests_processing": ("Sequences being computed.", len(scheduler.running)),
            "requests_deferred": ("Sequences waiting for a slot.", scheduler.n_waiting),
            "n_busy_slots_per_decode": ("Sequences in a decode, on average.", _ratio(steps.busy_slots, steps.steps)),
        }
        yield from _families(GaugeMetricFamily, "llamacpp", gauges)


def text(engine: Engine) -> bytes:
    """The counters of this engine in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(engine))
    registry.register(_LlamaServers(engine))
    # a counter without _total, which the library does not write
    longest = (
        "# HELP llamacpp:n_tokens_max Tokens of the longest text so far.\n"
        "# TYPE llamacpp:n_tokens_max counter\n"
        f"llamacpp:n_tokens_max {engine.step_stats.longest}\n"
    )
    return generate_latest(registry) + longest.encode()
