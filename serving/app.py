"""The composition root of the server: everything is built here once and handed over as arguments.

create_app(context, routers) -> Front, with a Litestar behind it; the lifespan of that starts log, engine, slots and keys,
and stops them in an order in which every accepted request still gets its answer
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
    browse,
    fleet,
    frames,
    inference_operations,
    inference_protocol,
    learning,
    live,
    management,
    openapi,
    operations,
    predict,
    problems,
    samples,
    trials,
    watching,
)
from serving.auth import Keyring
from serving.bodies import Bodies
from serving.diagnosis import Standing
from serving.engine import Engine
from serving.follow import Follower
from serving.front import Front, request_id_of
from serving.log import LogWriter
from serving.metrics import Metrics
from serving.shadow import Shadow
from serving.slots import Slots
from serving.statistics import Statistics
from serving.training import Families, no_families
from serving.watching import Gauges
from serving.web import routes as console
from serving.web.desk import Desk, make_sessions
from serving.web.render import Pages
from serving.web.ticks import Ticks
from sutdol.context import Context
from sutdol.tables import new_id

_LENGTH = "Inference-Header-Content-Length"
_ALLOWED_HEADERS = ["Authorization", "Content-Type", "X-Request-Id", "X-Request-Timeout", _LENGTH]
_EXPOSED_HEADERS = ["X-Request-Id", "Retry-After", _LENGTH]


def create_app(context: Context, routers: list[Router] | None = None, *, families: Families = no_families) -> Front:
    """The server's app. `routers` are those of the sibling packages, each made by its `build(context)`; `families` says what
    can be trained.

    `state.close_streams()` of its Litestar ends every feed and video stream, which would otherwise last as long as their
    clients like.
    """
    settings = context.settings
    metrics = Metrics()
    feed, streams = live.Feed(), frames.Streams()
    spool = (settings.spool, settings.spool_bytes)
    log = LogWriter(context.database, context.store, metrics, spool=spool, told=feed.told)
    slots = Slots(context, metrics)
    statistics = Statistics()
    follower = Follower(context, slots)
    shadow = Shadow(log, slots.watch)
    engine = Engine(
        slots,
        log,
        metrics,
        compose=partial(answers.compose, metrics=metrics, keep_share=settings.keep_share),
        threads=settings.inference_threads,
        limit=settings.queue_limit,
        statistics=statistics,
        limits=settings.queue_limits,
        shadow=shadow,
    )
    keyring = Keyring(context.database, stale_s=settings.keys_stale_s, rate=settings.key_rate)
    bodies = Bodies(settings.max_body_bytes)
    standing, pages, sessions = Standing(context), Pages(), make_sessions(context, keyring)
    ticks = Ticks(context, slots, standing, pages, sessions)
    desk = Desk(context, slots, engine, bodies, sessions, pages, families, standing, log, ticks)
    gauges = Gauges(context.database, settings, metrics)
    metrics.watch(
        queue_length=lambda: engine.waiting,
        log_pending=lambda: log.pending,
        spooled=lambda: log.spooling.entries if log.spooling else 0,
        memory=lambda: slots.memory_bytes,
    )

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncIterator[None]:
        for part in (log, engine, shadow, follower, keyring, gauges):
            part.start()
        try:
            yield
        finally:
            # answers first, then their commit
            for stop in (engine.stop, shadow.stop, log.stop, follower.stop, keyring.stop, gauges.stop):
                await asyncio.to_thread(stop)

    async def finish(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        state: dict[str, Any] = scope["state"]
        headers = MutableScopeHeaders.from_message(message)
        headers["X-Request-Id"] = state.get("request_id") or new_id()
        headers["X-Content-Type-Options"] = "nosniff"
        route = str(scope.get("path_template") or "unmatched")
        if scope.get("method") == "OPTIONS" and route in methods:
            headers["Allow"] = openapi.allowed(methods[route], route, scope["path"])
        seconds = time.perf_counter() - state["began"] if "began" in state else 0.0
        metrics.answered(route, str(scope.get("method")), int(message["status"]), seconds)

    cors = CORSConfig(
        allow_origins=settings.origins,
        allow_headers=_ALLOWED_HEADERS,
        expose_headers=_EXPOSED_HEADERS,
        max_age=600,
    )

    def close_streams() -> None:
        feed.close()
        streams.close()

    litestar = Litestar(
        state=State({"close_streams": close_streams}),
        route_handlers=[
            watching.build(context, keyring),
            predict.build(context, slots, engine, log, keyring, bodies),
            operations.build(context, slots, follower, engine, log, keyring, metrics, bodies),
            trials.build(context, slots, keyring),
            fleet.build(context, keyring),
            *management.routers(context, keyring, bodies, families),
            learning.build(context, keyring),
            samples.build(context, keyring),
            browse.build(context, keyring),
            inference_protocol.build(
                slots, engine, keyring, bodies, ready=partial(operations.in_the_way, slots, follower, engine, log)
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
    methods = openapi.methods_of(litestar)
    return Front(litestar, slots, engine, keyring, bodies, metrics, ticks)


def _timed(app: ASGIApp) -> ASGIApp:
    """Every routed request gets a beginning and an id; the caller's own `X-Request-Id` is taken when it is a plain word."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope["state"]
        state["began"] = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        state["request_id"] = request_id_of(given.decode("ascii", "replace"))
        await app(scope, receive, send)

    return middleware
