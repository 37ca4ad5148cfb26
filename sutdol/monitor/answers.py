"""The prediction log as the estimator wants it: one entry per content and version, who was labelled, who may count.

    predictions of a window, grouped by (version, content) + drawn label tasks + labels + what each version was trained on
       -> Counted: Answers, places of the labelled and of the missing, outcomes, what was left out and why

A prediction counts only if its version was not trained on that content or on a near-duplicate of it. Repeats of one content
are one entry with a multiplicity. A content that came several times was drawn if its number fell below the largest of its
probabilities. Drawn tasks that nobody has answered yet make every probability smaller by the share answered (they are
answered newest first, whatever the model thinks of them); those that nobody could label are told apart as missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from sutdol.agreement import answer_is_right
from sutdol.monitor.estimate import Answers, Float
from sutdol.tables import DatasetItem, LabelRow, LabelTask, Model, ModelVersion, PredictionRow, VersionProfile
from sutdol.types import Label, Task

MAX_ENTRIES = 50_000
"""The newest (version, content) pairs of a window that are looked at."""
NOTHING = "(nothing)"
"""What a detector said that found nothing."""
BLANK_FINGERPRINT = "0" * 16
"""Of an image without structure; it tells no two of them apart."""
MISSING = ("skipped", "unlabelable", "conflict")
_CHUNK = 500


@dataclass(frozen=True)
class Counted:
    """What the estimator gets, and what people are told about it.

    Attributes:
        version, said: of each answer (n,); `said` is the class it named first.
        labelled, missing: places in `answers`; right: outcomes of the labelled, 0 or 1.
        trained_on, near_duplicates: entries that were left out.
        waiting: drawn tasks without an answer.
    """

    answers: Answers
    version: NDArray[np.int64]
    said: list[str]
    labelled: NDArray[np.int64]
    right: Float
    missing: NDArray[np.int64]
    trained_on: int
    near_duplicates: int
    waiting: int


def belief(task: Task, confidence: float, margin: float) -> float:
    """The model's own chance that its whole answer is right: of a detector, that of its least certain box."""
    return 0.5 + margin / 2 if task == "detect" else confidence


def first_class(task: Task) -> Any:
    """SQL: the class that an answer names first, or null."""
    key = "boxes" if task == "detect" else "classes"
    return col(PredictionRow.answer)[(key, 0, "label")].as_string()


def count(session: Session, model: Model, *, since: float, until: float) -> Counted:
    """The answers of `model` between two moments (epoch seconds)."""
    task: Task = model.task  # type: ignore[assignment]
    rows = _entries(session, model, since, until)
    trained = {v: _trained_on(session, model.slug, v) for v in {row.version for row in rows}}
    profiles = {v: session.get(VersionProfile, (model.slug, v)) for v in trained}
    kept, known, near = [], 0, 0
    for row in rows:
        if row.sample_id in trained[row.version]:
            known += 1
        elif _resembles(row, profiles[row.version]):
            near += 1
        else:
            kept.append(row)
    highest: dict[str, float] = {}
    for row in rows:
        highest[row.sample_id] = max(highest.get(row.sample_id, 0.0), row.probability)
    tasks = {t.sample_id: t for t in _drawn(session, model.slug, [row.sample_id for row in kept])}
    labels = _labels(session, model.slug, list(tasks))
    answered = {s for s, t in tasks.items() if t.state == "annotated" and s in labels}
    lost = {s for s, t in tasks.items() if t.state in MISSING}
    waiting = len(tasks) - len(answered) - len(lost)
    share = len(answered) / (len(answered) + waiting) if answered else 1.0
    labelled = [i for i, row in enumerate(kept) if row.sample_id in answered]
    texts = _answers(session, [kept[i].id for i in labelled])
    second = _second_draws(session, list(tasks.values()))
    outcomes = [answer_is_right(texts[kept[i].id], labels[kept[i].sample_id], task) for i in labelled]
    answers = Answers(
        belief=np.array([belief(task, row.confidence, row.margin) for row in kept], np.float64),
        ood=np.array([np.nan if row.ood_score is None else row.ood_score for row in kept], np.float64),
        probability=np.clip(
            np.array([highest[r.sample_id] * second.get(r.sample_id, 1.0) for r in kept]) * share, 1e-6, 1
        ),
        weight=np.array([row.times for row in kept], np.float64),
    )
    return Counted(
        answers,
        np.array([row.version for row in kept], np.int64),
        [row.said or NOTHING for row in kept],
        np.array(labelled, np.int64),
        np.array(outcomes, np.float64),
        np.array([i for i, row in enumerate(kept) if row.sample_id in lost], np.int64),
        known,
        near,
        waiting,
    )


