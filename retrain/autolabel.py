"""Labels without people, with a guarantee: job `retrain.autolabel`.

    drawn labels that the champion was not trained on -> champion's answers on them -> thinned to a plain random sample
       -> learn_then_test: the loosest score above which the error is below the target, with confidence 1 - DELTA
    kept images that no arm picked, answered by the champion, familiar, above that score -> labels of source `auto`

The promise is about images like those that were drawn, so it is suspended while a drift alarm is on and while the charts of
the version have not learned what is usual; labels from before the last alarm do not count. With too few labels it refuses
and says how many are missing (45, 114, 230 without an error for 5, 2, 1 %). An auto-label only ever trains, is marked as
such, and gives way to any person's answer.

Thinning: a doubtful image was drawn with a larger probability than a sure one at the same time; it is kept with the ratio of
the two, by a number that depends on its content, so what is left stands for the traffic.

Errors: InputError for a target outside (0, 0.5]; NotFoundError; ModelError of the champion.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlmodel import Session, col, select

from sutdol import registry
from sutdol.agreement import answer_is_right
from sutdol.db import upsert
from sutdol.errors import ImageError, NotFoundError
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.monitor.answers import belief
from sutdol.monitor.estimate import Float
from sutdol.monitor.guarantee import DELTA, LIMIT, labels_needed, learn_then_test, score_of
from sutdol.predictor import Predictor
from sutdol.sampling import uniform
from sutdol.tables import (
    DatasetItem,
    DriftState,
    LabelRow,
    LabelTask,
    Model,
    ModelVersion,
    PredictionRow,
    Sample,
    Snapshot,
)
from sutdol.types import Box, Label, Task

CALIBRATION = 2_000
"""The newest drawn labels that are looked at."""
CANDIDATES = 20_000
NEIGHBOURS = 100
"""Answers before and after a drawn one that say how probable a sure one was at that time."""


def handle(running: Running) -> dict[str, Any]:
    """Payload {"model", "target", "limit"}, or {} from the clock: all models, by the setting `auto_label_error`."""
    context, payload = running.context, running.payload
    target = float(payload.get("target") or context.settings.auto_label_error)
    if not target:
        return {}
    labels_needed(target)
    with context.database.read() as session:
        names = [payload["model"]] if "model" in payload else list(session.exec(select(Model.slug)))
        models = [registry.get_model(session, name) for name in names]
    told: dict[str, Any] = {}
    for model in models:
        running.check_cancelled()
        report = _label(running, model, target, int(payload.get("limit", LIMIT)))
        told[model.slug] = report
        with running.commit() as session:
            _keep(session, model.slug, report, asked="model" in payload)
    return told


def _label(running: Running, model: Model, target: float, limit: int) -> dict[str, Any]:
    """Calibrate and label; the report says `refused` and why, or how many labels were made under which rule."""
    context = running.context
    report: dict[str, Any] = {"target": target, "delta": DELTA, "labelled": 0}
    with context.database.read() as session:
        version = registry.alias(session, model.slug, "champion")
        state = session.get(DriftState, model.slug)
        why = _paused(session, model.slug, version, state)
        if version is None or state is None or why:
            return report | {"refused": why, "paused": True}
        since = state.last_alarm_at or 0.0
        drawn = _drawn(session, model, version, since)
    predictor = Predictor.open(context.store, model.slug, version, providers=context.settings.provider_names)
    scores, outcomes = _judge(running, predictor, drawn)
    rule = learn_then_test(scores, outcomes, target=target)
    report |= {"version": version, "labels": len(scores), "needed": labels_needed(target), "missing": rule.missing}
    if rule.missing:
        return report | {"refused": f"{rule.missing} drawn labels are missing for an error of {target:.1%}"}
    if rule.threshold is None:
        return report | {
            "refused": f"the {len(scores)} labels do not show an error below {target:.1%} at any threshold"
        }
    report |= {"threshold": rule.threshold, "coverage": rule.coverage, "errors": rule.errors, "above": rule.labels}
    with running.commit() as session:
        state = session.get(DriftState, model.slug)
        if why := _paused(session, model.slug, registry.alias(session, model.slug, "champion"), state):
            return report | {"refused": why, "paused": True}
        found = _candidates(session, model, version, since, rule.threshold, predictor.manifest.unfamiliar_at)[:limit]
        for sample_id, answer in found:
            label = label_from(answer, model.task)  # type: ignore[arg-type]
            row = LabelRow(
                model=model.slug, sample_id=sample_id, value=msgspec.to_builtins(label), source="auto", split="train"
            )
            upsert(session, row, keys=["model", "sample_id"], update=[])
    return report | {"labelled": len(found)}


def label_from(answer: dict[str, Any], task: Task) -> Label:
    """A logged answer as a label."""
    if task == "detect":
        return Label(boxes=[Box(b["label"], b["x1"], b["y1"], b["x2"], b["y2"]) for b in answer["boxes"]])
    said = answer["classes"][:1] if task == "classify" else answer["classes"]
    return Label(classes=[c["label"] for c in said])


def thinned(sample_id: str, probability: float, sure: float) -> bool:
    """Whether a drawn image stays in the plain sample: with the probability of a sure one over its own."""
    return uniform("auto-label", sample_id) * probability < sure


def _paused(session: Session, slug: str, version: int | None, state: DriftState | None) -> str:
    if registry.get_model(session, slug).auto_labels_held:
        return "people have paused it"
    if version is None:
        return "no version is at work"
    if state is None or state.version != version or (not state.alarm and state.reference is None):
        return "what is usual for this version is still being learned"
    return f"a drift alarm is on: {state.alarm_text}" if state.alarm else ""


def _drawn(session: Session, model: Model, version: int, since: float) -> list[tuple[str, Label]]:
    """The newest drawn samples with a person's label that the version was not trained on, thinned to a plain sample."""
    row = session.get(ModelVersion, (model.slug, version))
    trained = select(DatasetItem.sample_id).where(
        DatasetItem.dataset_version_id == (row.dataset_version_id if row else None), DatasetItem.split != "test"
    )
    known = set(session.exec(trained))
    query = (
        select(LabelTask, LabelRow, PredictionRow)
        .where(LabelTask.model == model.slug, LabelTask.arm == "drawn", LabelTask.state == "annotated")
        .join(
            LabelRow,
            sa.and_(col(LabelRow.model) == model.slug, col(LabelRow.sample_id) == col(LabelTask.sample_id)),
        )
        .join(PredictionRow, col(PredictionRow.id) == col(LabelTask.prediction_id))
        .where(LabelRow.source != "auto", col(PredictionRow.at) >= since)
        .order_by(col(PredictionRow.id).desc())
        .limit(CALIBRATION)
    )
    found = []
    for task, label, prediction in session.exec(query).all():
        probability = task.inclusion_probability or prediction.inclusion_probability
        if task.sample_id not in known and thinned(task.sample_id, probability, _sure(session, prediction)):
            found.append((task.sample_id, msgspec.convert(label.value, Label)))
    return found


