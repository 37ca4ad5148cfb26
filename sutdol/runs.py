"""Training runs as everybody sees them: queued, looked at, cancelled. The work itself is the job `train` (see `retrain`).

    queue(session, model, ...) -> TrainingRun + RunCandidate rows + job, in the caller's transaction
    overview / detail -> plain dictionaries for the command line and the API

Parameters are checked where families are known: by `retrain.train.start` before queueing, otherwise when the job begins, and
then the run fails at once with the reason.

Errors: NotFoundError for a model or run that does not exist; ConflictError for a run that has ended.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from sutdol import jobs, registry
from sutdol.errors import ConflictError, InputError, unknown
from sutdol.events import tell
from sutdol.tables import Job, RunCandidate, RunProgress, TrainingRun, new_id

FINAL = ("done", "failed", "cancelled")
MAX_CANDIDATES = 16


def queue(
    session: Session,
    model: str,
    *,
    cause: str,
    params: dict[str, Any] | None = None,
    candidates: list[dict[str, Any]] | None = None,
) -> TrainingRun | None:
    """Queue a training of `model`.

    Args:
        cause: why, in words for people.
        params: override the model's own defaults for this run.
        candidates: {"family": ..., "params": {...}} of each network to compare; None trains one, of the model's family.

    Returns:
        The run, or None when one is queued or active already.

    Raises:
        NotFoundError: no such model. InputError: too many candidates, or none.
    """
    known = registry.get_model(session, model)
    if candidates is not None and not 1 <= len(candidates) <= MAX_CANDIDATES:
        raise InputError(f"candidates: expected 1 to {MAX_CANDIDATES}, found {len(candidates)}")
    waiting = select(TrainingRun, Job).where(
        TrainingRun.model == model, col(TrainingRun.state).not_in(FINAL), col(TrainingRun.job_id) == col(Job.id)
    )
    for run, job in session.exec(waiting).all():
        if job.state in ("queued", "running"):
            return None
        # Its job ended without it: cancelled while it was queued, or abandoned too often.
        run.state, run.error = ("cancelled" if job.state == "cancelled" else "failed"), job.error
        run.finished_at = job.finished_at
        session.add(run)
    run_id = new_id()
    job_id = jobs.send(session, "train", {"run_id": run_id}, unique_key=f"train:{model}")
    if job_id is None:
        return None
    run = TrainingRun(id=run_id, model=model, family=known.family, params=params or {}, cause=cause, job_id=job_id)
    session.add(run)
    for number, wanted in enumerate(candidates or [{}], 1):
        family, own = str(wanted.get("family") or known.family), dict(wanted.get("params") or {})
        session.add(RunCandidate(run_id=run_id, number=number, family=family, params=own))
    session.flush()
    tell(session, "run.queued", f"{model}: training queued ({cause})", model=model, run_id=run_id)
    return run


def cancel(session: Session, run_id: str) -> TrainingRun:
    """Ask a run to stop; a queued one ends at once, an active one within seconds.

    Raises:
        NotFoundError: no such run. ConflictError: it has ended.
    """
    run = find(session, run_id)
    if run.state in FINAL:
        raise ConflictError(f"run {run.id} has ended: {run.state}")
    if run.job_id is not None:
        jobs.cancel(session, run.job_id)
        job = session.get(Job, run.job_id)
        if job is not None and job.state == "cancelled":
            run.state, run.finished_at = "cancelled", job.finished_at
            session.add(run)
    return run


def find(session: Session, run_id: str) -> TrainingRun:
    """The run with this id, or the only one whose id begins so.

    Raises:
        NotFoundError: none, or several.
    """
    run = session.get(TrainingRun, run_id)
    if run is not None:
        return run
    found = session.exec(
        select(TrainingRun).where(col(TrainingRun.id).startswith(run_id, autoescape=True)).limit(2)
    ).all()
    if len(found) != 1 or not run_id:
        newest = session.exec(select(TrainingRun.id).order_by(col(TrainingRun.id).desc()).limit(5)).all()
        raise unknown("training run", run_id, list(newest))
    return found[0]


def overview(session: Session, *, model: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The newest runs first, without their curves."""
    query = select(TrainingRun).order_by(col(TrainingRun.created_at).desc()).limit(limit)
    if model is not None:
        registry.get_model(session, model)
        query = query.where(TrainingRun.model == model)
    line = _line(session)
    return [_summary(run, line) for run in session.exec(query)]


def detail(session: Session, run_id: str) -> dict[str, Any]:
    """One run with its candidates (best first), and every number of every epoch of the attempt that reached it last."""
    run = find(session, run_id)
    rows = session.exec(
        select(RunCandidate).where(RunCandidate.run_id == run.id).order_by(col(RunCandidate.number))
    ).all()
    curves: dict[int, dict[int, dict[str, Any]]] = {}
    order = (col(RunProgress.candidate), col(RunProgress.attempt), col(RunProgress.epoch))
    for row in session.exec(select(RunProgress).where(RunProgress.run_id == run.id).order_by(*order)):
        curves.setdefault(row.candidate, {})[row.epoch] = {"epoch": row.epoch, "at": row.at, "metrics": row.metrics}
    candidates = [_candidate(row) | {"curve": list(curves.get(row.number, {}).values())} for row in rows]
    place = {"chosen": 0, "finished": 1, "training": 2, "queued": 3, "eliminated": 4, "failed": 5}
    candidates.sort(key=lambda c: (place.get(c["state"], 9), -(c["score"] if c["score"] is not None else -1e9)))
    job = session.get(Job, run.job_id) if run.job_id else None
    return _summary(run, _line(session)) | {"candidates": candidates, "progress": job.progress if job else None}


def _line(session: Session) -> list[str]:
    """Ids of the runs that have not ended, the oldest first."""
    open_ = select(TrainingRun.id).where(col(TrainingRun.state).not_in(FINAL)).order_by(col(TrainingRun.created_at))
    return list(session.exec(open_))


def _summary(run: TrainingRun, line: list[str]) -> dict[str, Any]:
    names = (
        "id model family params cause state version parent_version dataset_version_id epoch epochs eta_s timings hints error "
        "created_at started_at finished_at"
    )
    ahead = line.index(run.id) if run.state == "queued" and run.id in line else None
    return {name: getattr(run, name) for name in names.split()} | {"ahead": ahead}


def _candidate(row: RunCandidate) -> dict[str, Any]:
    names = "number family params state epoch epochs score training_s metrics error"
    return {name: getattr(row, name) for name in names.split()}