def _entries(session: Session, model: Model, since: float, until: float) -> list[Any]:
    """One row per (version, content): its newest prediction, how often it came, its largest inclusion probability."""
    p = PredictionRow
    grouped = (
        sa.select(
            sa.func.max(col(p.id)).label("id"),
            sa.func.count().label("times"),
            sa.func.max(col(p.inclusion_probability)).label("probability"),
        )
        .where(col(p.model) == model.slug, col(p.at) > since, col(p.at) <= until)
        .group_by(col(p.version), col(p.sample_id))
        .order_by(sa.func.max(col(p.id)).desc())
        .limit(MAX_ENTRIES)
        .subquery()
    )
    said = first_class(model.task).label("said")  # type: ignore[arg-type]
    columns = [col(c) for c in (p.id, p.version, p.sample_id, p.confidence, p.margin, p.ood_score)]
    looks = [col(c) for c in (p.fingerprint, p.brightness, p.sharpness)]
    query = sa.select(*columns, *looks, said, grouped.c.times, grouped.c.probability)
    return list(session.execute(query.join(grouped, grouped.c.id == col(p.id)).order_by(col(p.id))).all())


def _trained_on(session: Session, model: str, version: int) -> set[str]:
    row = session.get(ModelVersion, (model, version))
    if row is None or row.dataset_version_id is None:
        return set()
    query = select(DatasetItem.sample_id).where(
        DatasetItem.dataset_version_id == row.dataset_version_id, DatasetItem.split != "test"
    )
    return set(session.exec(query))


def _resembles(row: Any, profile: VersionProfile | None) -> bool:
    """Whether the version was trained on the same picture in another file: equal fingerprint, nearly equal looks."""
    if profile is None or row.fingerprint in (None, BLANK_FINGERPRINT):
        return False
    return any(
        abs(row.brightness - brightness) <= 0.01 and abs(row.sharpness - sharpness) <= 0.1 * max(sharpness, 1e-3)
        for brightness, sharpness in _by_fingerprint(profile).get(row.fingerprint, ())
    )


def _by_fingerprint(profile: VersionProfile) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] | None = profile.__dict__.get("_by_fingerprint")
    if found is None:
        found = {}
        for fingerprint, brightness, sharpness in profile.trained_on:
            found.setdefault(fingerprint, []).append((brightness, sharpness))
        profile.__dict__["_by_fingerprint"] = found
    return found


def _drawn(session: Session, model: str, sample_ids: Sequence[str]) -> list[LabelTask]:
    wanted = set(sample_ids)
    query = select(LabelTask).where(LabelTask.model == model, LabelTask.arm == "drawn")
    return [task for task in session.exec(query) if task.sample_id in wanted]


def _labels(session: Session, model: str, sample_ids: list[str]) -> dict[str, Label]:
    found: dict[str, Label] = {}
    for start in range(0, len(sample_ids), _CHUNK):
        query = select(LabelRow).where(
            LabelRow.model == model,
            LabelRow.source != "auto",
            col(LabelRow.sample_id).in_(sample_ids[start : start + _CHUNK]),
        )
        found |= {row.sample_id: msgspec.convert(row.value, Label) for row in session.exec(query)}
    return found


def _answers(session: Session, ids: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(ids), _CHUNK):
        query = sa.select(col(PredictionRow.id), col(PredictionRow.answer))
        for row in session.execute(query.where(col(PredictionRow.id).in_(ids[start : start + _CHUNK]))):
            found[row.id] = row.answer
    return found


def _second_draws(session: Session, tasks: Sequence[LabelTask]) -> dict[str, float]:
    """Probability of a second logged draw by content: what the task says, over what was logged when it was first drawn."""
    first: dict[str, float] = {}
    ids = [task.prediction_id for task in tasks]
    for start in range(0, len(ids), _CHUNK):
        query = sa.select(col(PredictionRow.id), col(PredictionRow.inclusion_probability))
        first |= {
            r[0]: r[1] for r in session.execute(query.where(col(PredictionRow.id).in_(ids[start : start + _CHUNK])))
        }
    return {
        task.sample_id: min(1.0, task.inclusion_probability / first[task.prediction_id])
        for task in tasks
        if task.inclusion_probability and first.get(task.prediction_id)
    }
