"""What people are asked, what they answered, and what is therefore believed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class LabelTask(SQLModel, table=True):
    """One sample of one model that is worth a human look; at most one per (model, sample), whatever arms picked it.

    State: candidate -> queued -> in_studio -> annotated; beside the road: skipped (others may answer), conflict (the answers
    contradict each other or the classes; one more person is asked), unlabelable (final), withdrawn (never for `drawn`; a
    candidate again if chance draws it later), merged (another task shows the same picture; as withdrawn). A task deleted in
    Label Studio goes back to queued.
    """

    __tablename__ = "label_task"
    __table_args__ = (
        UniqueConstraint("model", "sample_id", name="label_task_once"),
        Index("label_task_state", "model", "state", "arm", "created_at"),
        Index("label_task_asked", "model", "queued_at"),
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
    answer: dict[str, Any] = json_column()
    """The prediction shown to the labeler."""
    scores: dict[str, float] | None = json_column(nullable=True)
    """Every score of the answer by name, see `scoring.SCORERS`; larger means label it sooner."""
    features: bytes | None = None
    """Projected features of `version`, float16; see `familiarity.unpack`. What near-duplicates and variety are seen by."""
    collection_id: str | None = Field(default=None, index=True)
    """The collection that it was picked for."""
    merged_into: str | None = None
    """The task that shows the same picture, while this one is merged."""
    blind: bool = False
    """Sent without pre-annotation, to measure anchoring."""
    truth: dict[str, Any] | None = json_column(nullable=True)
    """The known answer of a `gold` task, a `types.Label`; it measures people and makes no label."""
    overlap: int = 1
    """How many people Label Studio asks; more after a conflict."""
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


class Collection(SQLModel, table=True):
    """People's wish for more samples like one cell of the confusion matrix, or of one class; see `focus`."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    truth: str
    taken_for: str | None = None
    """What the model says instead; None for the class as a whole."""
    wanted: int
    who: str
    created_at: float = Field(default_factory=now)
    closed_at: float | None = None


class Annotation(SQLModel, table=True):
    """One revision of one annotation as Label Studio had it; append-only by (project, annotation, updated_at)."""

    project_id: int = Field(primary_key=True)
    annotation_id: int = Field(primary_key=True)
    updated_at: str = Field(primary_key=True)
    """Label Studio's own text, compared as text; `deleted:<epoch seconds>` for the revision that says it is gone."""
    label_task_id: str = Field(index=True)
    studio_task_id: int
    """Label Studio's task; a duplicate of it, found late, has another."""
    value: dict[str, Any] | None = json_column(nullable=True)
    """A `types.Label`; None when skipped, deleted or outside the schema."""
    state: str
    """valid | skipped | deleted | invalid (outside the classes) | empty (nobody said anything; deleted there, asked again)"""
    problem: str | None = None
    annotator: int | None = None
    ground_truth: bool = False
    origins: list[str] = json_column()
    """Per region: prediction | prediction-changed | manual."""
    lead_time_s: float | None = None
    restored: bool = False
    """A copy of an earlier one, put back by us into a project made again; no second answer."""
    fetched_at: float = Field(default_factory=now)


class LabelRow(SQLModel, table=True):
    """The present truth about one sample for one model; dataset versions copy it, so it may change."""

    __tablename__ = "label"
    model: str = Field(primary_key=True)
    sample_id: str = Field(primary_key=True)
    value: dict[str, Any] = json_column()
    """A `types.Label`."""
    source: str
    """imported | annotation | auto"""
    arm: str | None = None
    weight: float = 1.0
    """1 / inclusion probability for `drawn`, else 1."""
    split: str
    """train | val | test; fixed for ever at the first row. Only imported and `drawn` samples may be in val or test."""
    sample_group: str | None = Field(default=None, index=True)
    """Patient, session or camera of an imported sample: all of a group are in one split, those to come as well."""
    created_at: float = Field(default_factory=now, index=True)
    updated_at: float = Field(default_factory=now)


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


class LabelReport(SQLModel, table=True):
    """How labeling goes for one model, computed from its annotations now and then; see `labeling_bridge.quality`."""

    __tablename__ = "label_report"
    model: str = Field(primary_key=True)
    at: float = Field(default_factory=now)
    report: dict[str, Any] = json_column()
