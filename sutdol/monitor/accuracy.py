"""The snapshot of how right a model is: overall, per version, per class said, over several windows; and what labels brought.

answers.count -> estimate.live_accuracy (whole, by version, by class) -> JSON of a Snapshot `accuracy`
champion's newest answers + VersionProfile + drift alarm -> unlabelled (ATC, CBPE, or why they are hidden)
label tasks + decisions -> `labels`: errors found per label by arm, gain of every promotion
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlmodel import Session, col, select

from sutdol import registry, stats
from sutdol.agreement import answer_is_right
from sutdol.jobs import Running
from sutdol.monitor import answers, columns, estimate
from sutdol.monitor.answers import Counted
from sutdol.monitor.estimate import Estimate
from sutdol.monitor.unlabelled import LATEST, unlabelled
from sutdol.tables import (
    DatasetItem,
    Decision,
    DriftState,
    LabelRow,
    LabelTask,
    Model,
    ModelVersion,
    PredictionRow,
    Snapshot,
    VersionProfile,
    now,
)

WINDOWS_DAYS = (1, 7, 30)
DAY_S = 86_400.0
KEEP_S = 14 * DAY_S
"""Age at which snapshots are forgotten."""
MAX_CLASSES = 100
IDLE_S = 600.0
"""New answers alone hardly move an estimate that rests on labels, and reading 50,000 of them takes two seconds."""


def refresh(running: Running, model: Model, *, every_s: float) -> bool:
    """Write a new snapshot when a label, a task or the champion has changed and the last one is older than `every_s`, or when
    only the traffic went on for IDLE_S; whether one was written. Without news of either kind nothing is written.
    """
    at = now()
    with running.context.database.read() as session:
        last = newest(session, model.slug, "accuracy")
        if last is not None and at - last.at < every_s:
            return False
        mark = _mark(session, model.slug)
        if last is not None and last.data.get("mark") == mark:
            return False
        known = last.data["mark"] if last is not None else None
        if last is not None and known is not None and known[1:] == mark[1:] and at - last.at < IDLE_S:
            return False
        data = read(session, model, at=at) | {"mark": mark}
        paid = labels_paid(session, model, data)
    with running.commit() as session:
        session.add(Snapshot(model=model.slug, kind="accuracy", at=at, data=data))
        session.add(Snapshot(model=model.slug, kind="labels", at=at, data=paid))
        session.execute(sa.delete(Snapshot).where(col(Snapshot.model) == model.slug, col(Snapshot.at) < at - KEEP_S))
    return True


def newest(session: Session, model: str, kind: str) -> Snapshot | None:
    """The latest snapshot of a kind, or None."""
    query = select(Snapshot).where(Snapshot.model == model, Snapshot.kind == kind)
    return session.exec(query.order_by(col(Snapshot.at).desc()).limit(1)).first()


def read(session: Session, model: Model, *, at: float) -> dict[str, Any]:
    """Everything about the accuracy of `model` at the moment `at`; JSON."""
    version = registry.alias(session, model.slug, "champion")
    windows = {}
    for days in WINDOWS_DAYS:
        counted = answers.count(session, model, since=at - days * DAY_S, until=at)
        windows[str(days)] = of_window(counted)
    return {"version": version, "windows": windows, "unlabelled": _unlabelled(session, model, version)}


def of_window(counted: Counted) -> dict[str, Any]:
    """Estimates over one window: whole, by version, by class said (the most frequent MAX_CLASSES)."""

    def of(domain: np.ndarray[Any, np.dtype[np.bool_]] | None = None) -> dict[str, Any]:
        return as_json(
            estimate.live_accuracy(
                counted.answers, counted.labelled, counted.right, missing=counted.missing, domain=domain
            )
        )

    said = np.array(counted.said)
    names, sizes = np.unique(said, return_counts=True)
    common = [str(names[i]) for i in np.argsort(-sizes)[:MAX_CLASSES]]
    return {
        "overall": of(),
        "versions": {str(v): of(counted.version == v) for v in sorted({int(v) for v in counted.version})},
        "classes": {name: of(said == name) for name in sorted(common)},
        "left_out": {"trained_on": counted.trained_on, "near_duplicates": counted.near_duplicates},
        "drawn": {
            "labelled": len(counted.labelled),
            "waiting": counted.waiting,
            "unlabelable": len(counted.missing),
        },
    }


def as_json(found: Estimate) -> dict[str, Any]:
    """An estimate as it is stored and served; numbers that are not finite become None."""
    return {
        "accuracy": found.accuracy,
        "low": found.low,
        "high": found.high,
        "labels": found.labels,
        "needed": found.needed,
        "answers": found.answers,
        "missing_width": found.missing_width,
        "worth": None if found.worth is None or not np.isfinite(found.worth) else found.worth,
    }


def labels_paid(session: Session, model: Model, data: dict[str, Any]) -> dict[str, Any]:
    """Did active learning pay? By arm: labels and errors found; by promotion: gain on the same test items and new labels.

    What random labels would have found is the live accuracy's complement over the longest window.
    """
    task = model.task
    rows = session.exec(
        select(LabelTask, LabelRow, PredictionRow)
        .where(LabelTask.model == model.slug, LabelTask.state == "annotated")
        .join(LabelRow, sa.and_(col(LabelRow.model) == model.slug, col(LabelRow.sample_id) == col(LabelTask.sample_id)))
        .join(PredictionRow, col(PredictionRow.id) == col(LabelTask.prediction_id))
        .where(LabelRow.source != "auto")
    ).all()
    found: dict[str, list[int]] = {}
    for label_task, label, prediction in rows:
        counts = found.setdefault(label_task.arm, [0, 0])
        counts[0] += 1
        counts[1] += not answer_is_right(prediction.answer, columns.label_of(label), task)  # type: ignore[arg-type]
    arms = {}
    for arm, (n, wrong) in sorted(found.items()):
        low, high = stats.wilson(wrong, n)
        arms[arm] = {
            "labels": n,
            "errors": wrong,
            "errors_per_100": 100 * wrong / n,
            "low": 100 * low,
            "high": 100 * high,
        }
    overall = data["windows"][str(WINDOWS_DAYS[-1])]["overall"]["accuracy"]
    return {
        "arms": arms,
        "random_errors_per_100": None if overall is None else 100 * (1 - overall),
        "promotions": _promotions(session, model.slug),
    }


def _promotions(session: Session, model: str) -> list[dict[str, Any]]:
    """Every candidate that beat a champion: gain in points on the same test items, and the labels it had and the champion
    had not, by arm."""
    query = select(Decision).where(
        Decision.model == model,
        Decision.kind == "gate",
        col(Decision.champion).is_not(None),
        Decision.verdict != "refuse",
    )
    told = []
    for decision in session.exec(query.order_by(col(Decision.at))):
        overall = decision.record.get("slices", {}).get("overall", {})
        gain = overall.get("difference")
        ours, theirs = (session.get(ModelVersion, (model, v)) for v in (decision.candidate, decision.champion))
        if gain is None or ours is None or theirs is None:
            continue
        before = select(DatasetItem.sample_id).where(DatasetItem.dataset_version_id == theirs.dataset_version_id)
        item = DatasetItem
        new = session.execute(
            sa.select(sa.func.coalesce(col(item.arm), col(item.source)), sa.func.count())
            .where(col(item.dataset_version_id) == ours.dataset_version_id, col(item.sample_id).not_in(before))
            .group_by(sa.func.coalesce(col(item.arm), col(item.source)))
        ).all()
        labels = {str(arm): int(n) for arm, n in new}
        total = sum(labels.values())
        told.append(
            {
                "version": decision.candidate,
                "over": decision.champion,
                "at": decision.at,
                "gain_points": 100 * gain,
                "labels": labels,
                "gain_per_100_labels": 100 * 100 * gain / total if total else None,
            }
        )
    return told


def _unlabelled(session: Session, model: Model, version: int | None) -> dict[str, Any]:
    if version is None:
        return {"atc": None, "cbpe": None, "hidden": "no version is at work"}
    profile, state = session.get(VersionProfile, (model.slug, version)), session.get(DriftState, model.slug)
    if profile is None:
        return {"atc": None, "cbpe": None, "hidden": "the version has not been measured yet"}
    manifest = columns.manifest_of(session, model.slug, version)
    p = PredictionRow
    query = sa.select(*columns.of_prediction(model.task)).where(col(p.model) == model.slug, col(p.version) == version)
    rows = list(session.execute(query.order_by(col(p.id).desc()).limit(LATEST)))[::-1]
    judged, beliefs, right = columns.of_profile(profile, manifest)
    found = unlabelled(
        judged,
        beliefs,
        right,
        columns.batch_of(rows, manifest),
        np.array([answers.belief(manifest.task, r.confidence, r.margin) for r in rows], np.float64),
        alarm=state.alarm_text if state is not None and state.alarm and state.version == version else "",
    )
    return {"atc": found.atc, "cbpe": found.cbpe, "hidden": found.hidden or None}


def _mark(session: Session, model: str) -> list[Any]:
    """What an estimate depends on, the newest prediction first; equal marks, equal estimates (but for the moving window)."""
    newest_id = sa.select(sa.func.max(col(PredictionRow.id))).where(col(PredictionRow.model) == model)
    label = sa.select(sa.func.max(col(LabelRow.updated_at)), sa.func.count()).where(col(LabelRow.model) == model)
    state = session.get(DriftState, model)
    states = sa.select(col(LabelTask.state), sa.func.count()).where(col(LabelTask.model) == model)
    counts = sorted((s, n) for s, n in session.execute(states.group_by(col(LabelTask.state))))
    return [
        session.execute(newest_id).scalar_one(),
        *session.execute(label).one(),
        [list(c) for c in counts],
        state.alarm if state is not None else None,
        registry.alias(session, model, "champion"),
    ]
