"""What operators and their machines ask: alive, ready, metrics, models and versions, promote, roll back, events.

Reads go to the database in a worker thread; `/livez`, `/readyz` and `/metrics` answer from memory, so a database that hangs
cannot make a living server look dead. Promoting loads the version *here* first: one that does not load or fails its checks
changes nothing and says why.

Errors: NotFoundError, ConflictError 409 (refused, not ready, nothing to roll back to), AuthError 403 without the scope.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, get, post
from litestar.connection import Request
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter

from serving import datasets, reads
from serving import metrics as exposition
from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from serving.engine import Engine
from serving.follow import Follower
from serving.log import LogWriter
from serving.metrics import Metrics
from serving.reads import EventInfo, ModelInfo, Notification, TaskCount, Traffic, VersionInfo
from serving.slots import Slots
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, ModelError, NotFoundError

HttpRequest = Request[Any, Any, State]


class Live(msgspec.Struct):
    """The process answers."""

    status: str
    replica: str


class Ready(msgspec.Struct):
    """Whether this replica can answer predictions, and what stands in the way."""

    ready: bool
    problems: list[str]
    warnings: list[str]
    """What operators should mend although predictions are answered: the log goes into the spool, the database is away."""
    replica: str
    models: dict[str, dict[str, Any]]
    """Per model: version and champion, sha256, provider really in use, batch, error, swap_ms, challenger on trial;
    `resting` means that it is loaded when somebody asks for it."""
    queue_length: int
    log_pending: int


class Moved(msgspec.Struct):
    """The champion has changed; `swap_ms` from the request to the publication on this replica."""

    model: str
    version: int
    previous: int | None
    decision_id: str
    swap_ms: float


def build(
    context: Context,
    slots: Slots,
    follower: Follower,
    engine: Engine,
    log: LogWriter,
    keyring: Keyring,
    metrics: Metrics,
    bodies: Bodies,
) -> Router:
    """The routes of this file."""
    database = context.database
    reader, labeler, admin = (needs(keyring, scope) for scope in ("predict", "label", "admin"))

    @get("/livez", summary="Is the process alive?", tags=["operations"], operation_id="livez")
    async def livez() -> Live:
        return Live("alive", slots.replica_id)

    @get(
        "/readyz",
        summary="Can it answer predictions?",
        tags=["operations"],
        operation_id="readyz",
        responses={503: ResponseSpec(Ready, generate_examples=False, description="Not ready; `problems` says why.")},
    )
    async def readyz() -> Response[Ready]:
        problems = in_the_way(slots, follower, engine, log)
        warnings = to_mend(follower, log)
        ready = Ready(not problems, problems, warnings, slots.replica_id, slots.serving(), engine.waiting, log.pending)
        return Response(ready, status_code=503 if problems else 200)

    @get("/metrics", summary="Prometheus metrics", tags=["operations"], operation_id="metrics", media_type="text/plain")
    async def metrics_text() -> Response[bytes]:
        return Response(metrics.text(), headers={"content-type": exposition.CONTENT_TYPE})

    @get(
        "/v1/models",
        guards=[reader],
        sync_to_thread=True,
        summary="All models",
        tags=["models"],
        operation_id="list_models",
    )
    def list_models() -> list[ModelInfo]:
        return reads.models(database, slots.serving())

    @post(
        "/v1/models",
        guards=[admin],
        operation_class=datasets.ModelOperation,
        status_code=201,
        summary="Name a new model",
        description="Its classes come with its first import.",
        tags=["models"],
        operation_id="make_model",
    )
    async def make_model(request: HttpRequest) -> ModelInfo:
        async with bodies.of(request, at_most=datasets.MAX_BYTES) as body:
            wanted = read_json(body, datasets.ModelIn)
        return await asyncio.to_thread(datasets.make_model, context, wanted)

    @get(
        "/v1/models/{model:str}",
        guards=[reader],
        sync_to_thread=True,
        summary="One model",
        tags=["models"],
        operation_id="get_model",
    )
    def get_model(model: str) -> ModelInfo:
        return reads.model(database, slots.serving(), model)

    @get(
        "/v1/models/{model:str}/versions",
        guards=[reader],
        sync_to_thread=True,
        summary="The versions of a model, newest first",
        tags=["models"],
        operation_id="list_versions",
    )
    def list_versions(
        model: str,
        before: Annotated[
            int | None, Parameter(description="Only smaller numbers: the last of the page before.")
        ] = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 1000,
    ) -> list[VersionInfo]:
        return reads.versions(database, model, before=before, limit=limit)

    @post(
        "/v1/models/{model:str}/versions/{version:str}",
        guards=[admin],
        sync_to_thread=True,
        status_code=200,
        summary="Put a version to work",
        description="Loads it here first; one that does not load or fails its checks changes nothing.",
        tags=["models"],
        operation_id="promote",
    )
    def promote(request: HttpRequest, model: str, version: str) -> Moved:
        number = _before_action(request, version, "promote")
        if not number.isdecimal():
            raise InputError(f"version: expected a number, found {number!r}")
        return move(context, slots, model, int(number), who=_who(request))

    @post(
        "/v1/models/{model:str}",
        guards=[admin],
        sync_to_thread=True,
        status_code=200,
        summary="Go back to the previous version",
        tags=["models"],
        operation_id="rollback",
    )
    def rollback(request: HttpRequest, model: str) -> Moved:
        slug = _before_action(request, model, "rollback")
        return step_back(slots, slug, who=_who(request))

    @get(
        "/v1/label-tasks",
        guards=[labeler],
        sync_to_thread=True,
        summary="How many label tasks are where",
        tags=["labels"],
        operation_id="count_label_tasks",
    )
    def label_tasks() -> list[TaskCount]:
        return reads.label_tasks(database)

    @get(
        "/v1/events",
        guards=[labeler],
        sync_to_thread=True,
        summary="What happened, newest first",
        tags=["operations"],
        operation_id="list_events",
    )
    def events(
        model: str | None = None,
        kind: str | None = None,
        after: Annotated[float, Parameter(description="Only later than this, epoch seconds.")] = 0.0,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> list[EventInfo]:
        return reads.events(database, model=model, kind=kind, after=after, limit=limit)

    @get(
        "/v1/notifications",
        guards=[labeler],
        sync_to_thread=True,
        summary="Messages that were sent to people, newest first",
        tags=["operations"],
        operation_id="list_notifications",
    )
    def notifications(limit: Annotated[int, Parameter(ge=1, le=1000)] = 100) -> list[Notification]:
        return reads.notifications(database, limit=limit)

    @get(
        "/v1/traffic",
        guards=[labeler],
        sync_to_thread=True,
        summary="How much is answered, how fast and how sure, lately",
        tags=["operations"],
        operation_id="traffic",
    )
    def traffic(window_s: Annotated[float, Parameter(gt=0, le=3600)] = 60.0) -> Traffic:
        return reads.traffic(database, window_s=window_s)

    handlers = [
        notifications,
        traffic,
        livez,
        readyz,
        metrics_text,
        list_models,
        make_model,
        get_model,
        list_versions,
        promote,
        rollback,
        label_tasks,
        events,
    ]
    return Router("/", route_handlers=handlers)


def in_the_way(slots: Slots, follower: Follower, engine: Engine, log: LogWriter) -> list[str]:
    """What keeps this replica from answering predictions; empty when it can."""
    problems = []
    if not slots.followed:
        problems.append("models are being loaded")
    if not follower.alive:
        problems.append("nobody follows the registry any more")
    if follower.database_error and not slots.followed:
        problems.append(f"database: {follower.database_error}")
    if not log.alive:
        problems.append("the log writer has stopped")
    if log.error:
        problems.append(f"log: {log.error}")
    if not engine.alive:
        problems.append("an inference thread has stopped")
    for slug, about in slots.serving().items():
        if about["champion"] is not None and about["version"] is None and not about["resting"]:
            problems.append(f"{slug}: {about['error'] or 'it is being loaded'}")
    return problems


def to_mend(follower: Follower, log: LogWriter) -> list[str]:
    """What operators should mend although predictions are answered: a balancer must not empty the whole fleet for it."""
    warnings = []
    if follower.database_error:
        warnings.append(f"database: {follower.database_error}")
    if spooling := log.spooling:
        warnings.append(f"log: {spooling.entries} answers wait in the spool ({spooling.reason})")
    return warnings


def move(context: Context, slots: Slots, model: str, version: int, *, who: str) -> Moved:
    """Put a version to work, after it was loaded and checked here. Blocks.

    Raises:
        NotFoundError; ConflictError: not ready, the champion already, or refused here with the reason.
    """
    with context.database.read() as session:
        row = registry.get_version(session, model, version)
        if row.state != "ready":
            raise ConflictError(f"version {version} of {model} is {row.state}, only `ready` ones can be promoted")
    try:
        decision, swap_ms = slots.promote(model, version, who=who, text=f"promote version {version}")
    except ModelError as error:
        serves = slots.serving().get(model, {}).get("version")
        raise ConflictError(
            f"version {version} of {model} was refused: {error.message}",
            hint=f"version {serves} serves on" if serves else "nothing serves",
        ) from error
    return Moved(model, decision.candidate, decision.champion, decision.id, round(swap_ms, 2))


def step_back(slots: Slots, model: str, *, who: str) -> Moved:
    """Put the previous version back to work. Blocks.

    Raises:
        NotFoundError; ConflictError: there is no previous version, or it was refused here.
    """
    try:
        decision, swap_ms = slots.rollback(model, who=who, text="")
    except ModelError as error:
        raise ConflictError(f"the previous version of {model} was refused: {error.message}") from error
    return Moved(model, decision.candidate, decision.champion, decision.id, round(swap_ms, 2))


def _before_action(request: HttpRequest, segment: str, action: str) -> str:
    """`3:promote` is one path segment: the `3`. Any other action is a 404 like every unknown path."""
    name, _, found = segment.partition(":")
    if found != action:
        raise NotFoundError(f"POST {request.url.path}: there is no such action", hint=f"expected {name}:{action}")
    return name


def _who(request: HttpRequest) -> str:
    return f"key {request.state.key_id}"
