"""Batch runs as people see them: started, followed, cancelled, resumed.

    start -> row `batch_run` + job `batch.predict` in one transaction; cancel asks the job; resume sends another one

Errors: NotFoundError (no such model, version or run), InputError (options that make no sense), ConflictError (it runs).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
from sqlmodel import Session

from sutdol import jobs, registry
from sutdol.errors import ConflictError, InputError, unknown
from sutdol.tables import BatchRun, Job, new_id

KIND = "batch.predict"


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What to do with a source.

    Attributes:
        model: a reference, `digits`, `digits@3` or `models:/digits@champion`.
        every_s, scene: of a video, frames by time or where the scene changes by so much (0 to 1).
        log: write every answer to the prediction log and let the arms pick, as if it had been asked for one by one.
        pictures: keep a copy of each image with its answer drawn in.
    """

    model: str
    every_s: float | None = None
    scene: float | None = None
    log: bool = False
    pictures: bool = False


class State(msgspec.Struct):
    """How far a run is; `state` is that of its job."""

    id: str
    model: str
    version: int
    state: str
    done: int
    failed: int
    total: int | None
    source: dict[str, Any]
    options: dict[str, Any]
    images_per_s: float | None
    eta_s: float | None
    error: str | None
    created_at: float
    finished_at: float | None


def start(session: Session, order: Order, source: dict[str, Any], *, who: str) -> BatchRun:
    """Queue a run in the caller's transaction.

    Args:
        source: {"kind", "name", and "path" or "key"}, see `sources.kind_of`.
    """
    if order.every_s is not None and not (math.isfinite(order.every_s) and 0 < order.every_s <= 86_400):
        raise InputError(f"every_s: expected seconds between 0 and 86,400, found {order.every_s}")
    if order.scene is not None and not 0 < order.scene <= 1:
        raise InputError(f"scene: expected a change between 0 and 1, found {order.scene}")
    if order.every_s is not None and order.scene is not None:
        raise InputError("frames are chosen by time or by scene, not by both")
    model, version = registry.resolve(session, order.model)
    options = {k: v for k, v in msgspec.to_builtins(order).items() if k != "model"}
    run = BatchRun(id=new_id(), job_id="", model=model, version=version, source=source, options=options, who=who)
    run.job_id = _send(session, run)
    session.add(run)
    session.flush()
    return run


def resume(session: Session, run_id: str) -> BatchRun:
    """Go on with a run that was cancelled or failed, after its last finished chunk.

    Raises:
        ConflictError: it runs, waits, or is done.
    """
    run = get(session, run_id)
    job = session.get(Job, run.job_id)
    if job is not None and job.state in ("queued", "running", "done"):
        raise ConflictError(f"batch {run_id} is {job.state}, only a cancelled or failed one can go on")
    run.job_id = _send(session, run)
    session.add(run)
    return run


def cancel(session: Session, run_id: str) -> BatchRun:
    """Ask a run to stop; what is finished stays and can be fetched."""
    run = get(session, run_id)
    jobs.cancel(session, run.job_id)
    return run


def get(session: Session, run_id: str) -> BatchRun:
    row = session.get(BatchRun, run_id)
    if row is None:
        raise unknown("batch", run_id, [])
    return row


def state(session: Session, run: BatchRun) -> State:
    job = session.get(Job, run.job_id)
    progress = (job.progress if job else None) or {}
    return State(
        run.id,
        run.model,
        run.version,
        job.state if job else "gone",
        run.done,
        run.failed,
        run.total,
        {k: v for k, v in run.source.items() if k in ("kind", "name")},
        run.options,
        progress.get("images_per_s"),
        progress.get("eta_s"),
        job.error if job else None,
        run.created_at,
        run.finished_at,
    )


def source_of(path: Path, kind: str) -> dict[str, Any]:
    """The source for a path on this machine."""
    return {"kind": kind, "name": path.name, "path": str(path.absolute())}


def _send(session: Session, run: BatchRun) -> str:
    payload = {"run_id": run.id, "model": run.model, "version": run.version}
    job_id = jobs.send(session, KIND, payload, unique_key=f"batch:{run.id}")
    assert job_id is not None
    return job_id
