"""What the tests against the real Label Studio do again and again: run a job, look at a row, wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlmodel import select

from labeling_bridge.convert import label_results
from labeling_bridge.jobs import HANDLERS
from labeling_bridge.studio import Studio, StudioTask
from sutdol import jobs
from sutdol.context import Context
from sutdol.jobs.worker import run_pending
from sutdol.tables import Annotation, Job, LabelRow, LabelTask, StudioProject, now
from sutdol.types import Label


def run(context: Context, kind: str, **payload: object) -> dict:
    """Run one job of this kind now and give back its result; jobs it sends stay where they are."""
    with context.database.begin() as session:
        job_id = jobs.send(session, kind, payload)
    run_pending(context, {kind: HANDLERS[kind]})
    with context.database.read() as session:
        job = session.get(Job, job_id)
    assert job.state == "done", job.error
    return job.result


def push(context: Context, model: str) -> int:
    with context.database.begin() as session:
        for row in session.exec(select(LabelTask).where(LabelTask.model == model, LabelTask.state == "candidate")):
            row.state, row.queued_at = "queued", now()
            session.add(row)
    return run(context, "bridge.push", model=model)["pushed"][model]


def project(context: Context, model: str) -> StudioProject:
    with context.database.read() as session:
        return session.get_one(StudioProject, model)


def tasks(studio: Studio, context: Context, model: str) -> dict[str, StudioTask]:
    """Label Studio's tasks by sample id; fails when a sample has two."""
    project_id = project(context, model).project_id
    found = list(studio.whole(project_id, studio.changed_since(project_id, "")))
    assert len({t.sample_id for t in found}) == len(found), "a sample has several tasks"
    return {t.sample_id: t for t in found}


def row(context: Context, model: str, sample_id: str) -> LabelTask:
    with context.database.read() as session:
        return session.exec(select(LabelTask).where(LabelTask.model == model, LabelTask.sample_id == sample_id)).one()


def label(context: Context, model: str, sample_id: str) -> LabelRow | None:
    with context.database.read() as session:
        return session.get(LabelRow, (model, sample_id))


def revisions(context: Context, model: str, sample_id: str) -> list[Annotation]:
    task_id = row(context, model, sample_id).id
    with context.database.read() as session:
        statement = select(Annotation).where(Annotation.label_task_id == task_id).order_by(Annotation.updated_at)
        return list(session.exec(statement))


def end_quarantine(context: Context) -> None:
    with context.database.begin() as session:
        for task in session.exec(select(LabelTask)):
            task.not_before = 0.0
            session.add(task)


def forget_jobs(context: Context) -> None:
    with context.database.begin() as session:
        for job in session.exec(select(Job).where(Job.state == "queued")):
            session.delete(job)


def choose(name: str) -> list[dict]:
    return label_results(Label(classes=[name]), "classify", width_px=1, height_px=1)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
