"""What is known, for whoever asks: models, versions, label tasks, events. The API's handlers and the console call these.

Each opens one reading transaction and returns plain structs; none waits for anything but the database.

Errors: NotFoundError for an unknown model (lists the known ones).
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from sqlalchemy import and_, func, or_
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from sutdol import registry
from sutdol.context import Context
from sutdol.db import Database
from sutdol.keys import state as key_state
from sutdol.tables import (
    Alias,
    ApiKey,
    Decision,
    Event,
    Job,
    LabelTask,
    Model,
    ModelVersion,
    PredictionRow,
    Replica,
    Sample,
    StudioProject,
    first_id,
    now,
)
from sutdol.types import Manifest

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
    """One version; `state` is candidate, ready, refused or deleted."""

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


class DecisionInfo(msgspec.Struct):
    """Why a version was or was not put to work; `text` is the record in words, its first line the verdict."""

    id: str
    at: float
    model: str
    kind: str
    verdict: str
    candidate: int
    champion: int | None
    text: str
    record: dict[str, Any]
    who: str


class Notification(msgspec.Struct):
    """A message to people (mail, Slack, ...); `state` is queued, running, done or failed."""

    id: str
    at: float
    kind: str
    title: str
    state: str
    error: str | None


class PredictionInfo(msgspec.Struct):
    """One answer from the log; `kept` says that its image can be looked at."""

    id: str
    at: float
    model: str
    version: int
    sample_id: str
    width_px: int
    height_px: int
    answer: dict[str, Any]
    confidence: float
    ood_score: float | None
    arms: list[str]
    reason: str
    duration_ms: float
    kept: bool


class Traffic(msgspec.Struct):
    """The last seconds of the log: how much, how fast, how sure."""

    per_second: float
    p50_ms: float | None
    p99_ms: float | None
    picked: float | None
    """Share that an arm picked, in [0, 1]."""
    unfamiliar: float | None
    """Share that looked like a new kind of input, in [0, 1], of those whose version can tell."""
    confidence_counts: list[int]
    """Of the newest answers, in ten bins over [0, 1]."""
    edges: list[float]
    marks: list[Mark]


class Mark(msgspec.Struct):
    """From `confidence` on a version's answers were shown to be wrong with at most the chance `risk`."""

    model: str
    version: int
    risk: float
    confidence: float


class ReplicaInfo(msgspec.Struct):
    """A process of ours; `alive` is false when its heartbeat is older than three leases."""

    id: str
    role: str
    pid: int
    host: str
    url: str | None
    serving: Serving
    started_at: float
    heartbeat_at: float
    alive: bool


class KeyInfo(msgspec.Struct):
    """An API key without its secret; `state` is valid, expired or revoked."""

    id: str
    name: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    state: str


class Kept(msgspec.Struct):
    """The bytes of an image that was kept."""

    data: bytes
    media_type: str


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


def versions(
    database: Database, slug: str, *, before: int | None = None, limit: int | None = None
) -> list[VersionInfo]:
    """The versions of a model, newest first, without the deleted ones. Raises NotFoundError.

    Args:
        before: only those with a smaller number: the last one of the page before.
    """
    query = select(ModelVersion).where(ModelVersion.model == slug, ModelVersion.state != "deleted")
    query = query.order_by(col(ModelVersion.version).desc()).limit(limit)
    if before is not None:
        query = query.where(ModelVersion.version < before)
    with database.read() as session:
        registry.get_model(session, slug)
        rows = session.exec(query).all()
        aliases = session.exec(select(Alias).where(Alias.model == slug)).all()
    return [_version_info(row, aliases) for row in rows]


def version(database: Database, slug: str, number: int) -> VersionInfo:
    """One version, a deleted one too. Raises NotFoundError."""
    with database.read() as session:
        row = registry.get_version(session, slug, number)
        aliases = session.exec(select(Alias).where(Alias.model == slug)).all()
    return _version_info(row, aliases)


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


