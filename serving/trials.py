"""A challenger on trial: `/v1/models/{model}/rollout` starts, shows and ends it.

    PUT {"version": 4, "mode": "shadow" | "canary", "share": 0.1} -> every replica follows -> GET numbers -> :promote, or DELETE

Errors: InputError, NotFoundError, ConflictError (no champion, not ready, the champion itself); AuthError 403 without the scope.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, Router, delete, get, put
from sqlmodel import col, func, select

from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from serving.slots import Slots
from sutdol import registry, rollouts
from sutdol.context import Context
from sutdol.errors import NotFoundError
from sutdol.tables import Rollout, ShadowRow

HttpRequest = Request[Any, Any, Any]
MAX_BYTES = 10_000


class RolloutBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a challenger gets. `max_disagreement` ends it when more of the compared answers differ; 0: not watched."""

    version: int
    mode: str = "shadow"
    share: float = 0.1
    max_disagreement: float = 0.0


class RolloutInfo(msgspec.Struct):
    """A challenger on trial, what this replica saw of both lately, and what all replicas compared since it began."""

    model: str
    version: int
    mode: str
    share: float
    max_disagreement: float
    who: str
    started_at: float
    seen: dict[str, dict[str, float]]
    """Per version: answers, failed, not_finite, ms_each, compared, different."""
    compared: int
    different: int


def build(context: Context, slots: Slots, keyring: Keyring) -> Router:
    """The routes of this file."""
    reader, admin = needs(keyring, "predict"), needs(keyring, "admin")
    bodies = Bodies(MAX_BYTES)
    path = "/v1/models/{model:str}/rollout"

    @get(path, guards=[reader], sync_to_thread=True, summary="The challenger on trial", tags=["models"])
    def show(model: str) -> RolloutInfo:
        return shown(context, slots, model)

    @put(path, guards=[admin], summary="Try a challenger on a share of the traffic", tags=["models"])
    async def begin(request: HttpRequest, model: str) -> RolloutInfo:
        async with bodies.of(request) as raw:
            wanted = read_json(raw, RolloutBody)
        await asyncio.to_thread(started, context, model, wanted, who=f"key {request.state.key_id}")
        return await asyncio.to_thread(shown, context, slots, model)

    @delete(path, guards=[admin], sync_to_thread=True, summary="Take the challenger away", tags=["models"])
    def stop(request: HttpRequest, model: str) -> None:
        ended(context, model, who=f"key {request.state.key_id}")

    return Router("/", route_handlers=[show, begin, stop])


def started(context: Context, model: str, wanted: RolloutBody, *, who: str) -> None:
    """Put a challenger on trial; every replica follows. Errors as at the top of this file."""
    with context.database.begin() as session:
        rollouts.start(
            session,
            model,
            wanted.version,
            mode=wanted.mode,  # type: ignore[arg-type]  # checked there
            share=wanted.share,
            max_disagreement=wanted.max_disagreement,
            who=who,
        )


def ended(context: Context, model: str, *, who: str) -> None:
    """Take the challenger away. Raises NotFoundError when there is none."""
    with context.database.begin() as session:
        registry.get_model(session, model)
        if rollouts.end(session, model, who=who, text="ended by hand") is None:
            raise NotFoundError(f"{model} has no challenger on trial")


def shown(context: Context, slots: Slots, model: str) -> RolloutInfo:
    """The trial as it stands. Raises NotFoundError when there is none."""
    with context.database.read() as session:
        registry.get_model(session, model)
        row = session.get(Rollout, model)
        if row is None:
            raise NotFoundError(f"{model} has no challenger on trial", hint="PUT one")
        counted = select(col(ShadowRow.agrees), func.count()).where(
            ShadowRow.model == model, col(ShadowRow.at) >= row.started_at, col(ShadowRow.error).is_(None)
        )
        agrees = dict(session.exec(counted.group_by(col(ShadowRow.agrees))).all())
    current = slots.current().get(model)
    versions = [row.version, *([current.version] if current else [])]
    return RolloutInfo(
        model,
        row.version,
        row.mode,
        row.share,
        row.max_disagreement,
        row.who,
        row.started_at,
        {str(version): slots.watch.numbers(model, version) for version in versions},
        sum(agrees.values()),
        agrees.get(False, 0),
    )
