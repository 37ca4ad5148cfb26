"""Job `bridge.window`: candidates -> queued, inside the label budget.

Every candidate of the arm `drawn` is queued: a sample drawn by chance is never ranked out (its budget acted on the
probability before the draw). The other arms are ranked by their strategy within what is left of the budget; those that
find no room stay candidates.

    candidates of a model -> drawn: all; others: choose(room) -> state `queued` -> job `bridge.push`
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import func
from sqlmodel import Session, col, select

from labeling_bridge.strategies import Candidate, choose
from sutdol import jobs
from sutdol.jobs import Running
from sutdol.settings import Settings
from sutdol.tables import LabelTask, Model, now

DAY_S = 86_400.0


def window(running: Running) -> dict[str, Any]:
    """Payload {} for all models, or {"model": slug}. Returns how many tasks were queued, by model."""
    with running.context.database.read() as session:
        models = [running.payload["model"]] if "model" in running.payload else list(session.exec(select(Model.slug)))
    queued: dict[str, int] = {}
    for model in models:
        with running.commit() as session:
            queued[model] = _choose_for(session, model, running.context.settings)
    return {"queued": {model: n for model, n in queued.items() if n}}


def room_for_others(settings: Settings, *, open_tasks: int, queued_today: int, others_today: int) -> int:
    """How many tasks of arms other than `drawn` may still be queued.

    Args:
        open_tasks: queued or in Label Studio and unanswered, of this model, all arms.
        queued_today: queued in the last 24 hours, all arms.
        others_today: those of them that are not `drawn`.
    """
    share = round(settings.labels_per_day * (1 - settings.drawn_share))
    left = min(share - others_today, settings.labels_per_day - queued_today, settings.max_open_tasks - open_tasks)
    return max(left, 0)


def _choose_for(session: Session, model: str, settings: Settings) -> int:
    at = now()
    waiting = session.exec(select(LabelTask).where(LabelTask.model == model, LabelTask.state == "candidate")).all()
    chosen = {row.id for row in waiting if row.arm == "drawn"}
    others = [row for row in waiting if row.arm != "drawn"]
    if others:
        today = select(func.count()).where(LabelTask.model == model, col(LabelTask.queued_at) > at - DAY_S)
        queued_today = session.exec(today).one() + len(chosen)
        room = room_for_others(
            settings,
            open_tasks=_count(session, model, "queued", "in_studio") + len(chosen),
            queued_today=queued_today,
            others_today=session.exec(today.where(LabelTask.arm != "drawn")).one(),
        )
        candidates = [
            Candidate(r.id, r.arm, r.priority, r.uncertainty, r.ood_score, created_at=r.created_at) for r in others
        ]
        chosen |= set(choose(candidates, room, np.random.default_rng()))
    for row in waiting:
        if row.id in chosen:
            row.state, row.queued_at = "queued", at
            session.add(row)
    session.flush()
    ready = session.exec(
        select(LabelTask.id)
        .where(LabelTask.model == model, LabelTask.state == "queued", LabelTask.not_before <= at)
        .limit(1)
    ).first()
    if ready is not None and _count(session, model, "in_studio") < settings.max_open_tasks:
        jobs.send(session, "bridge.push", {"model": model}, unique_key=f"bridge.push:{model}")
    return len(chosen)


def _count(session: Session, model: str, *states: str) -> int:
    statement = select(func.count()).where(LabelTask.model == model, col(LabelTask.state).in_(states))
    return session.exec(statement).one()
