"""All tables. One row class per thing of DESIGN section 3; times are UTC epoch seconds (float), ids are text.

Who writes what:

    serving            prediction, sample, label_task (state `candidate`), feedback, replica
    labeling_bridge    label_task (from `queued` on), annotation, label (source `annotation`), studio_project
    retrain            dataset, label (source `imported`), dataset_version, dataset_item, training_run, run_progress,
                       model_version, evaluation, decision
    registry           model, alias, decision, event
    jobs               job, job_attempt, message, lease

Append-only: prediction, annotation, dataset_version, dataset_item, run_progress, decision, event.
SQLite drops time zones, so no datetime columns. JSON columns hold what `sutdol.types` defines (msgspec.to_builtins).
SQLModel tables do not validate: build rows from checked structs only.
"""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Column, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel


def now() -> float:
    """UTC, seconds since the epoch."""
    return time.time()


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so ids sort by time."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def _json(*, nullable: bool = False) -> Any:
    return Field(default=None if nullable else ..., sa_column=Column(JSON, nullable=nullable))


class Model(SQLModel, table=True):
    """A model people know by name; its class list only ever grows (an index is never reused)."""

    slug: str = Field(primary_key=True, max_length=64)
    task: str
    classes: list[str] = _json()
    family: str
    params: dict[str, Any] = _json()
    """Defaults for training runs of this model: image size, epochs and what else the family knows."""
    created_at: float = Field(default_factory=now)


class ModelVersion(SQLModel, table=True):
    """One trained version: a bundle in the store under `models/{model}/{version}/` (see `registry`)."""

    __tablename__ = "model_version"
    model: str = Field(primary_key=True, foreign_key="model.slug")
    version: int = Field(primary_key=True)
    name: str
    state: str = "candidate"
    """candidate -> ready | refused. Only `ready` versions can be promoted."""
    sha256: str
    """Of model.onnx."""
    size_bytes: int
    manifest: dict[str, Any] = _json()
    metrics: dict[str, Any] = _json()
    run_id: str | None = Field(default=None, index=True)
    dataset_version_id: str | None = None
    parent_version: int | None = None
    created_at: float = Field(default_factory=now)


class Alias(SQLModel, table=True):
    """`champion`, `challenger`, `previous` of a model. Replicas follow `champion`."""

    model: str = Field(primary_key=True, foreign_key="model.slug")
    name: str = Field(primary_key=True)
    version: int
    updated_at: float = Field(default_factory=now)


class Sample(SQLModel, table=True):
    """One kept image, by the sha256 of its normalised bytes; the bytes are in the store under `samples/{id}`."""

    id: str = Field(primary_key=True, max_length=64)
    width_px: int
    height_px: int
    media_type: str
    size_bytes: int
    created_at: float = Field(default_factory=now)


class PredictionRow(SQLModel, table=True):
    """One answer that a client got, committed before the reply left. `sample_id` may have no row in `sample`."""

    __tablename__ = "prediction"
    __table_args__ = (
        Index("prediction_model_at", "model", "at"),
        Index("prediction_model_sample", "model", "sample_id"),
    )
    id: str = Field(primary_key=True)
    at: float
    model: str
    version: int
    sample_id: str
    width_px: int
    height_px: int
    answer: dict[str, Any] = _json()
    """{"classes": [...], "boxes": [...]} as sent to the client."""
    confidence: float
    raw_confidence: float
    margin: float
    ood_score: float | None = None
    inclusion_probability: float
    """With which `drawn` would have picked this sample, whether it did or not."""
    arms: list[str] = _json()
    """Every arm that picked it; empty for nearly all rows."""
    duration_ms: float
    key_id: str | None = None


class Feedback(SQLModel, table=True):
    """The caller's own knowledge of the right answer."""

    id: str = Field(primary_key=True, default_factory=new_id)
    prediction_id: str = Field(index=True)
    value: dict[str, Any] = _json()
    at: float = Field(default_factory=now)
    key_id: str | None = None


class LabelTask(SQLModel, table=True):
    """One sample of one model that is worth a human look; at most one per (model, sample), whatever arms picked it.

    State: candidate -> queued -> in_studio -> annotated; beside the road: skipped (others may answer), conflict,
    unlabelable (final), withdrawn (final; never for `drawn`). A task deleted in Label Studio goes back to queued.
    """

    __tablename__ = "label_task"
    __table_args__ = (
        UniqueConstraint("model", "sample_id", name="label_task_once"),
        Index("label_task_state", "model", "state"),
    )
    id: str = Field(primary_key=True, default_factory=new_id)
    model: str
    sample_id: str
    prediction_id: str
    version: int
    arm: str
    """The arm that counts; `drawn` wins over all others, because only `drawn` may enter val and test."""
    reason: str
    """Why, in words for the labeler."""
    inclusion_probability: float | None = None
    """Set exactly when arm is `drawn`: logged at the draw, never changed but by a second logged draw."""
    priority: float
    """In [0, 1], larger is labelled sooner."""
    uncertainty: float
    ood_score: float | None = None
    answer: dict[str, Any] = _json()
    """The prediction shown to the labeler."""
    blind: bool = False
    """Sent without pre-annotation, to measure anchoring."""
    state: str = "candidate"
    project_id: int | None = None
    studio_task_id: int | None = Field(default=None, index=True)
    attempts: int = 0
    not_before: float = 0.0
    """Quarantine after an import whose outcome is unknown."""
    split: str | None = None
    """train | val | test, given at the first answer and kept for ever, also while the answer is gone."""
    created_at: float = Field(default_factory=now)
    queued_at: float | None = None
    pushed_at: float | None = None
    answered_at: float | None = None
    studio_seen: str = ""
    """What was last read of it: Label Studio's task id and that task's `updated_at`, "7 2026-01-01T00:00:00.000000Z"."""
    studio_seen_at: float | None = None
    """When that was first read; None once a later reading found the same, so that the poll need not look again."""


