"""Job `bridge.reask`: what nobody can be believed about is asked once more.

    rows in `conflict` -> one person more than have answered (`overlap`), and to the top of both entrances
    annotations that say nothing (`empty`: no choice, or made by a menu action) -> deleted there, the task is open again

Nothing of what a person said is deleted: an empty annotation stays with us as a revision, an answer outside the classes stays
in Label Studio as well, where its author may mend it. Safe to run twice; sent in the transaction that found the trouble.

Errors: StudioError (tried again).
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from labeling_bridge.project import TOP_SCORE
from labeling_bridge.read import newest_of
from labeling_bridge.studio import Studio
from sutdol import jobs
from sutdol.jobs import Running
from sutdol.tables import Annotation, LabelTask, StudioProject


def reask(running: Running) -> dict[str, Any]:
    """Payload {"model"}. Returns how many people more were asked, and how many empty annotations were taken away."""
    slug = running.payload["model"]
    with running.context.database.read() as session:
        project = session.get(StudioProject, slug)
        empty = _empty(session, slug, project.project_id) if project else []
        contested = {row.studio_task_id: row for row in _contested(session, slug) if row.studio_task_id is not None}
        answers = {row.id: _answers(session, row) for row in contested.values()}
    if project is None or not (empty or contested):
        return {"asked": 0, "emptied": 0}
    asked = 0
    with Studio.open(running.context) as studio:
        for annotation in empty:
            running.check_cancelled()
            studio.delete_annotation(annotation.annotation_id)
        for task in studio.whole(project.project_id, contested):
            row = contested[task.id]
            people = answers[row.id] + 1
            if row.overlap >= people:
                continue
            running.check_cancelled()
            if studio.ask_more(task, people, TOP_SCORE):
                with running.commit() as session:
                    session.get_one(LabelTask, row.id).overlap = people
                asked += 1
    touched = sorted({a.studio_task_id for a in empty})
    if touched:
        with running.commit() as session:
            jobs.send(session, "bridge.read", {"model": slug, "studio_task_ids": touched})
    return {"asked": asked, "emptied": len(empty)}


def _contested(session: Session, slug: str) -> list[LabelTask]:
    return list(session.exec(select(LabelTask).where(LabelTask.model == slug, LabelTask.state == "conflict")))


def _answers(session: Session, row: LabelTask) -> int:
    """Answers that Label Studio counts, in the project where the task is."""
    mine = newest_of(session, row.id).values()
    return sum(r.project_id == row.project_id and r.state in ("valid", "invalid") for r in mine)


def _empty(session: Session, slug: str, project_id: int) -> list[Annotation]:
    """Annotations whose newest revision says nothing."""
    statement = (
        select(Annotation.label_task_id)
        .join(LabelTask, col(LabelTask.id) == col(Annotation.label_task_id))
        .where(LabelTask.model == slug, Annotation.project_id == project_id, Annotation.state == "empty")
    )
    found = []
    for label_task_id in sorted(set(session.exec(statement))):
        newest = newest_of(session, label_task_id).values()
        found += [r for r in newest if r.state == "empty" and r.project_id == project_id]
    return found
