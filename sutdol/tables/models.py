"""Models, their versions, what points at them, and who serves them."""

from __future__ import annotations

from typing import Any

from sqlmodel import Field, SQLModel

from sutdol.tables.base import json_column, new_id, now


class Model(SQLModel, table=True):
    """A model people know by name; its class list only ever grows (an index is never reused)."""

    slug: str = Field(primary_key=True, max_length=64)
    task: str
    classes: list[str] = json_column()
    retired: list[str] | None = json_column(nullable=True)
    """Classes of the list that people are not offered any more; their labels stay valid."""
    family: str
    params: dict[str, Any] = json_column()
    """Defaults for training runs of this model: image size, epochs and what else the family knows."""
    auto_labels_held: bool = False
    """People said that nothing is to be labelled without them until they say otherwise."""
    created_at: float = Field(default_factory=now)


class ModelVersion(SQLModel, table=True):
    """One trained version: a bundle in the store under `models/{model}/{version}/` (see `registry`)."""

    __tablename__ = "model_version"
    model: str = Field(primary_key=True, foreign_key="model.slug")
    version: int = Field(primary_key=True)
    name: str
    state: str = "candidate"
    """candidate -> ready | refused -> deleted. Only `ready` versions can be promoted; of a deleted one only the row is left."""
    sha256: str
    """Of model.onnx."""
    size_bytes: int
    manifest: dict[str, Any] = json_column()
    metrics: dict[str, Any] = json_column()
    run_id: str | None = Field(default=None, index=True)
    dataset_version_id: str | None = None
    parent_version: int | None = None
    tags: dict[str, str] | None = json_column(nullable=True)
    created_at: float = Field(default_factory=now)


class Alias(SQLModel, table=True):
    """`champion`, `challenger`, `previous` of a model, and those that people name. Replicas follow `champion`."""

    model: str = Field(primary_key=True, foreign_key="model.slug")
    name: str = Field(primary_key=True)
    version: int
    updated_at: float = Field(default_factory=now)


class Rollout(SQLModel, table=True):
    """The challenger of a model on trial: it answers (canary) or is tried unseen (shadow) for a share of the traffic."""

    model: str = Field(primary_key=True, foreign_key="model.slug")
    version: int
    mode: str
    """shadow | canary"""
    share: float
    max_disagreement: float = 0.0
    """Share of compared answers that may differ from the champion's; 0: not watched."""
    who: str
    started_at: float = Field(default_factory=now)


class Decision(SQLModel, table=True):
    """Why a version was or was not put to work: the readable record, with numbers, intervals and hashes."""

    id: str = Field(primary_key=True, default_factory=new_id)
    model: str = Field(index=True)
    kind: str
    """gate | promote | rollback | rollout"""
    verdict: str
    """gate: promote | refuse | approve (waiting for a person); promote and rollback: done;
    rollout: ended"""
    candidate: int
    champion: int | None = None
    text: str
    record: dict[str, Any] = json_column()
    test_digest: str | None = Field(default=None, index=True)
    alpha: float | None = None
    who: str
    at: float = Field(default_factory=now)


class Replica(SQLModel, table=True):
    """A living process of ours: role, address, what it serves. Gone when its heartbeat is older than three leases."""

    id: str = Field(primary_key=True, default_factory=new_id)
    role: str
    """serve | work | clock"""
    pid: int
    host: str
    url: str | None = None
    serving: dict[str, Any] = json_column()
    """serve only: {model: {"version": n, "sha256": ..., "provider": ..., "error": ... or None, "swap_ms": ...}}"""
    started_at: float = Field(default_factory=now)
    heartbeat_at: float = Field(default_factory=now)
