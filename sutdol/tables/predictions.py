"""What was asked and answered: kept images, the prediction log, the callers' feedback."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


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
    answer: dict[str, Any] = json_column()
    """{"classes": [...], "boxes": [...]} as sent to the client."""
    confidence: float
    raw_confidence: float
    margin: float
    ood_score: float | None = None
    inclusion_probability: float
    """With which `drawn` would have picked this sample, whether it did or not."""
    arms: list[str] = json_column()
    """Every arm that picked it; empty for nearly all rows."""
    duration_ms: float
    key_id: str | None = None
    brightness: float | None = None
    sharpness: float | None = None
    colour: float | None = None
    fingerprint: str | None = None
    """What `appearance` measures on the model's input; drift and near-duplicates are found by it."""


class ShadowRow(SQLModel, table=True):
    """What another version says about a logged prediction: a challenger unseen, or the version before, for comparison."""

    __tablename__ = "shadow"
    __table_args__ = (Index("shadow_model_at", "model", "at"),)
    prediction_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    at: float
    model: str
    answered_by: int
    """The version whose answer the client got."""
    answer: dict[str, Any] = json_column()
    confidence: float
    agrees: bool
    duration_ms: float
    error: str | None = None
    """Why it has no answer."""


class Feedback(SQLModel, table=True):
    """The caller's own knowledge of the right answer."""

    id: str = Field(primary_key=True, default_factory=new_id)
    prediction_id: str = Field(index=True)
    value: dict[str, Any] = json_column()
    at: float = Field(default_factory=now)
    key_id: str | None = None
