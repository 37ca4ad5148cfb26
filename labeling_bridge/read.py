"""Job `bridge.read`: what people answered -> revisions, states, labels.

    hint {"model", "studio_task_ids"} ------------------------------------+-> whole tasks -> absorb
    poll {} -> ids of tasks changed since the cursor -> not read as such -+      -> annotation (append-only) -> resolve -> label

`absorb` is idempotent and does not care about order: revisions are keyed by Label Studio's own `updated_at`, and an older
view of a task cannot delete what a newer one brought. The poll goes back OVERLAP_S behind the cursor, because a change is
stamped before it is committed; it is complete but for deleted tasks, which the sweep finds. Of the tasks in the overlap it
reads whole only those whose `updated_at` is not the one read before; and each once more SETTLE_S after that, because Label
Studio stores an annotation, the counts and the stamp in separate transactions and the first reading may have come between.

Known gap: an answer outside the schema or an empty choice is kept as an `invalid` revision and its task stays `in_studio`,
although Label Studio asks nobody again: each takes one of the `max_open_tasks` places for ever. A task in `conflict` takes
none, but is not asked again either. Both wait until somebody mends the annotation in Label Studio; deleting the task would
ask again, but lose what the person did. Its size: one place per empty submit (on classification) or foreign region.

Errors: StudioError when Label Studio is not there; nothing is half-written, the cursor moves only after a whole pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import func
from sqlmodel import Session, col, select

from labeling_bridge.convert import label_of
from labeling_bridge.labels import Answer, Resolution, resolve, split_for
from labeling_bridge.studio import Studio, StudioTask
from sutdol import jobs, registry
from sutdol.db import upsert
from sutdol.errors import InputError, StudioError
from sutdol.jobs import Running
from sutdol.tables import Annotation, LabelRow, LabelTask, Model, Sample, StudioProject, now
from sutdol.types import Label

OVERLAP_S = 300.0
SETTLE_S = 10.0
_AT_ONCE = 50
"""Tasks absorbed in one transaction."""


def read(running: Running) -> dict[str, Any]:
    """Payload {} polls all projects; {"model": slug} one; with "studio_task_ids" only those tasks.

    Returns how many labels changed, by model.
    """
    payload = running.payload
    with running.context.database.read() as session:
        statement = select(StudioProject)
        if "model" in payload:
            statement = statement.where(StudioProject.model == payload["model"])
        projects = session.exec(statement).all()
    changed: dict[str, int] = {}
    if projects:
        with Studio.open(running.context) as studio:
            for project in projects:
                if "studio_task_ids" in payload:
                    found = studio.whole(project.project_id, payload["studio_task_ids"])
                    changed[project.model] = absorb_all(running, project, found)
                else:
                    changed[project.model] = _poll(running, studio, project)
    return {"labels": changed}


def before(updated_at: str, seconds: float) -> str:
    """Label Studio's text for a moment `seconds` earlier; empty stays empty.

    >>> before("2026-01-01T00:05:00.250000Z", 300)
    '2026-01-01T00:00:00.250000Z'
    """
    if not updated_at:
        return ""
    moment = datetime.fromisoformat(updated_at) - timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def absorb_all(running: Running, project: StudioProject, tasks: Iterable[StudioTask]) -> int:
    """Absorb tasks in short transactions, each with its trigger for retraining; how many labels changed."""
    changed, stream = 0, iter(tasks)
    while batch := list(islice(stream, _AT_ONCE)):
        running.check_cancelled()
        with running.commit() as session:
            # One reader at a time per project, where rows can be locked: the rotation of splits counts rows.
            session.exec(select(StudioProject).where(StudioProject.model == project.model).with_for_update()).one()
            model = registry.get_model(session, project.model)
            new = sum(absorb(session, model, project.project_id, task) for task in batch)
            if new:
                payload = {"model": model.slug}
                jobs.send(session, "retrain.trigger", payload, unique_key=f"retrain.trigger:{model.slug}")
        changed += new
    return changed


def absorb(session: Session, model: Model, project_id: int, task: StudioTask) -> bool:
    """Take in one task as Label Studio has it; whether the label of its sample changed. Tasks of others are left alone."""
    row = session.exec(
        select(LabelTask).where(LabelTask.model == model.slug, LabelTask.sample_id == task.sample_id)
    ).first()
    if row is None or (sample := session.get(Sample, row.sample_id)) is None:
        return False
    if row.studio_task_id == task.id:
        _note_reading(row, task)
        session.add(row)
    revisions = _newest(session, row.id)
    for found in task.annotations:
        revision = _revision(found, row.id, project_id, task.id, model, sample)
        key = (project_id, revision.annotation_id)
        if key not in revisions or revisions[key].updated_at < revision.updated_at:
            upsert(session, revision, keys=["project_id", "annotation_id", "updated_at"], update=[])
            revisions[key] = revision
    present = {int(found["id"]) for found in task.annotations}
    for key, known in revisions.items():
        mine = key[0] == project_id and known.studio_task_id == task.id
        # A view of the task that is older than the annotation cannot know it.
        if mine and known.state != "deleted" and key[1] not in present and known.updated_at < task.updated_at:
            gone = Annotation(
                project_id=project_id,
                annotation_id=key[1],
                updated_at=f"deleted:{now():.3f}",
                label_task_id=row.id,
                studio_task_id=task.id,
                value=None,
                state="deleted",
                annotator=known.annotator,
                origins=[],
            )
            session.add(gone)
            revisions[key] = gone
    session.flush()
    if not revisions:
        return False
    if row.studio_task_id is None:
        row.project_id, row.studio_task_id = project_id, task.id
    return _settle(session, row, resolve([_answer(r) for r in revisions.values()]))


def _stamp(task_id: int, updated_at: str) -> str:
    return f"{task_id} {updated_at}"


def _note_reading(row: LabelTask, task: StudioTask) -> None:
    """Remember what was read, and whether it has been the same for SETTLE_S (by our clock alone)."""
    stamp = _stamp(task.id, task.updated_at)
    if row.studio_seen != stamp:
        row.studio_seen, row.studio_seen_at = stamp, now()
    elif row.studio_seen_at is not None and now() - row.studio_seen_at >= SETTLE_S:
        row.studio_seen_at = None


def _settle(session: Session, row: LabelTask, resolution: Resolution) -> bool:
    """Make the task's state and the sample's label say what was resolved; whether the label changed."""
    label = session.get(LabelRow, (row.model, row.sample_id))
    if resolution.label is None:
        if row.state != "withdrawn" and (row.state, resolution.state) != ("queued", "in_studio"):
            row.state, row.answered_at = resolution.state, None
        session.add(row)
        if label is None or label.source != "annotation":
            return False
        session.delete(label)
        return True
    row.state, row.answered_at = "annotated", row.answered_at or now()
    row.split = row.split or (label.split if label else None) or _next_split(session, row)
    session.add(row)
    value = msgspec.to_builtins(resolution.label)
    if label is None:
        drawn = row.arm == "drawn" and row.inclusion_probability
        label = LabelRow(
            model=row.model,
            sample_id=row.sample_id,
            value=value,
            source="annotation",
            arm=row.arm,
            weight=1 / row.inclusion_probability if drawn and row.inclusion_probability else 1.0,
            split=row.split,
        )
    elif label.value == value and label.source != "auto":
        return False
    else:  # an imported label that a person corrected stays imported: its place in the splits was the import's
        label.source = "annotation" if label.source == "auto" else label.source
        label.value, label.updated_at = value, now()
    session.add(label)
    session.flush()
    return True


def _next_split(session: Session, row: LabelTask) -> str:
    given = select(func.count()).where(
        LabelTask.model == row.model, LabelTask.arm == "drawn", col(LabelTask.split).is_not(None)
    )
    return split_for(row.arm, session.exec(given).one())


def _newest(session: Session, label_task_id: str) -> dict[tuple[int, int], Annotation]:
    """The newest known revision of every annotation of a task (`deleted:` sorts after every date)."""
    rows = session.exec(
        select(Annotation).where(Annotation.label_task_id == label_task_id).order_by(col(Annotation.updated_at))
    )
    return {(r.project_id, r.annotation_id): r for r in rows}


def _revision(
    found: dict[str, Any], label_task_id: str, project_id: int, task_id: int, model: Model, sample: Sample
) -> Annotation:
    """One annotation as Label Studio shows it, judged."""
    value: dict[str, Any] | None = None
    problem = None
    results = found.get("result") or []
    if found.get("was_cancelled"):
        state = "skipped"  # its result is the pre-annotation's, not an answer
    elif (
        found.get("parent_prediction") is not None
        and found.get("updated_by") is None
        and found.get("lead_time") is None
    ):
        state, problem = "invalid", "made from a pre-annotation by a menu action, nobody looked at it"
    else:
        try:
            label = label_of(
                results,
                model.task,  # type: ignore[arg-type]
                model.classes,
                width_px=sample.width_px,
                height_px=sample.height_px,
            )
            state, value = "valid", msgspec.to_builtins(label)
        except InputError as error:
            state, problem = "invalid", error.message
    by = found.get("completed_by")
    return Annotation(
        project_id=project_id,
        annotation_id=int(found["id"]),
        updated_at=str(found["updated_at"]),
        label_task_id=label_task_id,
        studio_task_id=task_id,
        value=value,
        state=state,
        problem=problem,
        annotator=by.get("id") if isinstance(by, dict) else by,
        ground_truth=bool(found.get("ground_truth")),
        origins=[str(r.get("origin", "manual")) for r in results if isinstance(r, dict)],
        lead_time_s=found.get("lead_time"),
    )


def _answer(row: Annotation) -> Answer:
    label = msgspec.convert(row.value, Label) if row.value is not None else None
    return Answer(row.annotation_id, row.updated_at, row.annotator, row.state, row.ground_truth, label)


def _poll(running: Running, studio: Studio, project: StudioProject) -> int:
    try:
        stamps = studio.changed_since(project.project_id, before(project.cursor, OVERLAP_S))
        unread = set(stamps) - _settled(running, project.model, stamps)
        changed = absorb_all(running, project, studio.whole(project.project_id, unread))
    except StudioError:
        if studio.project(project.project_id) is not None:
            raise
        with running.commit() as session:
            payload = {"model": project.model}
            jobs.send(session, "bridge.sweep", payload, unique_key=f"bridge.sweep:{project.model}")
        return 0
    newest = max(stamps.values(), default="")
    if newest > project.cursor:
        with running.commit() as session:
            row = session.get(StudioProject, project.model)
            if row is not None and row.project_id == project.project_id:
                row.cursor = max(row.cursor, newest)
                session.add(row)
    return changed


def _settled(running: Running, model: str, stamps: dict[int, str]) -> set[int]:
    """Those of these tasks that were read as they are, twice, or only just now for the first time."""
    keys = [_stamp(task_id, updated_at) for task_id, updated_at in stamps.items()]
    found: set[int] = set()
    with running.context.database.read() as session:
        for start in range(0, len(keys), 500):
            statement = select(LabelTask.studio_seen).where(
                LabelTask.model == model,
                sa.or_(col(LabelTask.studio_seen_at).is_(None), col(LabelTask.studio_seen_at) > now() - SETTLE_S),
                col(LabelTask.studio_seen).in_(keys[start : start + 500]),
            )
            found |= {int(stamp.split(" ", 1)[0]) for stamp in session.exec(statement)}
    return found