def decisions(
    database: Database,
    *,
    model: str | None = None,
    candidate: int | None = None,
    kind: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[DecisionInfo]:
    """Gates, promotions, rollbacks and trials, newest first; `before` is the last id of the page before."""
    query = select(Decision).order_by(col(Decision.id).desc()).limit(limit)
    if model is not None:
        query = query.where(Decision.model == model)
    if candidate is not None:
        query = query.where(Decision.candidate == candidate)
    if kind is not None:
        query = query.where(Decision.kind == kind)
    if before is not None:
        query = query.where(Decision.id < before)
    with database.read() as session:
        return [told(row) for row in session.exec(query)]


def waiting(database: Database, *, model: str | None = None) -> list[DecisionInfo]:
    """Gates that passed and that no person has answered yet, newest first."""
    moved = aliased(Decision)
    answered = select(moved.id).where(
        col(moved.model) == Decision.model, col(moved.candidate) == Decision.candidate, col(moved.kind) == "promote"
    )
    query = (
        select(Decision)
        .join(
            ModelVersion,
            and_(ModelVersion.model == Decision.model, ModelVersion.version == Decision.candidate),  # type: ignore[arg-type]
        )
        .where(Decision.kind == "gate", Decision.verdict == "approve", ModelVersion.state == "ready")
        .where(~answered.exists())
        .order_by(col(Decision.id).desc())
    )
    if model is not None:
        query = query.where(Decision.model == model)
    with database.read() as session:
        return [told(row) for row in session.exec(query)]


def notifications(database: Database, *, limit: int = 20) -> list[Notification]:
    """The newest messages to people, the newest first."""
    sent = select(Job).where(Job.kind == "notify").order_by(col(Job.created_at).desc()).limit(limit)
    with database.read() as session:
        return [
            Notification(j.id, j.created_at, j.payload["kind"], j.payload["title"], j.state, j.error)
            for j in session.exec(sent)
        ]


def told(row: Decision) -> DecisionInfo:
    """A decision as others see it."""
    return DecisionInfo(**{name: getattr(row, name) for name in DecisionInfo.__struct_fields__})


def predictions(
    database: Database, *, model: str | None = None, before: str | None = None, limit: int = 50
) -> list[PredictionInfo]:
    """The log, newest first; `before` is the last id of the page before (ids sort by time)."""
    query = (
        select(PredictionRow, LabelTask.reason, Sample.id)
        .join(
            LabelTask,
            and_(LabelTask.model == PredictionRow.model, LabelTask.sample_id == PredictionRow.sample_id),  # type: ignore[arg-type]
            isouter=True,
        )
        .join(Sample, col(Sample.id) == PredictionRow.sample_id, isouter=True)
        .limit(limit)
    )
    with database.read() as session:
        if model is None:
            query = query.order_by(col(PredictionRow.id).desc())
            if before is not None:
                query = query.where(PredictionRow.id < before)
        else:  # the index of a model's rows is by time
            query = query.where(PredictionRow.model == model)
            query = query.order_by(col(PredictionRow.at).desc(), col(PredictionRow.id).desc())
            last = session.get(PredictionRow, before) if before is not None else None
            if last is not None:
                query = query.where(PredictionRow.at <= last.at)
                query = query.where(or_(col(PredictionRow.at) < last.at, col(PredictionRow.id) < last.id))
        rows = session.exec(query).all()
    return [
        PredictionInfo(
            p.id,
            p.at,
            p.model,
            p.version,
            p.sample_id,
            p.width_px,
            p.height_px,
            p.answer,
            p.confidence,
            p.ood_score,
            p.arms,
            reason or "",
            p.duration_ms,
            kept is not None,
        )
        for p, reason, kept in rows
    ]


def traffic(database: Database, *, window_s: float, newest: int = 500) -> Traffic:
    """The last `window_s` seconds, over at most `newest` answers for the times and the confidences."""
    columns: tuple[Any, ...] = tuple(
        getattr(PredictionRow, name) for name in ("duration_ms", "confidence", "arms", "ood_score", "model", "version")
    )
    recent = PredictionRow.id > first_id(now() - window_s)  # ids sort by time, and are the key
    with database.read() as session:
        count = session.exec(select(func.count()).where(recent)).one()
        rows = session.exec(select(*columns).where(recent).order_by(col(PredictionRow.id).desc()).limit(newest)).all()
        manifests = {
            key: msgspec.convert(session.get_one(ModelVersion, key).manifest, Manifest)
            for key in sorted({(model, version) for *_, model, version in rows})
        }
    counts, edges = np.histogram([r[1] for r in rows], bins=10, range=(0.0, 1.0))
    times = np.array([r[0] for r in rows])
    strange = [
        score >= limit
        for *_, score, model, version in rows
        if score is not None and (limit := manifests[model, version].unfamiliar_at) is not None
    ]
    return Traffic(
        per_second=count / window_s,
        p50_ms=float(np.quantile(times, 0.5)) if rows else None,
        p99_ms=float(np.quantile(times, 0.99)) if rows else None,
        picked=sum(bool(r[2]) for r in rows) / len(rows) if rows else None,
        unfamiliar=sum(strange) / len(strange) if strange else None,
        confidence_counts=counts.tolist(),
        edges=[round(float(e), 2) for e in edges],
        marks=[Mark(*key, *accept) for key, manifest in manifests.items() for accept in manifest.accept_at],
    )


def replicas(database: Database, *, lease_s: float) -> list[ReplicaInfo]:
    """Every process that has shown itself lately, by role."""
    with database.read() as session:
        rows = session.exec(select(Replica).order_by(Replica.role, col(Replica.started_at))).all()
    alive = now() - 3 * lease_s
    return [
        ReplicaInfo(r.id, r.role, r.pid, r.host, r.url, r.serving, r.started_at, r.heartbeat_at, r.heartbeat_at > alive)
        for r in rows
    ]


def projects(database: Database) -> dict[str, int]:
    """Label Studio's project of each model that has one."""
    with database.read() as session:
        return dict(session.exec(select(StudioProject.model, StudioProject.project_id)).all())


def keys(database: Database) -> list[KeyInfo]:
    """All API keys, oldest first."""
    with database.read() as session:
        rows = session.exec(select(ApiKey).order_by(col(ApiKey.created_at))).all()
    return [
        KeyInfo(
            r.id,
            r.name,
            r.scopes,
            r.created_at,
            r.expires_at,
            key_state(r),
        )
        for r in rows
    ]


def sample(context: Context, sample_id: str) -> Kept | None:
    """The image of a sample; None when it was not kept."""
    with context.database.read() as session:
        row = session.get(Sample, sample_id)
    return Kept(context.store.get(f"samples/{sample_id}"), row.media_type) if row else None


def _version_info(row: ModelVersion, aliases: Any) -> VersionInfo:
    return VersionInfo(
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


def _model_info(row: Model, aliases: Any, serving: dict[str, dict[str, Any]]) -> ModelInfo:
    named = {a.name: a.version for a in aliases if a.model == row.slug}
    return ModelInfo(row.slug, row.task, row.classes, row.family, named, serving.get(row.slug, {}), row.created_at)
