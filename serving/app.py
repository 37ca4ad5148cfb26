"""The composition root of the server: everything is built here once and handed over as arguments.

create_app(context, routers) -> Litestar; its lifespan starts log, engine, slots and keys, and stops them in an order
in which every accepted request still gets its answer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.datastructures import MutableScopeHeaders, State
from litestar.openapi import OpenAPIConfig
from litestar.types import ASGIApp, Message, Receive, Scope, Send

import sutdol
from serving import (
    answers,
    frames,
    inference_operations,
    inference_protocol,
    live,
    openapi,
    operations,
    predict,
    problems,
    versions,
    watching,
)
from serving.auth import Keyring
from serving.bodies import Bodies
from serving.engine import Engine
from serving.log import LogWriter
from serving.metrics import Metrics
from serving.slots import Slots
from serving.statistics import Statistics
from serving.watching import Gauges
from serving.web import routes as console
from serving.web.desk import Desk, make_sessions
from serving.web.render import Pages
from sutdol.context import Context
from sutdol.tables import new_id

_LENGTH = "Inference-Header-Content-Length"
_ALLOWED_HEADERS = ["Authorization", "Content-Type", "X-Request-Id", "X-Request-Timeout", _LENGTH]
_EXPOSED_HEADERS = ["X-Request-Id", "Retry-After", _LENGTH]


def create_app(context: Context, routers: list[Router] | None = None) -> Litestar:
    """The server's app. `routers` are those of the sibling packages, each made by its `build(context)`.

    `app.state.close_streams()` ends every feed and video stream, which would otherwise last as long as their clients like.
    """
    settings = context.settings
    metrics = Metrics()
    feed, streams = live.Feed(), frames.Streams()
    log = LogWriter(context.database, context.store, metrics, told=feed.told)
    slots = Slots(context, metrics)
    statistics = Statistics()
    engine = Engine(
        slots,
        log,
        metrics,
        compose=partial(answers.compose, metrics=metrics, keep_share=settings.keep_share),
        threads=settings.inference_threads,
        limit=settings.queue_limit,
        statistics=statistics,
    )
    keyring = Keyring(context.database)
    bodies = Bodies(settings.max_body_bytes)
    desk = Desk(context, slots, engine, bodies, make_sessions(context, keyring), Pages())
    gauges = Gauges(context.database, metrics)
    metrics.watch(queue_length=lambda: engine.waiting, log_pending=lambda: log.pending)

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncIterator[None]:
        for part in (log, engine, slots, keyring, gauges):
            part.start()
        try:
            yield
        finally:
            for stop in (
                engine.stop,
                log.stop,
                slots.stop,
                keyring.stop,
                gauges.stop,
            ):  # answers first, then their commit
                await asyncio.to_thread(stop)

    async def finish(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        state: dict[str, Any] = scope["state"]
        headers = MutableScopeHeaders.from_message(message)
        headers["X-Request-Id"] = state.get("request_id") or new_id()
        headers["X-Content-Type-Options"] = "nosniff"
        route = scope.get("path_template") or "unmatched"
        if scope.get("method") == "OPTIONS" and route in methods:
            headers["Allow"] = openapi.allowed(methods[route], route, scope["path"])
        metrics.requests.labels(str(route), str(scope.get("method")), str(message["status"])).inc()
        if "began" in state:
            metrics.request_seconds.labels(str(route)).observe(time.perf_counter() - state["began"])

    cors = CORSConfig(
        allow_origins=settings.origins,
        allow_headers=_ALLOWED_HEADERS,
        expose_headers=_EXPOSED_HEADERS,
        max_age=600,
    )

    def close_streams() -> None:
        feed.close()
        streams.close()

    app = Litestar(
        state=State({"close_streams": close_streams}),
        route_handlers=[
            watching.build(context, keyring),
            predict.build(context, slots, engine, log, keyring, bodies),
            operations.build(context, slots, engine, log, keyring, metrics),
            versions.build(context, keyring, bodies),
            inference_protocol.build(
                slots, engine, keyring, bodies, ready=partial(operations.in_the_way, slots, engine, log)
            ),
            inference_operations.build(context, slots, statistics, keyring, bodies),
            live.build(feed, keyring),
            frames.build(slots, engine, keyring, streams, settings.max_body_bytes),
            console.build(desk),
            *(routers or []),
        ],
        middleware=[_timed],
        before_send=[finish],
        exception_handlers=problems.handlers(),
        lifespan=[running],
        cors_config=cors if settings.origins else None,
        request_max_body_size=settings.max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="sutdol", version=sutdol.__version__, path="/schema", render_plugins=[openapi.SchemaDocument()]
        ),
        logging_config=None,
        debug=False,
    )
    methods = openapi.methods_of(app)
    return app


def _timed(app: ASGIApp) -> ASGIApp:
    """Every routed request gets a beginning and an id; the caller's own `X-Request-Id` is taken when it is a plain word."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope["state"]
        state["began"] = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        word = given.decode("ascii", "replace")
        plain = 0 < len(word) <= 64 and word.replace("-", "").replace("_", "").isalnum() and word.isascii()
        state["request_id"] = word if plain else new_id()
        await app(scope, receive, send)

    return middleware
