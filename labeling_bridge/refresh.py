"""Job `bridge.refresh`: after a swap, open tasks are scored again by the new champion, the most valuable first.

    queued tasks, whenever there are any -> push_model (people need the new questions more than new opinions on old ones)
    open tasks of other versions (<= 50) -> rescore -> lease -> look which are still open
       -> certain ones deleted, the others' predictions imported (one request each) -> rows -> lease given back

When `model_version` of the project is switched: with the first batch. Label Studio's stream and our tab show and sort by
predictions of that version alone, so somebody has to wait. Switched last, everything new waits behind all that is old: fresh
tasks stand at the end and without a pre-annotation until hundreds of old ones are done. Switched first, the old ones that
are not scored again yet stand at the end; nobody is handed one while there is a fresh or re-scored one, and they move up
within seconds, by 50.

Predictions of old versions stay at the tasks: the score counts only those of `model_version`, and answers refer to them.
Done rows carry the new version and done tasks a prediction of its name, so a second attempt goes on where the first ended.

Errors: StudioError (tried again), also when another writer holds the project too long; ModelError when the version cannot be
loaded.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from labeling_bridge.project import await_turn, fresh_rows, prediction_body, samples_of, version_name, writing
from labeling_bridge.push import BATCH, next_to_push, push_model, show_predictions
from labeling_bridge.rescore import SCORED, Rescored, rescore
from labeling_bridge.studio import Studio
from sutdol import registry
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.tables import LabelTask, Model, StudioProject

OPEN = ("in_studio", "conflict")
"""States of which another answer is wanted."""


def refresh(running: Running) -> dict[str, Any]:
    """Payload {"model", "version"}. Stops when that version is no longer the champion: another refresh is coming."""
    slug, version = running.payload["model"], running.payload["version"]
    context = running.context
    predictor: Predictor | None = None
    scored = withdrawn = 0
    unusable: set[str] = set()
    with Studio.open(context) as studio:
        while True:
            running.check_cancelled()
            with context.database.read() as session:
                model = registry.get_model(session, slug)
                champion = registry.alias(session, slug, "champion")
                project = session.get(StudioProject, slug)
                batch = _take(session, slug, version, unusable)
                waiting = next_to_push(session, slug, context.settings.max_open_tasks)
            if champion != version:
                return {"skipped": f"the champion is version {champion} now", "scored": scored, "withdrawn": withdrawn}
            if project is None:
                return {"skipped": "there is no project yet"}
            if waiting:
                push_model(running, studio, slug)
            if not batch:
                break
            if predictor is None:
                predictor = Predictor.open(context.store, slug, version, providers=context.settings.provider_names)
            verdict = rescore(context.store, predictor, batch)
            with writing(running, slug) as ours:
                await_turn(running, ours, slug)
                done, gone, left = _replace(running, studio, model, version, verdict)
            scored, withdrawn, unusable = scored + done, withdrawn + gone, unusable | left
            running.report(scored=scored, withdrawn=withdrawn)
        if project.model_version != version_name(slug, version):
            with writing(running, slug) as ours:
                await_turn(running, ours, slug)
                show_predictions(running, studio, slug)
    return {"scored": scored, "withdrawn": withdrawn}


def _take(session: Session, model: str, version: int, without: set[str]) -> list[LabelTask]:
    statement = select(LabelTask).where(
        LabelTask.model == model, col(LabelTask.state).in_(OPEN), LabelTask.version != version
    )
    statement = statement.order_by(col(LabelTask.priority).desc(), col(LabelTask.id)).limit(BATCH + len(without))
    return [row for row in session.exec(statement) if row.id not in without][:BATCH]


def _replace(
    running: Running, studio: Studio, model: Model, version: int, verdict: Rescored
) -> tuple[int, int, set[str]]:
    """(scored, withdrawn, ids of rows left as they were) of one batch; the lease is ours."""
    everything = [*verdict.scored, *verdict.certain, *verdict.unusable]
    left = {row.id for row in everything}
    with running.context.database.read() as session:
        project = session.get(StudioProject, model.slug)
        samples = samples_of(session, everything)
    if project is None:
        return 0, 0, left
    wanted = [row.studio_task_id for row in [*verdict.scored, *verdict.certain] if row.studio_task_id is not None]
    # Answered or deleted ones are left to `read` and `sweep`.
    contested = {row.studio_task_id for row in everything if row.state == "conflict"}
    present = {
        task.id: task for task in studio.whole(project.project_id, wanted) if not task.answered or task.id in contested
    }
    certain = {row.studio_task_id: row for row in verdict.certain if row.studio_task_id in present}
    gone = studio.delete_unanswered(project.project_id, [task_id for task_id in certain if task_id is not None])
    imports: list[dict[str, Any]] = []
    scored: list[LabelTask] = []
    shown = version_name(model.slug, version)
    for row in verdict.scored:
        task = present.get(row.studio_task_id or 0)
        if task is None or row.sample_id not in samples:
            continue
        if all(p.get("model_version") != shown for p in task.predictions):
            imports.append({"task": task.id} | prediction_body(row, samples[row.sample_id], model))
        scored.append(row)
    if imports:
        studio.import_predictions(project.project_id, imports)
    withdrawn = [row for task_id, row in certain.items() if task_id in gone]
    with running.commit() as session:
        done = {row.id: row for row in [*scored, *withdrawn]}
        left -= set(done)
        for fresh in fresh_rows(session, list(done.values())):
            row = done[fresh.id]
            if fresh.state != row.state:
                continue  # somebody answered meanwhile, and that counts
            if row.studio_task_id in gone:
                fresh.state = "withdrawn"
            else:
                for name in SCORED:
                    setattr(fresh, name, getattr(row, name))
            session.add(fresh)
        if withdrawn:
            text = f"{len(withdrawn)} open tasks of {model.slug} withdrawn: version {version} is certain of them"
            tell(session, "bridge.withdrawn", text, model=model.slug)
    show_predictions(running, studio, model.slug)
    return len(scored), len(withdrawn), left
