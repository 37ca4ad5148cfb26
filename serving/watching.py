"""What the monitor has found, over HTTP and as gauges: `GET /v1/models/{model}/accuracy`, `/drift` and `/auto-labels`.

    rows of the job `monitor` -> sutdol.monitor.report -> JSON, and every GAUGES_S the Prometheus gauges

Nothing is computed here. The gauges are renewed by a thread, so that a scrape never waits for the database.

Errors: NotFoundError for an unknown model; InputError for a window that is not kept.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any

import msgspec
import structlog
from litestar import Request, Router, get, post
from litestar.params import Parameter
from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError

from serving import gauges, schemas
from serving.auth import Keyring, needs
from serving.metrics import Metrics
from sutdol.context import Context
from sutdol.db import Database
from sutdol.monitor import guarantee, report
from sutdol.monitor.report import Accuracy, AutoLabels, Drift, Share
from sutdol.settings import Settings

GAUGES_S = 5.0
HttpRequest = Request[Any, Any, Any]


class Sent(msgspec.Struct):
    """The job; null when the same one is waiting already."""

    job_id: str | None


def build(context: Context, keyring: Keyring) -> Router:
    """The routes of this file."""
    database = context.database

    @get(
        "/v1/models/{model:str}/accuracy",
        guards=[needs(keyring, "predict")],
        sync_to_thread=True,
        summary="How often the live model is right",
        description="From images drawn by chance and labelled; refuses, with the number of labels still needed.",
        tags=["monitor"],
        operation_id="accuracy",
    )
    def accuracy(model: str, days: Annotated[int, Parameter(description="Window: 1, 7 or 30 days.")] = 7) -> Accuracy:
        with database.read() as session:
            return report.accuracy(session, model, days=days)

    @get(
        "/v1/models/{model:str}/drift",
        guards=[needs(keyring, "predict")],
        sync_to_thread=True,
        summary="Whether the model's world has changed",
        tags=["monitor"],
        operation_id="drift",
    )
    def drift(model: str) -> Drift:
        with database.read() as session:
            return report.drift_of(session, model)

    @get(
        "/v1/models/{model:str}/auto-labels",
        guards=[needs(keyring, "label")],
        sync_to_thread=True,
        summary="What the last attempt at labelling without people found",
        tags=["monitor"],
        operation_id="auto_labels",
    )
    def auto_labels(model: str) -> AutoLabels:
        with database.read() as session:
            return report.auto_labels(session, model)

    @post(
        "/v1/models/{model:str}/auto-labels",
        guards=[needs(keyring, "admin")],
        sync_to_thread=True,
        status_code=202,
        summary="Label sure images without people",
        description="Only when drawn labels prove the error; otherwise the result says how many labels are missing.",
        tags=["monitor"],
        operation_id="make_auto_labels",
    )
    def make_auto_labels(
        model: str,
        error: Annotated[float, Parameter(description="Share of them that may be wrong, in (0, 0.5].")],
        limit: Annotated[int, Parameter(ge=1, le=100_000)] = guarantee.LIMIT,
    ) -> Sent:
        with database.begin() as session:
            return Sent(guarantee.request(session, model, target=error, limit=limit))

    @post(
        ["/v1/models/{model:str}/auto-labels/pause", "/v1/models/{model:str}/auto-labels/resume"],
        guards=[needs(keyring, "admin")],
        sync_to_thread=True,
        status_code=200,
        summary="Stop labelling without people, or allow it again",
        tags=["monitor"],
        operation_id=schemas.of_each_path("hold_auto_labels"),
    )
    def hold(request: HttpRequest, model: str) -> AutoLabels:
        with database.begin() as session:
            held = request.url.path.endswith("/pause")
            guarantee.hold(session, model, held, who=f"key {request.state.key_id}")
            return report.auto_labels(session, model)

    return Router("/", route_handlers=[accuracy, drift, auto_labels, make_auto_labels, hold])


class Gauges:
    """Accuracy and drift of every model and the state of the installation, renewed by a thread of its own."""

    def __init__(self, database: Database, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._settings = settings
        r = metrics.registry
        self._installation = gauges.Installation(r)
        self._accuracy = Gauge(
            "sutdol_live_accuracy",
            "Share of right answers in 7 days, with its 95 % interval.",
            ["model", "bound"],
            registry=r,
        )
        self._labels = Gauge("sutdol_live_accuracy_labels", "Labels that it rests on.", ["model"], registry=r)
        self._needed = Gauge("sutdol_live_accuracy_labels_needed", "Labels still missing.", ["model"], registry=r)
        self._alarm = Gauge("sutdol_drift_alarm", "1 while a drift alarm is on.", ["model"], registry=r)
        self._level = Gauge("sutdol_drift_level", "How close a chart is to its alarm.", ["model", "chart"], registry=r)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="monitor-gauges", daemon=True)
        self._log = structlog.get_logger("serving.watching")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def renew(self) -> None:
        """Read everything once."""
        with self._database.read() as session:
            self._installation.reading = gauges.read(session, self._settings)
            found = report.everything(session)
        for accuracy, drift in found:
            self._show(accuracy.model, accuracy.overall)
            self._alarm.labels(accuracy.model).set(drift.state == "alarm")
            for chart, level in drift.levels.items():
                self._level.labels(accuracy.model, chart).set(level)

    def _show(self, model: str, share: Share) -> None:
        self._labels.labels(model).set(share.labels)
        self._needed.labels(model).set(share.needed)
        for bound, value in (("estimate", share.accuracy), ("low", share.low), ("high", share.high)):
            self._accuracy.labels(model, bound).set(float("nan") if value is None else value)

    def _follow(self) -> None:
        while True:
            try:
                self.renew()
            except SQLAlchemyError as error:
                self._log.warning("monitor not read", error=str(error).splitlines()[0])
            if self._ended.wait(GAUGES_S):
                return
