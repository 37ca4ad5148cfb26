"""Job `bridge.window`: candidates -> queued, inside the label budget.

Every candidate of the arm `drawn` is queued: a sample drawn by chance is never ranked out, merged away or withdrawn (its budget
acted on the probability before the draw). The other arms are ranked by their strategy within what is left of the budget; those
that find no room stay candidates.

    feedback that contradicts an answer -> candidates of the arm `disagree`, where the image was kept
    candidates of a model -> drawn: all
                          -> others: scored again if the champion has changed -> near-duplicates merged -> choose(room)
    chosen -> state `queued` -> job `bridge.push`

Errors: ModelError when the champion cannot be loaded; an image that is gone leaves its row as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import func
from sqlmodel import Session, col, select

from labeling_bridge.contradiction import contradicted
from labeling_bridge.duplicates import Picture, merges
from labeling_bridge.rescore import SCORED, rescore
from labeling_bridge.strategies import Candidate, choose
from sutdol import jobs, registry
from sutdol.errors import NotFoundError
from sutdol.events import tell
from sutdol.familiarity import OodStatistics, unpack
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.settings import Settings
from sutdol.stores import Store
from sutdol.tables import LabelRow, LabelTask, Model, PredictionRow, now

DAY_S = 86_400.0
MAX_STALE = 200
"""Candidates of an older version that one run scores again; the rest waits for the next run."""
COMPARED = 2_000
"""Newest tasks that candidates are compared with for near-duplicates."""
COLD_LABELS = 10
"""With fewer labels than this, and than there are classes, a model's doubt says nothing yet."""


@dataclass(frozen=True)
class Room:
    """What the budget leaves: tasks of other arms that may be queued now, and whether hardly anything is labelled yet."""

    others: int
    cold: bool


def window(running: Running) -> dict[str, Any]:
    """Payload {} for all models, or {"model": slug}. Returns how many tasks were queued and merged, by model."""
    with running.context.database.read() as session:
        models = [running.payload["model"]] if "model" in running.payload else list(session.exec(select(Model.slug)))
    queued: dict[str, int] = {}
    merged: dict[str, int] = {}
    for model in models:
        running.check_cancelled()
        with running.commit() as session:
            contradicted(session, model)
            _give_back(session, model)
        plan = _plan(running, model)
        with running.commit() as session:
            queued[model] = _queue(session, model, plan, running.context.settings)
        merged[model] = len(plan.merged)
    return {
        "queued": {model: n for model, n in queued.items() if n},
        "merged": {model: n for model, n in merged.items() if n},
    }


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


@dataclass(frozen=True)
class _Plan:
    """What to do with the waiting candidates of other arms: ids chosen, and id -> keeper's id of those that are merged."""

    chosen: list[str]
    merged: dict[str, str]
    rescored: list[LabelTask]
    certain: list[str]


def _plan(running: Running, model: str) -> _Plan:
    """Look, score, compare and choose; nothing is written, and no transaction is open while images are read."""
    context = running.context
    with context.database.read() as session:
        room = _room(session, model, context.settings)
        waiting = _waiting(session, model) if room.others else []
        champion = registry.alias(session, model, "champion")
    if not waiting:
        return _Plan([], {}, [], [])
    stale = [row for row in waiting if champion is not None and row.version != champion and row.arm != "gold"]
    scored, certain = _refreshed(running, model, champion, stale[:MAX_STALE])
    gone = set(certain)
    waiting = [row for row in waiting if row.id not in gone]
    with context.database.read() as session:
        fingerprints = _fingerprints(session, waiting)
        keepers = _keepers(session, model)
        fingerprints |= _fingerprints(session, keepers)
    versions = {row.version for row in waiting}
    limits = {version: _duplicate_at(context.store, model, version) for version in versions}
    ordered = sorted((row for row in waiting if row.arm != "gold"), key=lambda row: (-row.priority, row.id))
    same = merges(
        [_picture(row, fingerprints) for row in ordered],
        [_picture(row, fingerprints) for row in keepers],
        duplicate_at=limits,
    )
    candidates = [_candidate(row) for row in waiting if row.id not in same]
    chosen = choose(candidates, room.others, np.random.default_rng(), cold=room.cold)
    return _Plan(chosen, same, scored, certain)


