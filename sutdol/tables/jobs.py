"""Work, its history, its doorbells, and leadership."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class Job(SQLModel, table=True):
    """The truth about one piece of work; a broker's message only carries its id. See `sutdol.jobs`."""

    __table_args__ = (
        Index("job_state_queue", "state", "queue"),
        Index("job_kind_at", "kind", "created_at"),
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
    payload: dict[str, Any] = json_column()
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
    progress: dict[str, Any] | None = json_column(nullable=True)
    result: dict[str, Any] | None = json_column(nullable=True)
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
