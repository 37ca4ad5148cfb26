"""Jobs `bridge.read` and `bridge.hint`: what people answered -> revisions, states, labels.

    hint {"model", "studio_task_ids"} ------------------------------------+-> whole tasks -> absorb
    poll {} -> changed since the cursor -> answered, not read as such yet +      -> annotation (append-only) -> resolve -> label

`absorb` is idempotent and does not care about order: revisions are keyed by Label Studio's own `updated_at`, and an older
view of a task cannot delete what a newer one brought. The poll goes back OVERLAP_S behind the cursor, because a change is
stamped before it is committed; it is complete but for deleted tasks, which the sweep finds. Of the tasks in the overlap it
reads whole only those whose `updated_at` is not the one read before; and each once more SETTLE_S after that, because Label
Studio stores an annotation, the counts and the stamp in separate transactions and the first reading may have come between.
What nobody has answered, by its counts and by what we know, is not read whole: thousands were only just imported.

What nobody can be believed about is asked again by `bridge.reask`, sent in the same transaction: answers that contradict each
other, or hold something outside the classes (`conflict`: one more person), and annotations that say nothing (`empty`).

A hint names the task; what it says about the annotation is kept beside it and counts only when Label Studio can no longer be
asked, because the task or its project was deleted between our answer to the hint and our reading. That is why the job of a
hint has many attempts, unlike a poll, which the next one replaces. Whoever knows the hint's
secret is a user of Label Studio and could have submitted the same.

Errors: StudioError when Label Studio is not there; nothing is half-written, the cursor moves only after a whole pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
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
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.tables import Annotation, LabelRow, LabelTask, Model, Sample, StudioProject, now
from sutdol.types import Label

OVERLAP_S = 300.0
SETTLE_S = 10.0
QUALITY_DELAY_S = 10.0
_AT_ONCE = 50
"""Tasks absorbed in one transaction."""


def read(running: Running) -> dict[str, Any]:
    """Payload {} polls all projects; {"model": slug} one; with "studio_task_ids" only those tasks ("hinted": see `routes`).

    Returns how many labels changed, by model.
    """
    payload = running.payload
    with running.context.database.read() as session:
        statement = select(StudioProject)
        if "model" in payload:
            statement = statement.where(StudioProject.model == payload["model"])
        projects = list(session.exec(statement))
    if not projects and "hinted" in payload:  # deleted there, and not made again yet
        projects = [StudioProject(model=payload["model"], project_id=payload["project_id"], label_config="")]
    changed: dict[str, int] = {}
    if projects:
        with Studio.open(running.context) as studio:
            for project in projects:
                if "studio_task_ids" in payload:
                    changed[project.model] = _read_hinted(running, studio, project, payload)
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
            session.exec(select(StudioProject).where(StudioProject.model == project.model).with_for_update()).first()
            model = registry.get_model(session, project.model)
            rules = Rules(
                running.context.settings.unlabelable_after_skips, running.context.settings.annotators_per_task
            )
            news = [absorb(session, model, project.project_id, task, rules) for task in batch]
            _follow_up(session, model.slug, news)
        changed += sum(n.label_changed for n in news)
    return changed


@dataclass(frozen=True)
class Rules:
    """Settings that decide what answers amount to; see `labels.resolve`."""

    unlabelable_after: int = 2
    wanted: int = 1


@dataclass
class News:
    """What one task brought."""

    label_changed: bool = False
    ask_again: bool = False
    revised: bool = False
    problems: list[str] = field(default_factory=list)
    """Of revisions not seen before that cannot be believed."""


def absorb(session: Session, model: Model, project_id: int, task: StudioTask, rules: Rules) -> News:
    """Take in one task as Label Studio has it. Tasks of others are left alone."""
    news = News()
    row = session.exec(
        select(LabelTask).where(LabelTask.model == model.slug, LabelTask.sample_id == task.sample_id)
    ).first()
    if row is None or (sample := session.get(Sample, row.sample_id)) is None:
        return news
    if row.studio_task_id == task.id:
        _note_reading(row, task)
        session.add(row)
    revisions = newest_of(session, row.id)
    for found in task.annotations:
        revision = _revision(found, row.id, project_id, task.id, model, sample)
        key = (project_id, revision.annotation_id)
        if key not in revisions or revisions[key].updated_at < revision.updated_at:
            upsert(session, revision, keys=["project_id", "annotation_id", "updated_at"], update=[])
            revisions[key], news.revised = revision, True
            news.problems += [revision.problem] if revision.problem else []
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
        return news
    if row.studio_task_id is None:
        row.project_id, row.studio_task_id = project_id, task.id
    here = [r for r in revisions.values() if r.project_id == row.project_id] or list(revisions.values())
    answers = [_answer(r) for r in here]
    resolution = resolve(answers, wanted=rules.wanted, unlabelable_after=rules.unlabelable_after)
    news.label_changed = _settle(session, row, resolution)
    news.ask_again = row.state == "conflict" or any(r.state == "empty" for r in here)
    return news


def _follow_up(session: Session, slug: str, news: list[News]) -> None:
    """What is to be done about a batch, sent in the transaction that took it in."""
    if any(n.label_changed for n in news):
        jobs.send(session, "retrain.trigger", {"model": slug}, unique_key=f"retrain.trigger:{slug}")
    if any(n.revised for n in news):
        key = f"bridge.quality:{slug}"
        jobs.send(session, "bridge.quality", {"model": slug}, unique_key=key, delay_s=QUALITY_DELAY_S)
    if any(n.ask_again for n in news):
        jobs.send(session, "bridge.reask", {"model": slug}, unique_key=f"bridge.reask:{slug}")
    problems = [problem for n in news for problem in n.problems]
    if problems:
        text = f"{len(problems)} annotations of {slug} cannot be believed and are asked again; the first: {problems[0]}"
        tell(session, "bridge.unbelievable", text, model=slug, problems=problems[:20])


def _read_hinted(running: Running, studio: Studio, project: StudioProject, payload: dict[str, Any]) -> int:
    """Read the tasks of a hint; what is no longer in Label Studio is taken from the hint itself."""
    wanted = set(payload["studio_task_ids"])
    hinted = msgspec.convert(payload.get("hinted", []), list[StudioTask], strict=False)
    found: dict[int, StudioTask] = {}
    if payload.get("project_id", project.project_id) == project.project_id:
        try:
            found = {task.id: task for task in studio.whole(project.project_id, wanted)}
        except StudioError:
            if studio.project(project.project_id) is not None:
                raise
            _send_sweep(running, project.model)
    gone = [task for task in hinted if task.id not in found]
    # An annotation that was taken back before we came is known to have been there.
    taken_back = [
        task
        for task in hinted
        if task.id in found
        and {a["id"] for a in task.annotations}.isdisjoint(a["id"] for a in found[task.id].annotations)
        and all(a.get("updated_at", "~") < found[task.id].updated_at for a in task.annotations)
    ]
    changed = absorb_all(running, project, [*taken_back, *found.values()])
    if gone:
        was = StudioProject(
            model=project.model, project_id=payload.get("project_id", project.project_id), label_config=""
        )
        changed += absorb_all(running, was, gone)
    return changed


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
    """Make the task's state and the sample's label say what was resolved; whether the label changed.

    A gold task's answer is known: it measures people and changes no label.
    """
    if row.arm == "gold":
        row.state = resolution.state
        row.answered_at = (row.answered_at or now()) if resolution.label is not None else None
        session.add(row)
        return False
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


def newest_of(session: Session, label_task_id: str) -> dict[tuple[int, int], Annotation]:
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
        state, problem = "empty", "made from a pre-annotation by a menu action, nobody looked at it"
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
            said_nothing = model.task != "detect" and not any(_chosen(result) for result in results)
            state, problem = "empty" if said_nothing else "invalid", error.message
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
        restored=found.get("import_id") is not None and found.get("updated_by") is None,
    )


def _chosen(result: Any) -> bool:
    """Whether a region holds an answer at all, of whatever kind."""
    return not isinstance(result, dict) or result.get("value") not in ({}, {"choices": []}, None)


def _answer(row: Annotation) -> Answer:
    label = msgspec.convert(row.value, Label) if row.value is not None else None
    return Answer(row.annotation_id, row.updated_at, row.annotator, row.state, row.ground_truth, label)


def _poll(running: Running, studio: Studio, project: StudioProject) -> int:
    try:
        tasks = studio.changed_since(project.project_id, before(project.cursor, OVERLAP_S))
        unread = set(tasks) - _settled(running, project.model, tasks)
        unread -= _unanswered(running, project, [tasks[i] for i in sorted(unread) if not tasks[i].answered])
        changed = absorb_all(running, project, studio.whole(project.project_id, unread))
    except StudioError:
        if studio.project(project.project_id) is not None:
            raise
        _send_sweep(running, project.model)
        return 0
    newest = max((task.updated_at for task in tasks.values()), default="")
    if newest > project.cursor:
        with running.commit() as session:
            row = session.get(StudioProject, project.model)
            if row is not None and row.project_id == project.project_id:
                row.cursor = max(row.cursor, newest)
                session.add(row)
    return changed


def _send_sweep(running: Running, slug: str) -> None:
    """The project is gone; the sweep makes it again."""
    with running.commit() as session:
        jobs.send(session, "bridge.sweep", {"model": slug}, unique_key=f"bridge.sweep:{slug}")


def _unanswered(running: Running, project: StudioProject, tasks: list[StudioTask]) -> set[int]:
    """Those of these tasks without any count that are ours and never had an answer; that counts as having read them."""
    found: set[int] = set()
    for start in range(0, len(tasks), 500):
        by_id = {task.id: task for task in tasks[start : start + 500]}
        running.check_cancelled()
        with running.commit() as session:
            rows = select(LabelTask).where(
                LabelTask.model == project.model,
                LabelTask.project_id == project.project_id,
                col(LabelTask.studio_task_id).in_(by_id),
                ~sa.exists().where(col(Annotation.label_task_id) == col(LabelTask.id)),
            )
            for row in session.exec(rows):
                if row.studio_task_id is not None:
                    _note_reading(row, by_id[row.studio_task_id])
                    session.add(row)
                    found.add(row.studio_task_id)
    return found


def _settled(running: Running, model: str, tasks: dict[int, StudioTask]) -> set[int]:
    """Those of these tasks that were read as they are, twice, or only just now for the first time."""
    keys = [_stamp(task.id, task.updated_at) for task in tasks.values()]
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
