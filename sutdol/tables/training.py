"""Data sets, frozen versions of them, training runs and evaluations."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class Dataset(SQLModel, table=True):
    """One import, all in or not in."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    format: str
    name: str = ""
    tags: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    memo: str = ""
    report: dict[str, Any] = json_column()
    """Counts and every file left out, with the reason."""
    job_id: str | None = Field(default=None, unique=True)
    """The job that imported it, so that its second attempt finds it."""
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
    classes: list[str] = json_column()
    counts: dict[str, Any] = json_column()
    name: str = ""
    tags: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    memo: str = ""
    """Name, tags and memo are for people and may change; nothing else does."""
    created_at: float = Field(default_factory=now)


class DatasetItem(SQLModel, table=True):
    """One sample of one dataset version."""

    __tablename__ = "dataset_item"
    dataset_version_id: str = Field(primary_key=True)
    sample_id: str = Field(primary_key=True)
    split: str
    value: dict[str, Any] = json_column()
    source: str
    arm: str | None = None
    weight: float = 1.0


class TrainingRun(SQLModel, table=True):
    """One attempt to make a better version. The job does the work; this row is what people look at."""

    __tablename__ = "training_run"
    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    family: str
    params: dict[str, Any] = json_column()
    cause: str
    """Why it was started, in words: first training, 100 new labels, by hand, drift."""
    state: str = "queued"
    """queued -> preparing -> waiting (for a device) -> training -> exporting -> evaluating -> deciding
    -> done | failed | cancelled"""
    job_id: str | None = Field(default=None, index=True)
    dataset_version_id: str | None = None
    parent_version: int | None = None
    version: int | None = None
    epoch: int = 0
    epochs: int = 0
    eta_s: float | None = None
    timings: dict[str, Any] | None = json_column(nullable=True)
    """Seconds that each finished step took, in the last attempt that came to it."""
    hints: list[str] | None = json_column(nullable=True)
    """What the curves say, in words for people: over-fitting, an unstable loss, epochs too few or too many."""
    error: str | None = None
    created_at: float = Field(default_factory=now)
    started_at: float | None = None
    finished_at: float | None = None


class RunCandidate(SQLModel, table=True):
    """One of the networks that a run trains; the best of them on the val split goes to the gate."""

    __tablename__ = "run_candidate"
    run_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    """From 1, in the order in which they were asked for."""
    family: str
    params: dict[str, Any] = json_column()
    """Those that differ from the model's own."""
    state: str = "queued"
    """queued -> training -> finished | eliminated (after a few epochs) | failed; the best finished one is chosen"""
    epoch: int = 0
    epochs: int = 0
    score: float | None = None
    """Of its val split at its last epoch, as its family reports it; larger is better."""
    training_s: float = 0.0
    metrics: dict[str, Any] | None = json_column(nullable=True)
    """Of a finished one on the val split, judged by the predictor, with latency_ms_p50 and size_bytes."""
    error: str | None = None


class RunProgress(SQLModel, table=True):
    """One finished epoch of one attempt, with every number the family reports."""

    __tablename__ = "run_progress"
    run_id: str = Field(primary_key=True)
    candidate: int = Field(primary_key=True, default=1)
    attempt: int = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    metrics: dict[str, Any] = json_column()
    at: float = Field(default_factory=now)


class Evaluation(SQLModel, table=True):
    """One version judged on one split of one dataset version; the per-item outcomes lie in the store under `items_key`."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    version: int
    dataset_version_id: str
    split: str
    metrics: dict[str, Any] = json_column()
    items_key: str | None = None
    against: int | None = None
    """The version that it was compared with on the same items."""
    report: bool = False
    """Whether the files of `retrain.reports` lie under `evaluations/{id}/`."""
    at: float = Field(default_factory=now)
