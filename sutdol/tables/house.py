"""What belongs to the whole installation: events, keys, shared secrets."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class Event(SQLModel, table=True):
    """What happened, for people: swaps, refusals, alarms, key changes. Never holds secrets or images."""

    __table_args__ = (Index("event_model_at", "model", "at"),)
    id: str = Field(primary_key=True, default_factory=new_id)
    at: float = Field(default_factory=now, index=True)
    kind: str = Field(index=True)
    model: str | None = None
    text: str
    data: dict[str, Any] = json_column()


class ApiKey(SQLModel, table=True):
    """`sut_<id>_<secret>`: only the SHA-256 of the secret is kept."""

    __tablename__ = "api_key"
    id: str = Field(primary_key=True)
    secret_sha256: str
    name: str
    scopes: list[str] = json_column()
    """predict | label | admin; admin includes the others."""
    created_at: float = Field(default_factory=now)
    expires_at: float | None = None
    revoked_at: float | None = None


class Secret(SQLModel, table=True):
    """Values that all processes of one installation share, made at first use: the key that signs image URLs, passwords."""

    name: str = Field(primary_key=True)
    value: str
