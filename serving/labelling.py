"""How labelling stands, per model: what waits and since when, what of the budget is spent, how people answer.

    GET /v1/models/{model}/label-budget -> Budget

The report about people is computed by the bridge now and then and stored; here it is read (`/v1/models/{model}/labeling`).

Errors: NotFoundError for an unknown model.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Router, get
from sqlalchemy import func
from sqlmodel import col, select

from serving.auth import Keyring, needs
from sutdol import registry
from sutdol.context import Context
from sutdol.db import Database
from sutdol.tables import LabelReport, LabelTask, now

DAY_S = 86_400.0
OPEN = ("queued", "in_studio")
"""States in which a task takes a place of those that may be open at once."""
WAITING = ("candidate", *OPEN, "conflict")


class Backlog(msgspec.Struct):
    """Tasks of one arm in one state that wait; `oldest_at` is when the oldest of them was picked, epoch seconds."""

    arm: str
    state: str
    count: int
    oldest_at: float


class Budget(msgspec.Struct):
    """What people were asked for in the last 24 hours and what waits, against what the settings allow."""

    model: str
    asked_today: int
    per_day: int
    open: int
    at_most_open: int
    backlog: list[Backlog]


def build(context: Context, keyring: Keyring) -> Router:
    """The route of this file."""

    @get(
        "/v1/models/{model:str}/label-budget",
        guards=[needs(keyring, "label")],
        sync_to_thread=True,
        summary="What of the label budget is spent, and what waits since when",
        tags=["labels"],
        operation_id="label_budget",
    )
    def label_budget(model: str) -> Budget:
        return budget(context, model)

    return Router("/", route_handlers=[label_budget])


def budget(context: Context, model: str) -> Budget:
    """The budget of one model. Raises NotFoundError."""
    keys = (LabelTask.arm, LabelTask.state)
    mine = LabelTask.model == model
    waits = select(*keys, func.count(), func.min(LabelTask.created_at)).where(mine, col(LabelTask.state).in_(WAITING))
    asked = select(func.count()).where(mine, col(LabelTask.queued_at) > now() - DAY_S)
    with context.database.read() as session:
        registry.get_model(session, model)
        rows = [Backlog(*row) for row in session.exec(waits.group_by(*keys).order_by(*keys))]
        asked_today = session.exec(asked).one()
    settings = context.settings
    open_ = sum(row.count for row in rows if row.state in OPEN)
    return Budget(model, asked_today, settings.labels_per_day, open_, settings.max_open_tasks, rows)


def people(database: Database, model: str) -> dict[str, Any] | None:
    """The newest report about a model's labelers with its moment `at`; None before the first."""
    with database.read() as session:
        row = session.get(LabelReport, model)
    return {"at": row.at} | row.report if row else None
