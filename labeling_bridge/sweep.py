"""Job `bridge.sweep`: our rows and Label Studio's tasks, compared in full.

    all tasks of a project (ids, sample ids, counts) x our rows
       -> late duplicates deleted -> tasks deleted there: back to queued -> lost pre-annotations imported
       -> answers we have not seen: read -> a deleted project: made again, its open tasks back to queued

It finds what neither hint nor poll can: things that are no longer there. Safe to run at any time; it holds the project's
lease, so nothing is pushed meanwhile.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import col, select

from labeling_bridge.project import UNANSWERED, dress, ensure_project, keeper, samples_of, save, writing
from labeling_bridge.push import (
    BATCH,
    by_sample,
    refresh_stale,
    remove_duplicates,
    repair_predictions,
    show_predictions,
)
from labeling_bridge.studio import Studio
from sutdol import jobs, registry
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.tables import LabelTask, StudioProject, now


def sweep(running: Running) -> dict[str, Any]:
    """Payload {} for all projects, or {"model": slug}. Returns by model what was found."""
    with running.context.database.read() as session:
        statement = select(StudioProject.model)
        if "model" in running.payload:
            statement = statement.where(StudioProject.model == running.payload["model"])
        models = session.exec(statement).all()
    report: dict[str, Any] = {}
    if models:
        with Studio.open(running.context) as studio:
            for model in models:
                with writing(running, model) as ours:
                    if ours():
                        report[model] = sweep_model(running, studio, model)
    return report


def sweep_model(running: Running, studio: Studio, slug: str) -> dict[str, int]:
    """One project; the lease is the caller's."""
    with running.context.database.read() as session:
        model = registry.get_model(session, slug)
    project = ensure_project(running, studio, model)
    found = by_sample(list(studio.listing(project.project_id)))
    if found:
        dress(running, studio, project)
    removed = remove_duplicates(studio, project.project_id, found)
    bare: list[LabelTask] = []
    unwanted: list[int] = []
    unread: list[int] = []
    requeued = 0
    with running.commit() as session:
        rows = session.exec(
            select(LabelTask).where(
                LabelTask.model == slug, col(LabelTask.state).in_((*UNANSWERED, "annotated", "withdrawn"))
            )
        ).all()
        for row in rows:
            tasks = found.get(row.sample_id, [])
            kept = keeper(tasks) if tasks else None
            if row.state == "withdrawn":
                if kept is not None and kept.answered:
                    unread.append(kept.id)
                elif kept is not None:
                    unwanted.append(kept.id)
            elif kept is None and row.state == "annotated" and row.studio_task_id is None:
                continue  # answered without Label Studio: nothing is missing there
            elif kept is None:
                row.state, row.studio_task_id, row.project_id, row.not_before = "queued", None, None, 0.0
                requeued += 1
            else:
                row.studio_task_id, row.project_id = kept.id, project.project_id
                if row.state == "in_studio" and kept.answered:
                    unread.append(kept.id)
                if not kept.total_predictions:
                    bare.append(row)
            session.add(row)
        if requeued or removed:
            text = f"{slug}: {requeued} tasks deleted in Label Studio are sent again, {removed} duplicates removed"
            tell(session, "bridge.swept", text, model=slug)
        if requeued:
            jobs.send(session, "bridge.push", {"model": slug}, unique_key=f"bridge.push:{slug}")
        if unread:
            payload = {"model": slug, "studio_task_ids": unread}
            jobs.send(session, "bridge.read", payload, unique_key=f"bridge.read.swept:{slug}")
    for start in range(0, len(unwanted), BATCH):
        studio.delete_unanswered(project.project_id, unwanted[start : start + BATCH])
    repaired = 0
    for start in range(0, len(bare), BATCH):
        batch = bare[start : start + BATCH]
        with running.context.database.read() as session:
            samples = samples_of(session, batch)
        whole = by_sample(studio.find(project.project_id, [row.sample_id for row in batch]))
        repaired += repair_predictions(studio, project.project_id, batch, whole, samples, model)
    show_predictions(running, studio, slug)
    refresh_stale(running, slug, {row.version for row in rows if row.state == "in_studio"})
    project.swept_at = now()
    save(running, project, "swept_at")
    return {"duplicates": removed, "requeued": requeued, "repaired": repaired, "unread": len(unread)}
