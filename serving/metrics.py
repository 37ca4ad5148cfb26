"""Prometheus counters of one app, in a registry of its own; names in base units, labels bounded.

`model` and `version` labels only ever hold models that are loaded, `route` only path templates.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Handed to every part that counts something."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series and no board uses them
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        r = self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter("sutdol_requests", "Answered HTTP requests.", ["route", "method", "status"], registry=r)
        self.request_seconds = Histogram(
            "sutdol_request_duration_seconds", "From routing to the reply.", ["route"], registry=r, buckets=_SECONDS
        )
        self.predictions = Counter("sutdol_predictions", "Logged predictions.", ["model", "version"], registry=r)
        self.picked = Counter("sutdol_picked", "Predictions picked for labelling.", ["model", "arm"], registry=r)
        self.unfamiliar = Counter("sutdol_unfamiliar", "Predictions on unfamiliar images.", ["model"], registry=r)
        self.swaps = Counter("sutdol_swap", "Model swaps by outcome: done, refused.", ["model", "outcome"], registry=r)
        self.evicted = Counter("sutdol_evicted", "Loaded versions let go for others.", ["model"], registry=r)
        self.swap_seconds = Histogram(
            "sutdol_swap_duration_seconds", "Load, warm, check and publish.", ["model"], registry=r, buckets=_SECONDS
        )
        self.serving_version = Gauge("sutdol_serving_version", "Version that answers.", ["model"], registry=r)
        self.batch_size = Histogram(
            "sutdol_batch_size", "Images per run of a model.", registry=r, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.dropped = Counter("sutdol_dropped", "Waiting requests dropped: gone, expired.", ["cause"], registry=r)
        self.log_commits = Counter("sutdol_log_commits", "Commits of the prediction log.", registry=r)
        self.log_failures = Counter("sutdol_log_failures", "Predictions refused because of the log.", registry=r)
        self.log_spooled = Counter("sutdol_log_spooled", "Predictions that went into the spool.", registry=r)
        self.log_seconds = Histogram("sutdol_log_commit_seconds", "One group commit.", registry=r, buckets=_SECONDS)
        self._queue = Gauge("sutdol_queue_length", "Requests waiting for inference.", registry=r)
        self._pending = Gauge("sutdol_log_pending", "Answers waiting for their commit.", registry=r)
        self._memory = Gauge("sutdol_models_memory_bytes", "What the loaded models are counted with.", registry=r)
        self._spooled = Gauge("sutdol_spool_entries", "Answers in the spool, not in the database yet.", registry=r)

    def watch(
        self,
        *,
        queue_length: Callable[[], int],
        log_pending: Callable[[], int],
        spooled: Callable[[], int],
        memory: Callable[[], int],
    ) -> None:
        """Read these at every scrape."""
        self._queue.set_function(queue_length)
        self._pending.set_function(log_pending)
        self._spooled.set_function(spooled)
        self._memory.set_function(memory)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one HTTP request; looking a series up by its labels costs more than counting, so it is done once."""
        method = method if method in _METHODS else "other"  # clients may invent words
        series = self._series.get((route, method, status))
        if series is None:
            series = (self.requests.labels(route, method, str(status)), self.request_seconds.labels(route))
            self._series[route, method, status] = series
        series[0].inc()
        series[1].observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
