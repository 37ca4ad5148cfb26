"""The safety net: every night all annotations go into the image store, and come back from there.

    `bridge.export`: projects -> tasks that somebody answered, whole, with our own row of each -> labels/{model}/{time}.json.gz
    `bridge.restore`: one such file -> samples, label tasks and annotations that our database lacks -> sweep: tasks that Label
                      Studio lacks are queued -> push puts them there, with their answers

Any labeler can delete a project, and a disk can take our database. A restore adds what is missing and changes nothing else, so
it may be run at any time. The images themselves are not in the file: they lie in the same store.

Errors: NotFoundError (no such file, no export yet), InputError (a file of another format), StudioError.
"""

from __future__ import annotations

import gzip
import time
from typing import Any

import msgspec
from sqlmodel import Session, col, select

from labeling_bridge.pictures import sample_row
from labeling_bridge.project import await_turn, known_project, writing
from labeling_bridge.read import absorb_all
from labeling_bridge.studio import Studio, StudioTask
from labeling_bridge.sweep import sweep_model
from sutdol import images, registry
from sutdol.errors import ImageError, InputError, NotFoundError, StudioError
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.stores import Store
from sutdol.tables import LabelTask, Model, Sample, StudioProject, now

FORMAT = 1
KEPT = 14
"""Files kept per model; older ones are deleted after a new one is written."""
_ROW = ("arm", "inclusion_probability", "reason", "priority", "uncertainty", "ood_score", "blind", "split", "version")
_AT_ONCE = 100


class Saved(msgspec.Struct):
    """One answered task as it is kept: Label Studio's view and ours."""

    id: int
    data: dict[str, Any]
    annotations: list[dict[str, Any]]
    row: dict[str, Any]


class Export(msgspec.Struct):
    """All answered tasks of one model's project."""

    format: int
    model: str
    task: str
    classes: list[str]
    project_id: int
    at: float
    tasks: list[Saved]


def export(running: Running) -> dict[str, Any]:
    """Payload {} for all projects, or {"model": slug}. Returns by model the file's key and how many tasks are in it."""
    with running.context.database.read() as session:
        statement = select(StudioProject)
        if "model" in running.payload:
            statement = statement.where(StudioProject.model == running.payload["model"])
        projects = session.exec(statement).all()
    done: dict[str, Any] = {}
    if projects:
        with Studio.open(running.context) as studio:
            for project in projects:
                done[project.model] = _export(running, studio, project)
    return done


def restore(running: Running) -> dict[str, Any]:
    """Payload {"model", "key"?}: the newest file when none is named. Returns what had to be put back."""
    context, slug = running.context, running.payload["model"]
    key = running.payload.get("key") or newest(context.store, slug)
    saved = read(context.store.get(key))
    if saved.model != slug:
        raise InputError(f"{key} holds labels of {saved.model!r}, not of {slug!r}")
    added = {"samples": 0, "tasks": 0}
    for start in range(0, len(saved.tasks), _AT_ONCE):
        running.check_cancelled()
        with running.commit() as session:
            if session.get(Model, slug) is None:
                family = "yolo" if saved.task == "detect" else "timm"
                registry.create_model(session, slug, task=saved.task, classes=saved.classes, family=family)  # type: ignore[arg-type]
            registry.add_classes(session, slug, saved.classes)
            for task in saved.tasks[start : start + _AT_ONCE]:
                _add_missing(session, context.store, slug, task, added)
    was = StudioProject(model=slug, project_id=saved.project_id, label_config="")
    tasks = (StudioTask(id=t.id, data=t.data, annotations=t.annotations) for t in saved.tasks)
    labels = absorb_all(running, was, tasks)
    with context.database.read() as session:
        model = registry.get_model(session, slug)
    with Studio.open(context) as studio, writing(running, slug) as ours:
        await_turn(running, ours, slug)
        known_project(running, studio, model)
        report = sweep_model(running, studio, slug)
    return {"key": key, "labels": labels, "sent_again": report["requeued"]} | added


def newest(store: Store, model: str) -> str:
    """The key of the last export of a model.

    Raises:
        NotFoundError: there is none.
    """
    keys = store.keys(f"labels/{model}/")
    if not keys:
        raise NotFoundError(f"no export of the labels of {model}", hint=f"make one: sutdol labels export {model}")
    return keys[-1]


def read(data: bytes) -> Export:
    """A file as it was written.

    Raises:
        InputError: it is none of ours, or of a newer sutdol.
    """
    try:
        saved = msgspec.json.decode(gzip.decompress(data), type=Export)
    except (OSError, EOFError, msgspec.MsgspecError) as error:
        raise InputError(f"label export: cannot be read ({error})") from error
    if saved.format != FORMAT:
        raise InputError(f"label export: expected format {FORMAT}, found {saved.format}")
    return saved


def _export(running: Running, studio: Studio, project: StudioProject) -> dict[str, Any]:
    context, slug = running.context, project.model
    with context.database.read() as session:
        model = registry.get_model(session, slug)
        rows = {t.sample_id: t for t in session.exec(select(LabelTask).where(LabelTask.model == slug))}
    try:
        answered = [task.id for task in studio.listing(project.project_id) if task.answered]
    except StudioError:
        if studio.project(project.project_id) is None:
            return {"skipped": "its project is gone; the sweep makes it again"}
        raise
    tasks = []
    for task in studio.whole(project.project_id, answered):
        if (row := rows.get(task.sample_id)) is not None:
            ours = {name: getattr(row, name) for name in _ROW}
            tasks.append(Saved(task.id, task.data, task.annotations, ours))
    saved = Export(FORMAT, slug, model.task, list(model.classes), project.project_id, now(), tasks)
    key = f"labels/{slug}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(saved.at))}.json.gz"
    context.store.put(key, gzip.compress(msgspec.json.encode(saved), mtime=0))
    for old in context.store.keys(f"labels/{slug}/")[:-KEPT]:
        context.store.delete(old)
    with running.commit() as session:
        tell(session, "bridge.exported", f"{len(tasks)} answered tasks of {slug} kept as {key}", model=slug, key=key)
    return {"key": key, "tasks": len(tasks)}


def _add_missing(session: Session, store: Store, slug: str, task: Saved, added: dict[str, int]) -> None:
    sample_id = str(task.data.get("sample_id", ""))
    if session.get(Sample, sample_id) is None:
        try:
            image = images.admit(store.get(f"samples/{sample_id}"))
        except (NotFoundError, ImageError):
            return  # without its image nobody can be asked and nothing can be trained
        session.add(sample_row(image))
        added["samples"] += 1
    known = session.exec(
        select(LabelTask.id).where(LabelTask.model == slug, col(LabelTask.sample_id) == sample_id)
    ).first()
    if known is None:
        row = LabelTask(
            model=slug,
            sample_id=sample_id,
            prediction_id="",
            answer={"classes": [], "boxes": []},
            state="in_studio",
            pushed_at=now(),
            **task.row,
        )
        session.add(row)
        added["tasks"] += 1