class Annotation(SQLModel, table=True):
    """One revision of one annotation as Label Studio had it; append-only by (project, annotation, updated_at)."""

    project_id: int = Field(primary_key=True)
    annotation_id: int = Field(primary_key=True)
    updated_at: str = Field(primary_key=True)
    """Label Studio's own text, compared as text; `deleted:<epoch seconds>` for the revision that says it is gone."""
    label_task_id: str = Field(index=True)
    studio_task_id: int
    """Label Studio's task; a duplicate of it, found late, has another."""
    value: dict[str, Any] | None = _json(nullable=True)
    """A `types.Label`; None when skipped, deleted or outside the schema."""
    state: str
    """valid | skipped | deleted | invalid"""
    problem: str | None = None
    annotator: int | None = None
    ground_truth: bool = False
    origins: list[str] = _json()
    """Per region: prediction | prediction-changed | manual."""
    lead_time_s: float | None = None
    fetched_at: float = Field(default_factory=now)


class LabelRow(SQLModel, table=True):
    """The present truth about one sample for one model; dataset versions copy it, so it may change."""

    __tablename__ = "label"
    model: str = Field(primary_key=True)
    sample_id: str = Field(primary_key=True)
    value: dict[str, Any] = _json()
    """A `types.Label`."""
    source: str
    """imported | annotation | auto"""
    arm: str | None = None
    weight: float = 1.0
    """1 / inclusion probability for `drawn`, else 1."""
    split: str
    """train | val | test; fixed for ever at the first row. Only imported and `drawn` samples may be in val or test."""
    created_at: float = Field(default_factory=now, index=True)
    updated_at: float = Field(default_factory=now)


class Dataset(SQLModel, table=True):
    """One import, all in or not in."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    format: str
    report: dict[str, Any] = _json()
    """Counts and every file left out, with the reason."""
    created_at: float = Field(default_factory=now)


class DatasetVersion(SQLModel, table=True):
    """An immutable set of labelled samples; `digest` is a sha256 over its sorted items."""

    __tablename__ = "dataset_version"
    __table_args__ = (UniqueConstraint("model", "number", name="dataset_version_number"),)
    id: str = Field(primary_key=True, default_factory=new_id)
    model: str
    number: int
    digest: str
    test_digest: str
    """Over the items of the test split only: the test-set version that alpha is spent on."""
    classes: list[str] = _json()
    counts: dict[str, Any] = _json()
    created_at: float = Field(default_factory=now)


class DatasetItem(SQLModel, table=True):
    """One sample of one dataset version."""

    __tablename__ = "dataset_item"
    dataset_version_id: str = Field(primary_key=True)
    sample_id: str = Field(primary_key=True)
    split: str
    value: dict[str, Any] = _json()
    source: str
    arm: str | None = None
    weight: float = 1.0


class TrainingRun(SQLModel, table=True):
    """One attempt to make a better version. The job does the work; this row is what people look at."""

    __tablename__ = "training_run"
    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    family: str
    params: dict[str, Any] = _json()
    cause: str
    """Why it was started, in words: first training, 100 new labels, by hand, drift."""
    state: str = "queued"
    """queued -> preparing -> training -> exporting -> evaluating -> deciding -> done | failed | cancelled"""
    job_id: str | None = Field(default=None, index=True)
    dataset_version_id: str | None = None
    parent_version: int | None = None
    version: int | None = None
    epoch: int = 0
    epochs: int = 0
    eta_s: float | None = None
    timings: dict[str, Any] | None = _json(nullable=True)
    """Seconds that each finished step took, in the last attempt that came to it."""
    error: str | None = None
    created_at: float = Field(default_factory=now)
    started_at: float | None = None
    finished_at: float | None = None


class RunProgress(SQLModel, table=True):
    """One finished epoch of one attempt, with every number the family reports."""

    __tablename__ = "run_progress"
    run_id: str = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    metrics: dict[str, Any] = _json()
    at: float = Field(default_factory=now)


class Evaluation(SQLModel, table=True):
    """One version judged on one split of one dataset version; the per-item outcomes lie in the store under `items_key`."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    version: int
    dataset_version_id: str
    split: str
    metrics: dict[str, Any] = _json()
    items_key: str | None = None
    at: float = Field(default_factory=now)


