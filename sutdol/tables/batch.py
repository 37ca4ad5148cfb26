"""Predictions of many images at once."""

from __future__ import annotations

from typing import Any

from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class BatchRun(SQLModel, table=True):
    """One folder, archive, list or video on its way through one model version; its job does the work.

    Results lie in the store as `batches/{id}/{chunk:06d}.jsonl`; those of chunks below `chunks` are final, whatever else
    lies there was left by an attempt that died and is made again.
    """

    __tablename__ = "batch_run"
    id: str = Field(primary_key=True, default_factory=new_id)
    job_id: str = Field(index=True)
    model: str = Field(index=True)
    version: int
    source: dict[str, Any] = json_column()
    """{"kind", "name", and "path" on this machine or "key" in the store}"""
    options: dict[str, Any] = json_column()
    """{"every_s", "scene", "log", "pictures"}"""
    who: str
    done: int = 0
    """Images whose results are final, unreadable ones included."""
    failed: int = 0
    chunks: int = 0
    total: int | None = None
    """Images in all; None while it is not known (a video)."""
    created_at: float = Field(default_factory=now)
    finished_at: float | None = None
