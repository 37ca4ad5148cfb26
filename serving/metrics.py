"""Prometheus counters of one app, in a registry of its own; names in base units, labels bounded.

`model` and `version` labels only ever hold models that are loaded, `route` only path templates.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Handed to every part that counts something."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series and no board uses them
        r = self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter("sutdol_requests", "Answered HTTP requests.", ["route", "method", "status"], registry=r)
        self.request_seconds = Histogram(
            "sutdol_request_duration_seconds", "From routing to the reply.", ["route"], registry=r, buckets=_SECONDS
        )
        self.predictions = Counter("sutdol_predictions", "Logged predictions.", ["model", "version"], registry=r)
        self.picked = Counter("sutdol_picked", "Predictions picked for labelling.", ["model", "arm"], registry=r)
        self.unfamiliar = Counter("sutdol_unfamiliar", "Predictions on unfamiliar images.", ["model"], registry=r)
        self.swaps = Counter("sutdol_swap", "Model swaps by outcome: done, refused.", ["model", "outcome"], registry=r)
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
        self.log_seconds = Histogram("sutdol_log_commit_seconds", "One group commit.", registry=r, buckets=_SECONDS)
        self._queue = Gauge("sutdol_queue_length", "Requests waiting for inference.", registry=r)
        self._pending = Gauge("sutdol_log_pending", "Answers waiting for their commit.", registry=r)

    def watch(self, *, queue_length: Callable[[], int], log_pending: Callable[[], int]) -> None:
        """Read these two at every scrape."""
        self._queue.set_function(queue_length)
        self._pending.set_function(log_pending)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
