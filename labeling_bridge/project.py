"""A model's project in Label Studio, and how our rows look there. Shared by push, sweep and refresh.

    LabelTask + Sample -> task_body (data, pre-annotation) -> import
    Model -> ensure_project -> StudioProject (label config, tab, webhook)

One writer per project: `writing(...)` holds the lease `studio:{model}`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from labeling_bridge.config import instructions, label_config
from labeling_bridge.convert import results_of
from labeling_bridge.studio import Studio, StudioTask
from sutdol import jobs, keys
from sutdol.context import Context
from sutdol.db import upsert
from sutdol.errors import StudioError
from sutdol.events import tell
from sutdol.jobs import Running, lease
from sutdol.settings import Settings
from sutdol.tables import LabelTask, Model, Sample, StudioProject

LEASE_S = 90.0
"""Longer than one import may take; a killed writer is followed by the next one after this time."""
PATIENCE_S = LEASE_S + 30.0
"""How long to wait for another writer: longer than a killed one is waited for."""
LOOK_S = 0.25
UNANSWERED = ("in_studio", "skipped", "conflict", "unlabelable")
TOP_SCORE = -1.0
"""Of a task in conflict: before everything else, because one answer settles what two people have worked on."""


@contextmanager
def writing(running: Running, model: str) -> Iterator[Callable[[], bool]]:
    """Hold the lease of the project; yields a function that takes or renews it and says whether it is ours."""
    name, owner = f"studio:{model}", f"{running.job_id}:{running.attempt}"
    database, held_until = running.context.database, 0.0

    def ours() -> bool:
        # Nobody else can take it for LEASE_S, so it is renewed only when some of that is gone.
        nonlocal held_until
        if time.monotonic() >= held_until:
            at = time.monotonic()
            held_until = at + LEASE_S / 4 if lease.acquire(database, name, owner, LEASE_S) else 0.0
        return held_until > 0

    try:
        yield ours
    finally:
        lease.release(database, name, owner)


def await_turn(running: Running, ours: Callable[[], bool], model: str) -> None:
    """Return when the lease is ours. One look at the database each LOOK_S, instead of a job that comes back and back.

    Raises:
        StudioError: another writer held it for PATIENCE_S.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not ours():
        running.check_cancelled()
        if time.monotonic() > deadline:
            raise StudioError(f"another job has been writing to the project of {model} for {PATIENCE_S:.0f} s")
        time.sleep(LOOK_S)


def version_name(model: str, version: int) -> str:
    """How a model version is called in Label Studio."""
    return f"{model}-v{version}"


def ensure_project(running: Running, studio: Studio, model: Model) -> StudioProject:
    """The model's project as it should be: made when it is missing, its label config brought up to date.

    A project that somebody deleted is made again; all its tasks go back to `queued`, and `push` puts their answers back too.

    Raises:
        StudioError: Label Studio is not there, or refuses the label config.
    """
    with running.context.database.read() as session:
        row = session.get(StudioProject, model.slug)
    if row is not None and studio.project(row.project_id) is None:
        with running.commit() as session:
            _forget(session, row)
        row = None
    wanted = wanted_config(model)
    if row is None:
        description = project_description(model.slug)
        project_id = studio.find_project(description)
        made = project_id is None
        if project_id is None:
            people = running.context.settings.annotators_per_task
            told = instructions(model.task, model.classes, hidden=model.retired or ())  # type: ignore[arg-type]
            project_id = studio.create_project(model.slug, description, wanted, annotators=people, instructions=told)
        row = StudioProject(model=model.slug, project_id=project_id, label_config=wanted if made else "")
        with running.commit() as session:
            upsert(session, row, keys=["model"], update=["project_id", "label_config", "model_version", "cursor"])
        dress(running, studio, row)  # tasks follow at once
        if not made:
            _doubt(running, model.slug)
    if row.label_config != wanted:
        problem = studio.config_problem(row.project_id, wanted)
        if problem and model.retired:
            wanted = label_config(model.task, model.classes)  # type: ignore[arg-type]
            problem = studio.config_problem(row.project_id, wanted)
        if problem:
            raise StudioError(
                f"Label Studio refuses the label config of {model.slug}: {problem}",
                hint="somebody changed the project's labels there; put them back",
            )
        told = instructions(model.task, model.classes, hidden=model.retired or ())  # type: ignore[arg-type]
        studio.set_label_config(row.project_id, wanted, told)
        row.label_config = wanted
        save(running, row, "label_config")
    return row


def known_project(running: Running, studio: Studio, model: Model) -> StudioProject:
    """The model's project without asking Label Studio whether it is still there; `ensure_project` when something is to do."""
    with running.context.database.read() as session:
        row = session.get(StudioProject, model.slug)
    if row is not None and row.label_config == wanted_config(model):
        return row
    return ensure_project(running, studio, model)