def _sure(session: Session, prediction: PredictionRow) -> float:
    """The smallest inclusion probability among the answers around this one: that of the surest at the time."""
    p = PredictionRow
    mine = (col(p.model) == prediction.model, col(p.version) == prediction.version)
    around = [
        sa.select(col(p.inclusion_probability)).where(*mine, col(p.id) <= prediction.id).order_by(col(p.id).desc()),
        sa.select(col(p.inclusion_probability)).where(*mine, col(p.id) > prediction.id).order_by(col(p.id)),
    ]
    return float(min(v for query in around for (v,) in session.execute(query.limit(NEIGHBOURS))))


def _judge(running: Running, predictor: Predictor, drawn: list[tuple[str, Label]]) -> tuple[Float, Float]:
    """(scores, outcomes) of the champion on them; an image that is gone or broken is left out."""
    chances, strange, outcomes = [], [], []
    task = predictor.manifest.task
    for sample_id, label in drawn:
        running.check_cancelled()
        try:
            found = predictor.predict_bytes(running.context.store.get(f"samples/{sample_id}"))
        except (ImageError, NotFoundError):
            continue
        answer = {"classes": msgspec.to_builtins(found.classes), "boxes": msgspec.to_builtins(found.boxes)}
        chances.append(belief(task, found.confidence, found.margin))
        strange.append(np.nan if found.ood_score is None else found.ood_score)
        outcomes.append(float(answer_is_right(answer, label, task)))
    return score_of(np.array(chances, np.float64), np.array(strange, np.float64)), np.array(outcomes, np.float64)


def _candidates(
    session: Session, model: Model, version: int, since: float, threshold: float, unfamiliar_at: float | None
) -> list[tuple[str, dict[str, Any]]]:
    """Contents whose image is kept, that nobody picked or labelled, that are familiar and sure enough; the newest first."""
    p = PredictionRow
    theirs = (col(p.model) == model.slug, col(p.version) == version, col(p.at) >= since)
    query = (
        sa.select(col(p.sample_id), col(p.answer), col(p.arms), col(p.confidence), col(p.margin), col(p.ood_score))
        .where(*theirs)
        .join(Sample, col(Sample.id) == col(p.sample_id))
        .outerjoin(LabelRow, sa.and_(col(LabelRow.model) == model.slug, col(LabelRow.sample_id) == col(p.sample_id)))
        .outerjoin(LabelTask, sa.and_(col(LabelTask.model) == model.slug, col(LabelTask.sample_id) == col(p.sample_id)))
        .where(col(LabelRow.sample_id).is_(None), col(LabelTask.id).is_(None))
        .order_by(col(p.id).desc())
        .limit(CANDIDATES)
    )
    found: dict[str, dict[str, Any]] = {}
    limit = math.inf if unfamiliar_at is None else unfamiliar_at
    for row in session.execute(query):
        if row.arms or row.sample_id in found or (row.ood_score is not None and row.ood_score >= limit):
            continue
        chance = np.array([belief(model.task, row.confidence, row.margin)])  # type: ignore[arg-type]
        strange = np.array([np.nan if row.ood_score is None else row.ood_score])
        if float(score_of(chance, strange)[0]) >= threshold:
            found[row.sample_id] = row.answer
    return list(found.items())


def _keep(session: Session, model: str, report: dict[str, Any], *, asked: bool) -> None:
    """The snapshot people read; an event when somebody asked or labels were made."""
    session.add(Snapshot(model=model, kind="auto-labels", data=report))
    if report["labelled"]:
        text = f"{model}: {report['labelled']} auto-labels, error below {report['target']:.1%}"
        tell(session, "auto-labels.made", text, model=model, labelled=report["labelled"], version=report["version"])
    elif asked and "refused" in report:
        tell(session, "auto-labels.refused", f"{model}: no auto-labels, {report['refused']}", model=model)
