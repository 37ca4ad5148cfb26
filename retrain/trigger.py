"""Enough new labels start a training: the job `retrain.trigger`, debounced in the database.

    {"model": slug} or {} for all -> count labels that the last training has not seen -> start, or wait, or nothing

Counting, deciding and starting happen in one transaction, so two triggers at once start one training and a crash leaves
either nothing or a whole run. The clock asks again every few seconds, so labels that had to wait (a training was active,
the cooldown was not over) need no further label to be noticed. While a drift alarm is on fewer labels are enough.

Errors: NotFoundError for a model that does not exist.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from retrain import train
from sutdol import registry
from sutdol.jobs import Running
from sutdol.settings import Settings
from sutdol.tables import DatasetItem, DriftState, LabelRow, Model, TrainingRun, now

MAX_DOUBLINGS = 10
"""Failures in a row after which the cooldown no longer grows: 60 s have become 17 hours."""


def handle(running: Running) -> dict[str, Any]:
    """The handler of `retrain.trigger`; the result says per model how many labels are new and what was done."""
    told: dict[str, Any] = {}
    with running.commit() as session:
        if "model" in running.payload:
            slugs = [registry.get_model(session, running.payload["model"]).slug]
        else:
            slugs = list(session.exec(select(Model.slug).order_by(col(Model.slug))))
        for slug in slugs:
            told[slug] = consider(session, slug, running.context.settings)
    return told


def consider(session: Session, model: str, settings: Settings) -> dict[str, Any]:
    """Start a training of `model` if enough labels are new and nothing forbids it now; part of the caller's transaction.

    Returns:
        new_labels, with started (the run's id) or waits (why not now) when they are enough.
    """
    fresh = new_labels(session, model)
    watched = session.get(DriftState, model)
    drifted = watched is not None and watched.alarm
    enough = min(settings.retrain_after_labels, settings.retrain_on_drift_labels if drifted else 2**31)
    if fresh < enough:
        return {"new_labels": fresh}
    left_s = _cooldown_left_s(session, model, settings.retrain_cooldown_s)
    if left_s > 0:
        return {"new_labels": fresh, "waits": f"cooldown, {left_s:.0f} s left"}
    cause = f"{fresh} new labels" + (f", drift: {watched.alarm_text}" if watched is not None and drifted else "")
    run = train.start(session, model, cause=cause)
    if run is None:
        return {"new_labels": fresh, "waits": "a training is queued or active"}
    return {"new_labels": fresh, "started": run.id}


def new_labels(session: Session, model: str) -> int:
    """Answers of people that the newest frozen training of `model` did not contain as such.

    A training that failed counts as one that saw its labels; otherwise it would be started again for ever.
    """
    seen = session.exec(
        select(TrainingRun.dataset_version_id)
        .where(TrainingRun.model == model, col(TrainingRun.dataset_version_id).is_not(None))
        .order_by(col(TrainingRun.created_at).desc(), col(TrainingRun.id).desc())
    ).first()
    query = (
        sa.select(sa.func.count())
        .select_from(LabelRow)
        .outerjoin(
            DatasetItem,
            sa.and_(col(DatasetItem.dataset_version_id) == seen, col(DatasetItem.sample_id) == col(LabelRow.sample_id)),
        )
        .where(col(LabelRow.model) == model, col(LabelRow.source) == "annotation")
        .where(sa.or_(col(DatasetItem.sample_id).is_(None), col(DatasetItem.source) != "annotation"))
    )
    return int(session.execute(query).scalar_one())


def _cooldown_left_s(session: Session, model: str, cooldown_s: float) -> float:
    """Seconds until the next training may start. Each failure in a row doubles the cooldown, so that a broken set-up is
    tried ever more rarely; a training started by hand is not held up by it."""
    newest = session.exec(
        select(TrainingRun)
        .where(TrainingRun.model == model)
        .order_by(col(TrainingRun.created_at).desc())
        .limit(MAX_DOUBLINGS)
    ).all()
    if not newest:
        return 0.0
    failures: int = next((i for i, run in enumerate(newest) if run.state != "failed"), len(newest))
    ended = max(run.finished_at or run.created_at for run in newest)
    return max(0.0, ended + cooldown_s * float(2**failures) - now())
