"""Enough new labels start a training: the job `retrain.trigger`, debounced in the database.

Enough is a number, a share of what the last training had, or any after a time (the schedule).

    {"model": slug} or {} for all -> count labels that the last training has not seen -> start, or wait, or nothing

Counting, deciding and starting happen in one transaction, so two triggers at once start one training and a crash leaves
either nothing or a whole run. The clock asks again every few seconds, so labels that had to wait (a training was active,
the cooldown was not over) need no further label to be noticed. While a drift alarm is on fewer labels are enough.

Errors: NotFoundError for a model that does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from retrain import train
from sutdol import registry
from sutdol.jobs import Running
from sutdol.settings import Settings
from sutdol.tables import DatasetItem, DatasetVersion, DriftState, LabelRow, Model, TrainingRun, now

MAX_DEBOUNCES = 10
"""Labels that never stop coming must not hold a training up for ever."""
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
    unseen = _unseen(session, model)
    fresh = unseen.count
    reason = _reason(session, model, settings, fresh)
    if reason is None:
        return {"new_labels": fresh}
    pause_s = settings.retrain_debounce_s
    quiet_s, waited_s = now() - unseen.newest_at, now() - unseen.oldest_at
    if quiet_s < pause_s and waited_s < MAX_DEBOUNCES * pause_s:
        return {"new_labels": fresh, "waits": f"labels are still coming, {pause_s - quiet_s:.0f} s more without one"}
    left_s = _cooldown_left_s(session, model, settings.retrain_cooldown_s)
    if left_s > 0:
        return {"new_labels": fresh, "waits": f"cooldown, {left_s:.0f} s left"}
    run = train.start(session, model, cause=reason)
    if run is None:
        return {"new_labels": fresh, "waits": "a training is queued or active"}
    return {"new_labels": fresh, "started": run.id}


def _reason(session: Session, model: str, settings: Settings, fresh: int) -> str | None:
    """Why a training should start now, in words; None when nothing says so."""
    if not fresh:
        return None
    watched = session.get(DriftState, model)
    drift = f", drift: {watched.alarm_text}" if watched is not None and watched.alarm else ""
    if fresh >= settings.retrain_after_labels or (drift and fresh >= settings.retrain_on_drift_labels):
        return f"{fresh} new labels{drift}"
    last = session.exec(
        select(TrainingRun).where(TrainingRun.model == model).order_by(col(TrainingRun.created_at).desc())
    ).first()
    frozen = (
        session.get(DatasetVersion, last.dataset_version_id) if last is not None and last.dataset_version_id else None
    )
    if settings.retrain_after_growth and frozen is not None:
        share = 100 * fresh / max(1, sum(frozen.counts["splits"].values()))
        if share >= settings.retrain_after_growth:
            return f"{fresh} new labels, {share:.0f} % more"
    if settings.retrain_every_s and last is not None:
        age_s = now() - (last.finished_at or last.created_at)
        if age_s >= settings.retrain_every_s:
            return f"schedule, {age_s / 3600:.1f} h after the last training, {fresh} new labels"
    return None


@dataclass(frozen=True)
class _Unseen:
    """Answers that no training has seen: how many, and when the first and the last of them came."""

    count: int
    oldest_at: float
    newest_at: float


def new_labels(session: Session, model: str) -> int:
    """How many answers of people the newest frozen training of `model` did not contain as such."""
    return _unseen(session, model).count


def _unseen(session: Session, model: str) -> _Unseen:
    """Answers of people that the newest frozen training of `model` did not contain as such.

    A training that failed counts as one that saw its labels; otherwise it would be started again for ever.
    """
    seen = session.exec(
        select(TrainingRun.dataset_version_id)
        .where(TrainingRun.model == model, col(TrainingRun.dataset_version_id).is_not(None))
        .order_by(col(TrainingRun.created_at).desc(), col(TrainingRun.id).desc())
    ).first()
    query = (
        sa.select(sa.func.count(), sa.func.min(col(LabelRow.updated_at)), sa.func.max(col(LabelRow.updated_at)))
        .select_from(LabelRow)
        .outerjoin(
            DatasetItem,
            sa.and_(col(DatasetItem.dataset_version_id) == seen, col(DatasetItem.sample_id) == col(LabelRow.sample_id)),
        )
        .where(col(LabelRow.model) == model, col(LabelRow.source) == "annotation")
        .where(sa.or_(col(DatasetItem.sample_id).is_(None), col(DatasetItem.source) != "annotation"))
    )
    count, oldest, newest = session.execute(query).one()
    return _Unseen(int(count), oldest or 0.0, newest or 0.0)


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
