"""What is known, for whoever asks: models, versions, label tasks, events. The API's handlers and the console call these.

Each opens one reading transaction and returns plain structs; none waits for anything but the database.

Errors: NotFoundError for an unknown model (lists the known ones).
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import func
from sqlmodel import col, select

from sutdol import registry
from sutdol.db import Database
from sutdol.tables import Alias, Event, LabelTask, Model, ModelVersion

Serving = dict[str, dict[str, Any]]
"""What this replica serves, per model: see `Slots.serving`."""


class ModelInfo(msgspec.Struct):
    """A model, its aliases, and what this replica serves of it."""

    name: str
    task: str
    classes: list[str]
    family: str
    aliases: dict[str, int]
    serving: dict[str, Any]
    created_at: float


class VersionInfo(msgspec.Struct):
    """One version; `state` is candidate, ready or refused."""

    version: int
    name: str
    state: str
    aliases: list[str]
    sha256: str
    size_bytes: int
    metrics: dict[str, Any]
    parent_version: int | None
    created_at: float
    tags: dict[str, str]


class TaskCount(msgspec.Struct):
    """How many label tasks of a model are in a state."""

    model: str
    state: str
    arm: str
    count: int


class EventInfo(msgspec.Struct):
    """What happened, newest first."""

    id: str
    at: float
    kind: str
    model: str | None
    text: str
    data: dict[str, Any]


def models(database: Database, serving: Serving) -> list[ModelInfo]:
    """All models, by name."""
    with database.read() as session:
        rows = session.exec(select(Model).order_by(Model.slug)).all()
        aliases = session.exec(select(Alias)).all()
    return [_model_info(row, aliases, serving) for row in rows]


def model(database: Database, serving: Serving, slug: str) -> ModelInfo:
    """One model. Raises NotFoundError."""
    with database.read() as session:
        row = registry.get_model(session, slug)
        aliases = session.exec(select(Alias).where(Alias.model == slug)).all()
    return _model_info(row, aliases, serving)


def versions(database: Database, slug: str) -> list[VersionInfo]:
    """The versions of a model, newest first, without the deleted ones. Raises NotFoundError."""
    with database.read() as session:
        registry.get_model(session, slug)
        rows = session.exec(
            select(ModelVersion).where(ModelVersion.model == slug).order_by(col(ModelVersion.version).desc())
        ).all()
        aliases = session.exec(select(Alias).where(Alias.model == slug)).all()
    return [
        VersionInfo(
            row.version,
            row.name,
            row.state,
            sorted(a.name for a in aliases if a.version == row.version),
            row.sha256,
            row.size_bytes,
            row.metrics,
            row.parent_version,
            row.created_at,
            row.tags or {},
        )
        for row in rows
        if row.state != "deleted"
    ]


def label_tasks(database: Database) -> list[TaskCount]:
    """How many label tasks are where."""
    keys = (LabelTask.model, LabelTask.state, LabelTask.arm)
    with database.read() as session:
        rows = session.exec(select(*keys, func.count()).group_by(*keys).order_by(*keys)).all()
    return [TaskCount(*row) for row in rows]


def events(
    database: Database, *, model: str | None = None, kind: str | None = None, after: float = 0.0, limit: int = 100
) -> list[EventInfo]:
    """What happened later than `after` (epoch seconds), newest first."""
    query = select(Event).where(Event.at > after).order_by(col(Event.at).desc()).limit(limit)
    if model is not None:
        query = query.where(Event.model == model)
    if kind is not None:
        query = query.where(Event.kind == kind)
    with database.read() as session:
        rows = session.exec(query).all()
    return [EventInfo(e.id, e.at, e.kind, e.model, e.text, e.data) for e in rows]


def _model_info(row: Model, aliases: Any, serving: dict[str, dict[str, Any]]) -> ModelInfo:
    named = {a.name: a.version for a in aliases if a.model == row.slug}
    return ModelInfo(row.slug, row.task, row.classes, row.family, named, serving.get(row.slug, {}), row.created_at)