def _queue(session: Session, model: str, plan: _Plan, settings: Settings) -> int:
    """Write the plan, as far as the rows still wait, and queue every drawn candidate; how many were queued."""
    at = now()
    for scored in plan.rescored:
        row = session.get_one(LabelTask, scored.id)
        if row.state == "candidate" and row.arm != "drawn":
            for name in SCORED:
                setattr(row, name, getattr(scored, name))
            session.add(row)
    session.flush()
    waits = (col(LabelTask.model) == model, col(LabelTask.state) == "candidate")
    others = (*waits, col(LabelTask.arm) != "drawn")
    for task_id, keeper in plan.merged.items():
        session.execute(
            sa.update(LabelTask).where(*others, col(LabelTask.id) == task_id).values(state="merged", merged_into=keeper)
        )
    if plan.merged:
        text = (
            f"{len(plan.merged)} candidates of {model} show a picture that another task shows already; merged into it"
        )
        tell(session, "bridge.merged", text, model=model, tasks=plan.merged)
    if plan.certain:
        session.execute(
            sa.update(LabelTask).where(*others, col(LabelTask.id).in_(plan.certain)).values(state="withdrawn")
        )
        text = f"{len(plan.certain)} candidates of {model} withdrawn: the champion is certain of them"
        tell(session, "bridge.withdrawn", text, model=model)
    wanted = sa.or_(col(LabelTask.arm) == "drawn", col(LabelTask.id).in_(plan.chosen))
    result = session.execute(sa.update(LabelTask).where(*waits, wanted).values(state="queued", queued_at=at))
    ready = session.exec(
        select(LabelTask.id)
        .where(LabelTask.model == model, LabelTask.state == "queued", LabelTask.not_before <= at)
        .limit(1)
    ).first()
    if ready is not None and _count(session, model, "in_studio") < settings.max_open_tasks:
        jobs.send(session, "bridge.push", {"model": model}, unique_key=f"bridge.push:{model}")
    return int(result.rowcount)  # type: ignore[attr-defined]


def _waiting(session: Session, model: str) -> list[LabelTask]:
    """Candidates of the other arms."""
    statement = select(LabelTask).where(
        LabelTask.model == model, LabelTask.arm != "drawn", LabelTask.state == "candidate"
    )
    return list(session.exec(statement))


def _give_back(session: Session, model: str) -> None:
    """Merged tasks whose keeper will bring no label are candidates again."""
    keeper = sa.orm.aliased(LabelTask)
    without = sa.select(col(keeper.id)).where(
        col(keeper.model) == model, col(keeper.state).in_(("withdrawn", "unlabelable"))
    )
    session.execute(
        sa.update(LabelTask)
        .where(col(LabelTask.model) == model, col(LabelTask.state) == "merged", col(LabelTask.merged_into).in_(without))
        .values(state="candidate", merged_into=None)
    )


def _room(session: Session, model: str, settings: Settings) -> Room:
    drawn = select(func.count()).where(
        LabelTask.model == model, LabelTask.state == "candidate", LabelTask.arm == "drawn"
    )
    coming = session.exec(drawn).one()
    today = select(func.count()).where(LabelTask.model == model, col(LabelTask.queued_at) > now() - DAY_S)
    room = room_for_others(
        settings,
        open_tasks=_count(session, model, "queued", "in_studio") + coming,
        queued_today=session.exec(today).one() + coming,
        others_today=session.exec(today.where(LabelTask.arm != "drawn")).one(),
    )
    labelled = session.exec(select(func.count()).where(LabelRow.model == model, LabelRow.source != "auto")).one()
    classes = session.get_one(Model, model).classes
    return Room(room, labelled < max(COLD_LABELS, len(classes)))


def _refreshed(
    running: Running, model: str, champion: int | None, stale: list[LabelTask]
) -> tuple[list[LabelTask], list[str]]:
    """(rows as the champion sees them, ids of those it is certain of): only features of one version can be compared."""
    if not stale or champion is None:
        return [], []
    context = running.context
    predictor = Predictor.open(context.store, model, champion, providers=context.settings.provider_names or None)
    found = rescore(context.store, predictor, stale)
    return found.scored, [row.id for row in found.certain]


def _keepers(session: Session, model: str) -> list[LabelTask]:
    stays = sa.or_(
        col(LabelTask.state).in_(("queued", "in_studio", "annotated")),
        sa.and_(col(LabelTask.state) == "candidate", col(LabelTask.arm) == "drawn"),
    )
    statement = select(LabelTask).where(LabelTask.model == model, stays)
    return list(session.exec(statement.order_by(col(LabelTask.created_at).desc()).limit(COMPARED)))


def _fingerprints(session: Session, rows: list[LabelTask]) -> dict[str, str | None]:
    """Fingerprint by prediction id, as the log has them."""
    ids = [row.prediction_id for row in rows]
    found: dict[str, str | None] = {}
    for start in range(0, len(ids), 500):
        part = col(PredictionRow.id).in_(ids[start : start + 500])
        found |= dict(session.exec(select(PredictionRow.id, PredictionRow.fingerprint).where(part)).all())
    return found


def _picture(row: LabelTask, fingerprints: dict[str, str | None]) -> Picture:
    return Picture(row.id, row.version, fingerprints.get(row.prediction_id), unpack(row.features))


def _candidate(row: LabelTask) -> Candidate:
    return Candidate(
        row.id, row.arm, row.priority, row.uncertainty, row.ood_score, row.created_at, unpack(row.features), row.scores
    )


def _duplicate_at(store: Store, model: str, version: int) -> float:
    """How near two pictures' features are that show the same; 0 where this version cannot tell."""
    try:
        manifest = registry.read_manifest(store, model, version)
        if "scoring.npz" not in manifest.files:
            return 0.0
        data = registry.read_file(store, model, version, manifest, "scoring.npz")
    except NotFoundError:
        return 0.0
    return OodStatistics.from_bytes(data).duplicate_at


def _count(session: Session, model: str, *states: str) -> int:
    statement = select(func.count()).where(LabelTask.model == model, col(LabelTask.state).in_(states))
    return session.exec(statement).one()
