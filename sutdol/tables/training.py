"""Data sets, frozen versions of them, training runs and evaluations."""

from __future__ import annotations

from typing import Any

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class Dataset(SQLModel, table=True):
    """One import, all in or not in."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    format: str
    report: dict[str, Any] = json_column()
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
    classes: list[str] = json_column()
    counts: dict[str, Any] = json_column()
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
    """queued -> preparing -> training -> exporting -> evaluating -> deciding -> done | failed | cancelled"""
    job_id: str | None = Field(default=None, index=True)
    dataset_version_id: str | None = None
    parent_version: int | None = None
    version: int | None = None
    epoch: int = 0
    epochs: int = 0
    eta_s: float | None = None
    timings: dict[str, Any] | None = json_column(nullable=True)
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
    at: float = Field(default_factory=now)
