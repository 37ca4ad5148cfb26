"""Callers who know better: feedback that contradicts an answer makes its image a candidate of the arm `disagree`.

    feedback rows newer than the last look -> compared with the logged answer -> label task,
        where the image was kept and is not labelled yet

A caller's word is no label (nobody checks it); it is a reason to ask. Only kept images can be asked about, so most feedback
finds none: which images are kept is the sampler's and the retention policy's business.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlmodel import Session, col, select

from sutdol.db import upsert
from sutdol.tables import Feedback, LabelRow, LabelTask, PredictionRow, Sample, now
from sutdol.types import Label

LOOK_BACK_S = 86_400.0
AT_ONCE = 200


def contradicted(session: Session, model: str) -> int:
    """Make candidates of what recent feedback contradicts; how many there are now that were not before."""
    statement = (
        select(Feedback, PredictionRow)
        .join(PredictionRow, col(PredictionRow.id) == col(Feedback.prediction_id))
        .join(Sample, col(Sample.id) == col(PredictionRow.sample_id))
        .join(
            LabelTask,
            (col(LabelTask.sample_id) == col(PredictionRow.sample_id)) & (col(LabelTask.model) == model),
            isouter=True,
        )
        .join(
            LabelRow,
            (col(LabelRow.sample_id) == col(PredictionRow.sample_id)) & (col(LabelRow.model) == model),
            isouter=True,
        )
        .where(
            PredictionRow.model == model,
            Feedback.at > now() - LOOK_BACK_S,
            col(LabelTask.id).is_(None),
            col(LabelRow.sample_id).is_(None),
        )
        .order_by(col(Feedback.at).desc())
        .limit(AT_ONCE)
    )
    made = 0
    for feedback, row in session.exec(statement).all():
        truth = msgspec.convert(feedback.value, Label)
        if not contradicts(truth, row.answer):
            continue
        task = LabelTask(
            model=model,
            sample_id=row.sample_id,
            prediction_id=row.id,
            version=row.version,
            arm="disagree",
            reason=f"the caller says otherwise: {said(truth)}",
            priority=1.0 - row.margin / 2,
            uncertainty=1.0 - row.margin,
            ood_score=row.ood_score,
            answer=row.answer,
        )
        upsert(session, task, keys=["model", "sample_id"], update=[])
        made += 1
    return made


def contradicts(truth: Label, answer: dict[str, Any]) -> bool:
    """Whether the logged answer says something else: another best class, or other numbers of boxes.

    >>> contradicts(Label(["cat"]), {"classes": [{"label": "dog"}, {"label": "cat"}], "boxes": []})
    True
    """
    boxes = sorted(box["label"] for box in answer.get("boxes", []))
    if truth.boxes or boxes:
        return sorted(box.label for box in truth.boxes) != boxes
    classes = [found["label"] for found in answer.get("classes", [])]
    if len(truth.classes) == 1:
        return truth.classes != classes[:1]
    return sorted(truth.classes) != sorted(classes)


def said(truth: Label) -> str:
    """A label in a few words."""
    names = truth.classes or sorted({box.label for box in truth.boxes})
    return ", ".join(names[:5]) or "nothing is there"
