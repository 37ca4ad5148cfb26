"""What watching the live models has found: where the drift charts stand, and snapshots for whoever wants to read."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class DriftState(SQLModel, table=True):
    """One model's charts; they begin anew with every version that is put to work."""

    __tablename__ = "drift_state"
    model: str = Field(primary_key=True)
    version: int
    cursor: str = ""
    """Id of the last prediction taken in."""
    learning: dict[str, Any] | None = json_column(nullable=True)
    """Images collected for the reference; None once it is complete."""
    reference: dict[str, Any] | None = json_column(nullable=True)
    """A `monitor.drift.Reference`."""
    charts: dict[str, Any] = json_column()
    """A `monitor.drift.State`."""
    recent: list[str] = json_column()
    """The last contents taken in, shortened: a repeat counts once."""
    alarm: bool = False
    alarm_since: float | None = None
    alarm_text: str = ""
    last_alarm_at: float | None = None
    """When the model's world last changed, whichever version served; labels from before it say nothing about now."""
    updated_at: float = Field(default_factory=now)


class VersionProfile(SQLModel, table=True):
    """What a version was trained on and judged by, measured once: near-duplicates and label-free estimates need it."""

    __tablename__ = "version_profile"
    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    trained_on: list[list[Any]] = json_column()
    """[fingerprint, brightness, sharpness] of each training and val image."""
    judged: dict[str, Any] = json_column()
    """Columns over the test items: signals, `belief` and `right`."""
    created_at: float = Field(default_factory=now)


class Snapshot(SQLModel, table=True):
    """One reading of one thing of one model; the newest of a kind is what people see, older ones make the curve."""

    __table_args__ = (Index("snapshot_newest", "model", "kind", "at"),)
    id: str = Field(primary_key=True, default_factory=new_id)
    model: str
    kind: str
    """accuracy | labels | auto-labels"""
    at: float = Field(default_factory=now)
    data: dict[str, Any] = json_column()