class Decision(SQLModel, table=True):
    """Why a version was or was not put to work: the readable record, with numbers, intervals and hashes."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    kind: str
    """gate | promote | rollback"""
    verdict: str
    """gate: promote | refuse | approve (waiting for a person); promote and rollback: done"""
    candidate: int
    champion: int | None = None
    text: str
    record: dict[str, Any] = _json()
    test_digest: str | None = Field(default=None, index=True)
    alpha: float | None = None
    who: str
    at: float = Field(default_factory=now)


class Event(SQLModel, table=True):
    """What happened, for people: swaps, refusals, alarms, key changes. Never holds secrets or images."""

    id: str = Field(primary_key=True, default_factory=new_id)
    at: float = Field(default_factory=now, index=True)
    kind: str = Field(index=True)
    model: str | None = None
    text: str
    data: dict[str, Any] = _json()


class ApiKey(SQLModel, table=True):
    """`sut_<id>_<secret>`: only the SHA-256 of the secret is kept."""

    __tablename__ = "api_key"
    id: str = Field(primary_key=True)
    secret_sha256: str
    name: str
    scopes: list[str] = _json()
    """predict | label | admin; admin includes the others."""
    created_at: float = Field(default_factory=now)
    expires_at: float | None = None
    revoked_at: float | None = None


class Secret(SQLModel, table=True):
    """Values that all processes of one installation share, made at first use: the key that signs image URLs, passwords."""

    name: str = Field(primary_key=True)
    value: str


class StudioProject(SQLModel, table=True):
    """A model's project in Label Studio and how far it has been read."""

    __tablename__ = "studio_project"
    model: str = Field(primary_key=True)
    project_id: int
    label_config: str
    model_version: str = ""
    view_id: int | None = None
    webhook_id: int | None = None
    cursor: str = ""
    """Largest task `updated_at` seen, Label Studio's own text."""
    swept_at: float = 0.0


class Replica(SQLModel, table=True):
    """A living process of ours: role, address, what it serves. Gone when its heartbeat is older than three leases."""

    id: str = Field(primary_key=True, default_factory=new_id)
    role: str
    """serve | work | clock"""
    pid: int
    host: str
    url: str | None = None
    serving: dict[str, Any] = _json()
    """serve only: {model: {"version": n, "sha256": ..., "provider": ..., "error": ... or None, "swap_ms": ...}}"""
    started_at: float = Field(default_factory=now)
    heartbeat_at: float = Field(default_factory=now)


class Job(SQLModel, table=True):
    """The truth about one piece of work; a broker's message only carries its id. See `sutdol.jobs`."""

    __table_args__ = (
        Index("job_state_queue", "state", "queue"),
        Index(
            "job_one_in_flight",
            "flight_key",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )
    id: str = Field(primary_key=True, default_factory=new_id)
    kind: str
    queue: str
    payload: dict[str, Any] = _json()
    state: str = "queued"
    """queued -> running -> done | failed | cancelled; running -> queued when its lease runs out."""
    unique_key: str | None = Field(default=None, unique=True)
    """Single flight: set while queued, cleared when claimed."""
    flight_key: str | None = None
    """The same key, kept: of the jobs that share it at most one is running."""
    attempt: int = 0
    max_attempts: int = 3
    not_before: float = 0.0
    lease_owner: str | None = None
    lease_until: float | None = None
    lease_number: int = 0
    """Fencing: grows with every claim; a result commits only under the number it was claimed with."""
    cancel_requested: bool = False
    progress: dict[str, Any] | None = _json(nullable=True)
    result: dict[str, Any] | None = _json(nullable=True)
    error: str | None = None
    created_at: float = Field(default_factory=now)
    rung_at: float = 0.0
    """When a doorbell was last sent for it."""
    finished_at: float | None = None


class JobAttempt(SQLModel, table=True):
    """History: who worked on a job, from when to when, how it ended."""

    __tablename__ = "job_attempt"
    job_id: str = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    owner: str
    started_at: float = Field(default_factory=now)
    ended_at: float | None = None
    outcome: str | None = None
    """done | failed | cancelled | abandoned (its lease ran out) | released (handed back at shutdown)"""
    error: str | None = None


class Message(SQLModel, table=True):
    """The embedded broker's queue. Deleted on acknowledgement; a lease that runs out delivers it again."""

    __table_args__ = (Index("message_queue_ready", "queue", "not_before"),)
    id: str = Field(primary_key=True)
    queue: str
    body: str
    not_before: float = 0.0
    lease_owner: str | None = None
    lease_until: float = 0.0
    created_at: float = Field(default_factory=now)


class Lease(SQLModel, table=True):
    """Leadership of one name (`clock`, `studio:digits`): whoever holds it until `until` may act."""

    name: str = Field(primary_key=True)
    owner: str
    until: float
    number: int = 0