def wanted_config(model: Model) -> str:
    """The label config as it should be; where retired classes have annotations there, Label Studio gets them all."""
    return label_config(model.task, model.classes, hidden=model.retired or ())  # type: ignore[arg-type]


def dress(running: Running, studio: Studio, row: StudioProject) -> None:
    """Make the tab, the webhook and the ML backend (where it is wanted) if they are missing."""
    context = running.context
    row.view_id = studio.ensure_view(row.project_id)
    secret = keys.secret(context.database, "label-studio-webhook")
    row.webhook_id = studio.ensure_webhook(row.project_id, webhook_url(context.settings), secret)
    save(running, row, "view_id", "webhook_id")
    if context.settings.ml_backend:
        password, interactive = backend_password(context), "RectangleLabels" in row.label_config
        url = f"{context.settings.url}/label-studio"
        if studio.ensure_backend(row.project_id, url, "sutdol", password, interactive=interactive) is None:
            with running.commit() as session:
                tell(session, "bridge.backend-refused", f"Label Studio refuses the ML backend {url}", model=row.model)


def save(running: Running, row: StudioProject, *columns: str) -> None:
    """Write these columns of the project's row."""
    with running.commit() as session:
        values = {name: getattr(row, name) for name in columns}
        session.execute(sa.update(StudioProject).where(col(StudioProject.model) == row.model).values(**values))


def webhook_url(settings: Settings) -> str:
    """Where Label Studio sends its hints."""
    return f"{settings.url}/v1/label-studio/webhook"


def backend_password(context: Context) -> str:
    """The password of the ML backend's user."""
    return context.settings.ml_backend_password or keys.secret(context.database, "label-studio-backend")


def project_description(model: str) -> str:
    """By this text a project is found again when our own note of it is lost; labelers see it."""
    return f"sutdol model: {model}"


def task_body(task: LabelTask, sample: Sample, model: Model, image: str) -> dict[str, Any]:
    """A task as it is imported, with the address of its image (see `pictures`).

    Its data never change afterwards, but for a new signing key; what may change is in its predictions.
    """
    data = {
        "image": image,
        "sample_id": task.sample_id,
        "reason": task.reason or task.arm,
        "arm": "drawn" if task.arm == "gold" else task.arm,  # people must not see that it is about them
    }
    return {"data": data, "predictions": [prediction_body(task, sample, model)]}


def prediction_body(task: LabelTask, sample: Sample, model: Model) -> dict[str, Any]:
    """A pre-annotation; its score is 1 - priority, because stream and tab show the lowest score first.

    A blind task has an empty one: without any, both would show it only when all others are done.
    """
    results = (
        []
        if task.blind
        else results_of(
            task.answer,
            model.task,  # type: ignore[arg-type]
            width_px=sample.width_px,
            height_px=sample.height_px,
        )
    )
    return {
        "model_version": version_name(task.model, task.version),
        "score": TOP_SCORE if task.state == "conflict" else 1 - task.priority,
        "result": results,
    }


def keeper(tasks: list[StudioTask]) -> StudioTask:
    """Of several tasks of one sample, the one that stays: an answered one before others, then the lowest id."""
    return min(tasks, key=lambda t: (not t.answered, t.id))


def fresh_rows(session: Session, tasks: list[LabelTask]) -> list[LabelTask]:
    """These rows as they are now, in this session; one query and not one for each."""
    return list(session.exec(select(LabelTask).where(col(LabelTask.id).in_([task.id for task in tasks]))))


def samples_of(session: Session, tasks: list[LabelTask]) -> dict[str, Sample]:
    """The samples of these tasks by id; one that has no row is left out."""
    ids = [task.sample_id for task in tasks]
    return {s.id: s for s in session.exec(select(Sample).where(col(Sample.id).in_(ids)))}


def _doubt(running: Running, slug: str) -> None:
    """The project has a history that we do not know: every task may be there already."""
    with running.commit() as session:
        waiting = (col(LabelTask.model) == slug, col(LabelTask.attempts) == 0)
        session.execute(sa.update(LabelTask).where(*waiting).values(attempts=1))


def _forget(session: Session, row: StudioProject) -> None:
    """The project is gone: what was answered stays ours, and everything is sent again, with its answers."""
    lost = session.execute(
        sa.update(LabelTask)
        .where(
            col(LabelTask.model) == row.model,
            col(LabelTask.project_id) == row.project_id,
            col(LabelTask.state).in_((*UNANSWERED, "annotated")),
        )
        .values(state="queued", project_id=None, studio_task_id=None, not_before=0.0, overlap=1)
        .returning(col(LabelTask.id))
    ).all()
    session.execute(sa.delete(StudioProject).where(col(StudioProject.model) == row.model))
    text = f"the project of {row.model} was deleted in Label Studio; it is made again with {len(lost)} tasks"
    tell(session, "bridge.project-lost", text, model=row.model, project_id=row.project_id)
    if lost:
        jobs.send(session, "bridge.push", {"model": row.model}, unique_key=f"bridge.push:{row.model}")
