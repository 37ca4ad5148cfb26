"""Job `bridge.push`: queued tasks -> Label Studio, each exactly once.

    queued (<= 200), gold tasks among them -> scored again if the champion has changed since -> look up by sample_id
       -> import what is missing (<= 50 at once) -> look up again -> repair lost predictions
       -> delete unanswered duplicates -> in_studio -> shown (`model_version`)

A task that was answered before it vanished (with its project, or by itself) goes out with its answers, under the names of
those who gave them, and is `annotated` again at once.

With nothing to push, nothing is asked of Label Studio.

An import is not idempotent, may lose its predictions on SQLite, and may succeed after it timed out. So its own answer is
never believed, but looked up by the ids it names; by sample, which costs ten times as much, where a try may have gone before
(`attempts` is counted up, and committed, before each). After an unknown outcome the batch stays queued and is left alone for
QUARANTINE_S, because the server may still be at it and a second import would make duplicates.

Errors: StudioError when Label Studio is not there; the rows stay queued and the next window tries again.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import func
from sqlmodel import Session, col, select

from labeling_bridge import gold
from labeling_bridge.account import UnknownOutcome
from labeling_bridge.convert import label_results
from labeling_bridge.pictures import addresses
from labeling_bridge.project import (
    UNANSWERED,
    ensure_project,
    fresh_rows,
    keeper,
    known_project,
    prediction_body,
    samples_of,
    save,
    task_body,
    version_name,
    writing,
)
from labeling_bridge.read import newest_of
from labeling_bridge.rescore import SCORED, rescore
from labeling_bridge.studio import Studio, StudioTask
from sutdol import jobs, registry
from sutdol.errors import StudioError
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.tables import LabelTask, Model, Sample, StudioProject, now
from sutdol.types import Label

BATCH = 50
"""Tasks in one import: an import that is lost or locked out costs no more than these."""
STRIDE = 4 * BATCH
"""Tasks taken, looked up and committed together."""
REPORT_EVERY = 500
"""Tasks between two reports of progress: each is a commit."""
QUARANTINE_S = 30.0


def push(running: Running) -> dict[str, Any]:
    """Payload {} for all models with queued tasks, or {"model": slug}. Returns how many are now in Label Studio, by model."""
    context = running.context
    with context.database.read() as session:
        statement = select(LabelTask.model).where(LabelTask.state == "queued").distinct()
        models = [running.payload["model"]] if "model" in running.payload else list(session.exec(statement))
        ready = [model for model in models if next_to_push(session, model, context.settings.max_open_tasks)]
    pushed = dict.fromkeys(models, 0)
    if ready:
        with Studio.open(context) as studio:
            for model in ready:
                pushed[model] = push_model(running, studio, model)
    return {"pushed": pushed}


def push_model(running: Running, studio: Studio, slug: str) -> int:
    """Push what is queued for one model, batch by batch, as far as there is room; the number of tasks now there.

    Returns 0 at once when another process is writing to this project: it will take the rows along, or the next window.
    """
    context, pushed, told = running.context, 0, 0
    with writing(running, slug) as ours:
        project: StudioProject | None = None
        predictor: Predictor | None = None
        while ours():
            running.check_cancelled()
            batch = _next_batch(running, slug)
            with context.database.read() as session:
                model = registry.get_model(session, slug)
                champion = registry.alias(session, slug, "champion")
                samples = samples_of(session, batch)
            if not batch:
                break
            if champion is not None and any(task.version != champion for task in batch):
                if predictor is None or predictor.version != champion:
                    predictor = Predictor.open(context.store, slug, champion, providers=context.settings.provider_names)
                batch = _rescore(running, predictor, batch)
            if project is None:
                project = known_project(running, studio, model)
            known = [task for task in batch if task.sample_id in samples]
            if len(known) < len(batch):
                _postpone(running, [t for t in batch if t.sample_id not in samples], "its image was never stored")
            try:
                pushed += _push_batch(running, studio, project, model, known, samples)
            except UnknownOutcome as error:
                _postpone(running, known, str(error))
                break
            except StudioError:
                if studio.project(project.project_id) is not None:
                    raise
                project = ensure_project(running, studio, model)
                continue
            show_predictions(running, studio, slug)
            refresh_stale(running, slug, {task.version for task in known})
            if pushed >= told + REPORT_EVERY:
                told = pushed
                running.report(model=slug, pushed=pushed)
    return pushed


def show_predictions(running: Running, studio: Studio, slug: str) -> None:
    """Keep `model_version` of the project set: Label Studio shows and sorts by the predictions of that version alone.

    It is the champion's as soon as one open task has a prediction of it (why so early: see `refresh`). The lease is the
    caller's.
    """
    with running.context.database.read() as session:
        project = session.get(StudioProject, slug)
        champion = registry.alias(session, slug, "champion")
        open_tasks = select(LabelTask.version).where(LabelTask.model == slug, LabelTask.state == "in_studio")
        versions = set(session.exec(open_tasks.distinct()))
    if not versions or project is None:
        return
    if champion not in versions and project.model_version in {version_name(slug, v) for v in versions}:
        return
    name = version_name(slug, champion if champion in versions else max(versions))
    if project.model_version != name and studio.set_model_version(project.project_id, name):
        project.model_version = name
        save(running, project, "model_version")


def refresh_stale(running: Running, slug: str, versions: set[int]) -> None:
    """Send `bridge.refresh` when tasks of these versions are open and another one is champion (perhaps only just now)."""
    with running.context.database.read() as session:
        champion = registry.alias(session, slug, "champion")
    if champion is not None and versions - {champion}:
        with running.commit() as session:
            payload = {"model": slug, "version": champion}
            jobs.send(session, "bridge.refresh", payload, unique_key=f"bridge.refresh:{slug}")


def next_to_push(session: Session, model: str, max_open: int) -> list[LabelTask]:
    """The next rows to push: `drawn` first, then the others, each by priority; no more than there is room for.

    Those in quarantine are left out.
    """
    in_studio = session.exec(select(func.count()).where(LabelTask.model == model, LabelTask.state == "in_studio")).one()
    ready = select(LabelTask).where(
        LabelTask.model == model, LabelTask.state == "queued", LabelTask.not_before <= now()
    )
    order = sa.case((col(LabelTask.arm) == "drawn", 1.0 + col(LabelTask.priority)), else_=col(LabelTask.priority))
    ready = ready.order_by(order.desc(), col(LabelTask.queued_at), col(LabelTask.id))
    return list(session.exec(ready.limit(max(min(STRIDE, max_open - in_studio), 0))))


def _next_batch(running: Running, slug: str) -> list[LabelTask]:
    """The next rows, gold tasks mixed in; whether a row is blind is decided here, before it goes out for the first time."""
    settings = running.context.settings
    with running.context.database.read() as session:
        if not next_to_push(session, slug, settings.max_open_tasks):
            return []
    with running.commit() as session:
        gold.top_up(session, slug, settings.gold_share)
        session.flush()
        batch = next_to_push(session, slug, settings.max_open_tasks)
        for row in batch:
            row.blind = row.blind or gold.blind_by_chance(slug, row.sample_id, settings.blind_share)
            row.attempts += 1
            session.add(row)
    return batch


def _rescore(running: Running, predictor: Predictor, batch: list[LabelTask]) -> list[LabelTask]:
    """The batch as the champion sees it. Scored by another version, it would stand last and without a pre-annotation.

    What the champion is certain of is withdrawn before it was shown to anybody, and does not count as asked today.
    """
    old = rescore(running.context.store, predictor, [task for task in batch if task.version != predictor.version])
    certain = {task.id for task in old.certain}
    with running.commit() as session:
        scored = {task.id: task for task in [*old.scored, *old.certain]}
        for row in fresh_rows(session, list(scored.values())):
            if row.state != "queued":
                continue
            if row.id in certain:
                row.state, row.queued_at = "withdrawn", None
            else:
                for name in SCORED:
                    setattr(row, name, getattr(scored[row.id], name))
            session.add(row)
        if certain:
            text = f"{len(certain)} queued tasks of {predictor.model} withdrawn: version {predictor.version} is certain"
            tell(session, "bridge.withdrawn", text, model=predictor.model)
    return [task for task in batch if task.id not in certain]


def _push_batch(
    running: Running,
    studio: Studio,
    project: StudioProject,
    model: Model,
    batch: list[LabelTask],
    samples: dict[str, Sample],
) -> int:
    context, project_id = running.context, project.project_id
    sample_ids = [task.sample_id for task in batch]
    with context.database.read() as session:
        answers = {t.sample_id: earlier_answers(session, t, model, samples[t.sample_id]) for t in batch}
    # Who was never sent cannot be there: `attempts` is counted up, and committed, before the first try.
    unknown: UnknownOutcome | None = None
    doubtful = [task.sample_id for task in batch if task.attempts > 1 or task.pushed_at is not None]
    found = by_sample(studio.find(project_id, doubtful))
    missing = [task for task in batch if task.sample_id not in found]
    if missing:
        images = addresses(context, studio, project_id, [samples[t.sample_id] for t in missing])
        bodies = [task_body(t, samples[t.sample_id], model, images[t.sample_id]) for t in missing]
        if any(answers.values()):
            people = studio.people()
            answers = {sample_id: attributed(given, people) for sample_id, given in answers.items()}
        for body in bodies:
            body["annotations"] = answers[body["data"]["sample_id"]]
        sent, ids, unknown = _import(studio, project_id, bodies)
        if sent and _is_empty(running, model.slug):
            studio.ensure_view(project_id)  # Label Studio deletes all tabs with the last task
        made = by_sample(studio.present(project_id, ids))
        if set(made) == sent:
            found |= made
        else:  # what it answered is not what we sent
            found = by_sample(studio.find(project_id, sample_ids))
    repair_predictions(studio, project_id, batch, found, samples, model)
    _repair_answers(studio, found, answers)
    remove_duplicates(studio, project_id, found)
    answered: list[int] = []
    with running.commit() as session:
        for row in fresh_rows(session, batch):
            if row.state != "queued":
                continue  # read was faster
            if row.sample_id not in found:
                row.not_before = now() + QUARANTINE_S
            else:
                kept = keeper(found[row.sample_id])
                row.state, row.project_id, row.studio_task_id = "in_studio", project_id, kept.id
                row.pushed_at, row.not_before, row.overlap = now(), 0.0, context.settings.annotators_per_task
                row.attempts = 0
                answered += [kept.id] if kept.answered or answers[row.sample_id] else []
            session.add(row)
        if answered:
            jobs.send(session, "bridge.read", {"model": model.slug, "studio_task_ids": answered})
    if unknown is not None:
        raise unknown
    return sum(1 for task in batch if task.sample_id in found)


def _import(
    studio: Studio, project_id: int, bodies: list[dict[str, Any]]
) -> tuple[set[str], list[int], UnknownOutcome | None]:
    """Import by BATCH: samples that were sent and confirmed, the ids that Label Studio names, and what ended it early."""
    sent: set[str] = set()
    ids: list[int] = []
    for start in range(0, len(bodies), BATCH):
        part = bodies[start : start + BATCH]
        try:
            ids += studio.import_tasks(project_id, part)
        except UnknownOutcome as error:
            return sent, ids, error
        sent |= {str(body["data"]["sample_id"]) for body in part}
    return sent, ids, None


def earlier_answers(session: Session, row: LabelTask, model: Model, sample: Sample) -> list[dict[str, Any]]:
    """The annotations that a task had where it is no longer, as Label Studio imports them; empty for most."""
    if row.pushed_at is None:
        return []
    found = []
    newest = newest_of(session, row.id).values()
    last = max((r.project_id for r in newest), default=0)
    for revision in newest:
        if revision.project_id != last or revision.state not in ("valid", "skipped"):
            continue
        label = msgspec.convert(revision.value, Label) if revision.value is not None else None
        size = {"width_px": sample.width_px, "height_px": sample.height_px}
        found.append(
            {
                "id": revision.annotation_id,
                "completed_by": revision.annotator,
                "result": label_results(label, model.task, **size) if label else [],  # type: ignore[arg-type]
                "was_cancelled": revision.state == "skipped",
                "ground_truth": revision.ground_truth,  # Label Studio takes an import for ground truth unless told so
                "lead_time": revision.lead_time_s,
            }
        )
    return found


def attributed(answers: list[dict[str, Any]], people: set[int]) -> list[dict[str, Any]]:
    """The answers under the names of those who gave them, as far as this Label Studio knows them.

    It refuses a whole import for one author that it does not know. One such answer goes under the bridge's name; several of
    one task would count as one person's, and a conflict as settled: then the task is asked anew.
    """
    strangers = [answer for answer in answers if answer["completed_by"] not in people]
    if len(strangers) > 1:
        return []
    return [answer if answer not in strangers else answer | {"completed_by": None} for answer in answers]


def _repair_answers(
    studio: Studio, found: dict[str, list[StudioTask]], answers: dict[str, list[dict[str, Any]]]
) -> None:
    """Put answers back that an import lost (on SQLite it may, as it may its predictions)."""
    for sample_id, tasks in found.items():
        task = keeper(tasks)
        if not task.answered:
            for answer in answers.get(sample_id, []):
                left_out = ("id",) if answer["completed_by"] is not None else ("id", "completed_by")
                studio.submit(task.id, {name: value for name, value in answer.items() if name not in left_out})


def _is_empty(running: Running, slug: str) -> bool:
    """Whether, as far as we know, no task of this model stood in Label Studio."""
    with running.context.database.read() as session:
        there = col(LabelTask.state).in_((*UNANSWERED, "annotated"))
        return session.exec(select(LabelTask.id).where(LabelTask.model == slug, there).limit(1)).first() is None


def by_sample(tasks: list[StudioTask]) -> dict[str, list[StudioTask]]:
    """Tasks grouped by our sample id; those of others are left out."""
    groups: dict[str, list[StudioTask]] = {}
    for task in tasks:
        if task.sample_id:
            groups.setdefault(task.sample_id, []).append(task)
    return groups


def repair_predictions(
    studio: Studio,
    project_id: int,
    rows: list[LabelTask],
    found: dict[str, list[StudioTask]],
    samples: dict[str, Sample],
    model: Model,
) -> int:
    """Import the pre-annotations that `found` (whole tasks) lacks; how many those were."""
    lost = []
    for row in rows:
        if row.sample_id not in found or row.sample_id not in samples:
            continue
        task = keeper(found[row.sample_id])
        body = prediction_body(row, samples[row.sample_id], model)
        # One that was just imported is seen by its counts, and has our prediction or none.
        there = any(p.get("model_version") == body["model_version"] for p in task.predictions)
        if not there and (task.predictions or not task.total_predictions):
            lost.append({"task": task.id} | body)
    if lost:
        studio.import_predictions(project_id, lost)
    return len(lost)


def remove_duplicates(studio: Studio, project_id: int, found: dict[str, list[StudioTask]]) -> int:
    """Delete all but the keeper among the tasks of each sample, never one that was answered; how many were deleted."""
    spare = [t.id for tasks in found.values() for t in tasks if t.id != keeper(tasks).id and not t.answered]
    return len(studio.delete_unanswered(project_id, spare))


def _postpone(running: Running, tasks: list[LabelTask], why: str) -> None:
    """Quarantine: the rows stay queued and nobody touches them for a while."""
    if not tasks:
        return
    model = tasks[0].model
    with running.commit() as session:
        session.execute(
            sa.update(LabelTask)
            .where(col(LabelTask.id).in_([t.id for t in tasks]), col(LabelTask.state) == "queued")
            .values(not_before=now() + QUARANTINE_S)
        )
        tell(session, "bridge.quarantine", f"{len(tasks)} tasks of {model} wait: {why}", model=model)
        jobs.send(
            session,
            "bridge.push",
            {"model": model},
            unique_key=f"bridge.push.later:{model}",
            delay_s=QUARANTINE_S + 1,
        )
