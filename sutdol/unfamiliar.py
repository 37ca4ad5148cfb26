"""What the model does not know, group by group: seen together, named together, or sent to people together.

    waiting tasks of the arm `unfamiliar` with the features of one version -> grouping.groups -> Group
    name: the class joins the model's list; images of one class are labelled with it, objects go to Label Studio to be drawn
    ask:  candidates -> queued -> job `bridge.push`, before everything else

A name given to a group is an answer like any other: a revision without a project of Label Studio, and a label that only ever
trains. A sample that was drawn by chance is never in a group: what stands for the traffic is looked at one by one.

Errors: NotFoundError for an unknown model; InputError for a class name that is none, or no tasks that still wait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import func
from sqlmodel import Session, col, select

from sutdol import jobs, registry
from sutdol.errors import InputError
from sutdol.events import tell
from sutdol.familiarity import unpack
from sutdol.grouping import groups
from sutdol.tables import Annotation, LabelRow, LabelTask, now
from sutdol.types import Label

ARM = "unfamiliar"
WAITING = ("candidate", "queued", "merged")
"""States in which nobody has been asked yet."""
MOST = 400
"""Tasks that are grouped, the newest; the work grows with their square."""
CONSOLE = 0
"""`project_id` of answers that were given without Label Studio."""
MAX_NAME = 100


@dataclass(frozen=True)
class Group:
    """Tasks that look alike, the most typical first.

    Attributes:
        grouped: False for those that cannot be compared: without features, or of an older version.
        said: what the model called them, most frequent first.
        waiting: how many of them nobody was asked about.
    """

    tasks: list[LabelTask]
    grouped: bool
    said: list[tuple[str, int]]
    waiting: int


def groups_of(session: Session, model: str) -> list[Group]:
    """The unanswered unfamiliar samples of a model in groups, the largest first; what cannot be compared comes last."""
    registry.get_model(session, model)
    rows = session.exec(
        select(LabelTask)
        .where(LabelTask.model == model, LabelTask.arm == ARM, col(LabelTask.state).in_((*WAITING, "in_studio")))
        .order_by(col(LabelTask.created_at).desc())
        .limit(MOST)
    ).all()
    newest = max((row.version for row in rows if row.features is not None), default=0)
    features = {row.id: unpack(row.features) for row in rows if row.version == newest}
    alike = [row for row in rows if features.get(row.id) is not None]
    found: list[Group] = []
    if alike:
        x = np.stack([features[row.id] for row in alike]).astype(np.float64)  # type: ignore[misc]
        number = groups(x)
        for name in range(int(number.max()) + 1):
            mine = np.flatnonzero(number == name)
            far = ((x[mine] - x[mine].mean(axis=0)) ** 2).sum(axis=1)
            found.append(_group([alike[i] for i in mine[np.argsort(far, kind="stable")]], grouped=True))
    others = [row for row in rows if features.get(row.id) is None]
    return [*found, *([_group(others, grouped=False)] if others else [])]


def name(session: Session, model: str, class_name: str, task_ids: list[str], *, who: str) -> dict[str, int]:
    """Call a group by a class, new or known.

    Returns:
        labelled: images that are labelled with it now; asked: tasks on their way to Label Studio, for detectors.
    """
    text = class_name.strip()
    if not text or len(text) > MAX_NAME or not text.isprintable():
        raise InputError(f"class name {class_name[:20]!r}: expected printable text of 1 to {MAX_NAME} characters")
    task = registry.get_model(session, model).task
    rows = _waiting(session, model, task_ids)
    registry.add_classes(session, model, [text])
    if task == "detect":
        _queue(session, model, rows, f"unfamiliar: may show {text!r}, called so by {who}")
        told = {"labelled": 0, "asked": len(rows)}
    else:
        _label(session, rows, Label(classes=[text]))
        jobs.send(session, "retrain.trigger", {"model": model}, unique_key=f"retrain.trigger:{model}")
        told = {"labelled": len(rows), "asked": 0}
    words = f"{model}: {len(rows)} unfamiliar samples were called {text!r}"
    tell(session, "unfamiliar.named", words, model=model, who=who, **told)
    return told


def ask(session: Session, model: str, task_ids: list[str], *, who: str) -> int:
    """Send a group to Label Studio before everything else; how many tasks are on their way."""
    registry.get_model(session, model)
    rows = _waiting(session, model, task_ids)
    _queue(session, model, rows, None)
    text = f"{model}: {len(rows)} unfamiliar samples were sent to Label Studio"
    tell(session, "unfamiliar.asked", text, model=model, who=who)
    return len(rows)


def _group(rows: list[LabelTask], *, grouped: bool) -> Group:
    said = Counter(_said(row.answer) for row in rows)
    return Group(rows, grouped, said.most_common(3), sum(row.state in WAITING for row in rows))


def _said(answer: dict[str, Any]) -> str:
    found = answer["boxes"] or answer["classes"]
    return str(found[0]["label"]) if found else ""


def _waiting(session: Session, model: str, task_ids: list[str]) -> list[LabelTask]:
    wanted = (LabelTask.model == model, LabelTask.arm == ARM, col(LabelTask.state).in_(WAITING))
    rows = session.exec(select(LabelTask).where(*wanted, col(LabelTask.id).in_(task_ids[:MOST]))).all()
    if not rows:
        raise InputError("none of these tasks waits any more", hint="load the page again")
    return list(rows)


def _queue(session: Session, model: str, rows: list[LabelTask], reason: str | None) -> None:
    at = now()
    for row in rows:
        row.state, row.queued_at, row.merged_into, row.priority = "queued", row.queued_at or at, None, 1.0
        row.reason = reason or row.reason
        session.add(row)
    jobs.send(session, "bridge.push", {"model": model}, unique_key=f"bridge.push:{model}")


def _label(session: Session, rows: list[LabelTask], label: Label) -> None:
    value, at = msgspec.to_builtins(label), now()
    moment = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    last = session.exec(select(func.max(Annotation.annotation_id)).where(Annotation.project_id == CONSOLE)).one() or 0
    for number, row in enumerate(rows, last + 1):
        row.state, row.answered_at, row.merged_into, row.split = "annotated", at, None, row.split or "train"
        session.add(row)
        revision = Annotation(
            project_id=CONSOLE,
            annotation_id=number,
            updated_at=moment,
            label_task_id=row.id,
            studio_task_id=0,
            value=value,
            state="valid",
            origins=["group"],
        )
        session.add(revision)
        believed = session.get(LabelRow, (row.model, row.sample_id))
        if believed is None:
            believed = LabelRow(
                model=row.model,
                sample_id=row.sample_id,
                value=value,
                source="annotation",
                arm=row.arm,
                split=row.split or "train",
            )
        believed.value, believed.updated_at = value, at
        believed.source = "annotation" if believed.source == "auto" else believed.source  # an import keeps its place
        session.add(believed)
