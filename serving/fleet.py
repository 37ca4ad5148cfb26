"""How far a version has come: `GET /v1/models/{model}/replicas` names every server and what keeps it from the champion.

Errors: NotFoundError for an unknown model; AuthError 403 without the scope.
"""

from __future__ import annotations

import msgspec
from litestar import Router, get
from sqlmodel import Session, select

from serving.auth import Keyring, needs
from sutdol import registry
from sutdol.context import Context
from sutdol.tables import Replica, now


class Server(msgspec.Struct):
    """One server as it last showed itself."""

    id: str
    host: str
    pid: int
    version: int | None
    """That answers there; null when none does."""
    ready: bool
    """It answers with the champion."""
    error: str | None
    """Why the champion does not answer there; the version before serves on."""
    challenger: int | None
    """On trial there."""
    seen_s: float
    """Seconds since its last sign of life."""


class Fleet(msgspec.Struct):
    """`ready` of `servers` answer with the champion; the rollout is over when both are the same."""

    model: str
    champion: int | None
    ready: int
    total: int
    servers: list[Server]


def build(context: Context, keyring: Keyring) -> Router:
    """The routes of this file."""

    @get(
        "/v1/models/{model:str}/replicas",
        guards=[needs(keyring, "predict")],
        sync_to_thread=True,
        summary="How many servers answer with the champion, and what keeps the others",
        tags=["models"],
        operation_id="replicas",
    )
    def replicas(model: str) -> Fleet:
        with context.database.read() as session:
            return fleet(session, model, lease_s=context.settings.lease_s)

    return Router("/", route_handlers=[replicas])


def fleet(session: Session, model: str, *, lease_s: float) -> Fleet:
    """The rollout of a model's champion as the servers tell it; those silent for three leases are gone."""
    registry.get_model(session, model)
    champion, at = registry.alias(session, model, "champion"), now()
    rows = session.exec(select(Replica).where(Replica.role == "serve", Replica.heartbeat_at > at - 3 * lease_s)).all()
    servers = [_server(row, model, champion, at) for row in sorted(rows, key=lambda row: (row.host, row.pid))]
    return Fleet(model, champion, sum(server.ready for server in servers), len(servers), servers)


def _server(row: Replica, model: str, champion: int | None, at: float) -> Server:
    about = row.serving.get(model, {})
    version = about.get("version")
    return Server(
        row.id,
        row.host,
        row.pid,
        version,
        version is not None and version == champion,
        about.get("error"),
        about.get("challenger"),
        round(at - row.heartbeat_at, 3),
    )
