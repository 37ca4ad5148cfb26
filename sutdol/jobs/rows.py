"""The job row's life, in plain transactions: send, claim, renew, finish, fail, cancel, release, sweep. Knows no broker.

    send: row `queued` + doorbell (a row of table `message`), in the caller's own transaction
    claim: queued -> running, one conditional UPDATE; attempt and lease number grow, the unique key becomes free
    finish | fail | cancelled | release: running -> done | queued or failed | cancelled | queued
    sweep: running -> queued (or failed, cancelled) when the lease ran out; rings again for queued rows nobody came for

Everything that ends a claim is an UPDATE ... WHERE lease_number = mine AND state = 'running', so a worker that was taken
for dead can change nothing any more. The doorbell is written whatever the broker is: the embedded broker delivers it from
the table, with another broker the workers forward it. Losing one costs seconds, never a job.

Errors: NotFoundError for an unknown kind or job, ConflictError when the lease is no longer ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from sutdol.context import Context
from sutdol.db import Database, insert_for, upsert
from sutdol.errors import Cancelled, ConflictError, unknown
from sutdol.events import tell
from sutdol.tables import Job, JobAttempt, Message, new_id, now

RING_AGAIN_S = 5.0
"""Age of a doorbell after which the sweeper rings again; grows with the age of the job, up to RING_AGAIN_MAX_S."""
RING_AGAIN_MAX_S = 60.0
BACK_OFF_MAX_S = 60.0
CLOCK_PREFIX = "clock:"
"""How the unique keys of periodic jobs begin."""


@dataclass(frozen=True)
class JobKind:
    """Where a kind of job waits and how often it may be tried. Kind names are part of the protocol: changing one loses work."""

    queue: str
    max_attempts: int


KINDS: dict[str, JobKind] = {
    "train": JobKind("train", 3),
    "notify": JobKind("bridge", 6),
    "retrain.trigger": JobKind("bridge", 3),
    "retrain.import": JobKind("batch", 5),
    "retrain.freeze": JobKind("batch", 3),
    "retrain.export": JobKind("batch", 3),
    "retrain.preview": JobKind("batch", 2),
    "retrain.autolabel": JobKind("batch", 3),
    "retrain.labelquality": JobKind("batch", 3),
    "retrain.zeroshot": JobKind("batch", 3),
    "monitor": JobKind("bridge", 3),
    "registry.mirror": JobKind("bridge", 1),
    "retrain.evaluate": JobKind("batch", 3),
    "retrain.compress": JobKind("batch", 2),
    "retrain.convert": JobKind("batch", 2),
    "batch.predict": JobKind("batch", 10),
    "bridge.window": JobKind("bridge", 3),
    "bridge.push": JobKind("bridge", 3),
    "bridge.read": JobKind("bridge", 3),
    "bridge.hint": JobKind("bridge", 30),
    "bridge.sweep": JobKind("bridge", 3),
    "bridge.refresh": JobKind("bridge", 5),
    "bridge.reask": JobKind("bridge", 5),
    "bridge.quality": JobKind("bridge", 3),
    "bridge.export": JobKind("bridge", 3),
    "bridge.restore": JobKind("bridge", 3),
    "bridge.review": JobKind("bridge", 3),
    "bridge.adopt": JobKind("bridge", 3),
    "bridge.rotate": JobKind("bridge", 5),
}


def send(
    session: Session, kind: str, payload: dict[str, Any], *, unique_key: str | None = None, delay_s: float = 0.0
) -> str | None:
    """Insert a job into the caller's transaction; workers hear of it after the commit.

    Args:
        unique_key: single flight: while a job with this key is queued, no second one is made and None is returned (the
            queued one moves forward when this one would have been due earlier). A job sent while one with the same key is
            already *running* is queued behind it and starts after its end, so that no change is missed.
        delay_s: not before so many seconds from now.

    Returns:
        The job's id, or None when `unique_key` made it superfluous.

    Raises:
        NotFoundError: `kind` is not in KINDS.
    """
    if kind not in KINDS:
        raise unknown("job kind", kind, list(KINDS))
    at = now()
    job_id, queue, due = new_id(), KINDS[kind].queue, at + delay_s
    insert = insert_for(session)(Job).values(
        id=job_id,
        kind=kind,
        queue=queue,
        payload=payload,
        unique_key=unique_key,
        flight_key=unique_key,
        max_attempts=KINDS[kind].max_attempts,
        not_before=due,
        created_at=at,
        rung_at=due,
    )
    # An update and not "do nothing": it locks the queued row until the caller commits. A worker can then only claim it
    # after that, and so sees what the caller wrote, although the caller's own job was superfluous.
    earlier = sa.case((col(Job.not_before) > due, due), else_=col(Job.not_before))
    insert = insert.on_conflict_do_update(index_elements=["unique_key"], set_={"not_before": earlier}).returning(
        col(Job.id)
    )
    present = session.execute(insert).scalar_one()
    if present == job_id:
        _ring(session, job_id, queue, due)
        return job_id
    session.execute(
        sa.update(Message).where(col(Message.id) == present, col(Message.not_before) > due).values(not_before=due)
    )
    return None


def cancel(session: Session, job_id: str) -> None:
    """Ask a job to stop: a queued one ends at once, a running one at its next `Running.check_cancelled`.

    Nothing happens to a job that has ended.

    Raises:
        NotFoundError: there is no such job.
    """
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise unknown("job", job_id, [])
    if job.state == "running":
        job.cancel_requested = True
    elif job.state == "queued":
        job.state, job.unique_key, job.cancel_requested, job.finished_at = "cancelled", None, True, now()
        session.execute(sa.delete(Message).where(col(Message.id) == job_id))
    session.add(job)


def claim(
    database: Database, job_id: str, owner: str, *, lease_s: float, kinds: frozenset[str] | None = None
) -> Job | None:
    """Make a queued, due job ours for `lease_s` seconds.

    Args:
        kinds: take it only if it is one of these.

    Returns:
        The row as claimed, or None: it is not queued, not due, not one of `kinds`, or one with its key is running.
    """
    at = now()
    other = sa.orm.aliased(Job)
    in_flight = sa.exists().where(col(other.flight_key) == col(Job.flight_key), col(other.state) == "running")
    statement = (
        sa.update(Job)
        .where(col(Job.id) == job_id, col(Job.state) == "queued", col(Job.not_before) <= at, ~in_flight)
        .values(
            state="running",
            attempt=col(Job.attempt) + 1,
            lease_number=col(Job.lease_number) + 1,
            lease_owner=owner,
            lease_until=at + lease_s,
            unique_key=None,
            error=None,
        )
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    if kinds is not None:
        statement = statement.where(col(Job.kind).in_(kinds))
    try:
        with database.begin() as session:
            job = session.execute(statement).scalar_one_or_none()
            if job is not None:
                session.add(JobAttempt(job_id=job.id, attempt=job.attempt, owner=owner, started_at=at))
                session.flush()
                session.expunge(job)
    except (
        sa.exc.IntegrityError
    ):  # two of one flight key, claimed at the same moment: the index job_one_in_flight chose
        return None
    return job


def due(database: Database, kinds: frozenset[str]) -> list[str]:
    """Ids of queued jobs of these kinds that may start now, oldest first (at most 100)."""
    with database.read() as session:
        wanted = (col(Job.state) == "queued", col(Job.not_before) <= now(), col(Job.kind).in_(kinds))
        rows = session.execute(
            sa.select(col(Job.id)).where(*wanted).order_by(col(Job.not_before), col(Job.id)).limit(100)
        )
        return list(rows.scalars())


def renew(database: Database, job: Job, *, lease_s: float) -> bool:
    """The heartbeat: keep the claim for `lease_s` more seconds; False when it is no longer ours."""
    with database.begin() as session:
        return _renew(session, job, lease_s)


def finish(database: Database, job: Job, result: dict[str, Any] | None) -> None:
    """running -> done, with the result. Raises ConflictError when the lease is no longer ours (as do all four)."""
    with database.begin() as session:
        _end(session, job, "done", outcome="done", result=result)


def fail(database: Database, job: Job, error: str, *, retry: bool, back_off: float = 1.0) -> None:
    """This attempt failed: back to the queue after min(2**attempt, 60) s * `back_off`, or for good without attempts left.

    A job that somebody asked to cancel is not tried again.
    """
    with database.begin() as session:
        row = session.get_one(Job, job.id, with_for_update=True)
        if row.cancel_requested:
            _end(session, job, "cancelled", outcome="failed", error=error)
        elif retry and job.attempt < row.max_attempts:
            pause_s = min(2.0**job.attempt, BACK_OFF_MAX_S) * back_off
            _end(session, job, "queued", outcome="failed", error=error, not_before=now() + pause_s)
        else:
            _end(session, job, "failed", outcome="failed", error=error)
            tell(session, "job.failed", f"{job.kind} failed at attempt {job.attempt}: {error}", job_id=job.id)


def cancelled(database: Database, job: Job) -> None:
    """running -> cancelled: the handler stopped because somebody asked for it."""
    with database.begin() as session:
        _end(session, job, "cancelled", outcome="cancelled")


def release(database: Database, job: Job) -> None:
    """Hand a running job back at shutdown. The attempt stands in the history but is not counted against the job."""
    with database.begin() as session:
        _end(session, job, "queued", outcome="released", max_attempts=col(Job.max_attempts) + 1, not_before=now())


def ring(database: Database, job_id: str) -> None:
    """Ring for a job again, if it is still queued: its doorbell reached somebody who cannot take it."""
    with database.begin() as session:
        job = session.get(Job, job_id)
        if job is not None and job.state == "queued":
            _ring(session, job.id, job.queue, job.not_before)


def sweep(database: Database) -> int:
    """Take jobs away from workers that stopped beating, and ring again for queued jobs nobody came for.

    Any process may do it at any time; every step is conditional. Returns how many jobs were abandoned.
    """
    at = now()
    with database.read() as session:
        abandoned = session.scalars(sa.select(Job).where(col(Job.state) == "running", col(Job.lease_until) < at)).all()
        waiting = session.scalars(
            sa.select(Job).where(
                col(Job.state) == "queued", col(Job.not_before) <= at, col(Job.rung_at) < at - RING_AGAIN_S
            )
        ).all()
    count = sum(_abandon(database, job) for job in abandoned)
    silent = [job for job in waiting if at - job.rung_at > min(RING_AGAIN_MAX_S, (at - job.not_before) / 4)]
    if silent:
        with database.begin() as session:
            for job in silent:
                old = (col(Job.id) == job.id, col(Job.state) == "queued", col(Job.rung_at) == job.rung_at)
                if session.execute(sa.update(Job).where(*old).values(rung_at=at).returning(col(Job.id))).first():
                    upsert(session, _doorbell(job.id, job.queue, at), keys=["id"], update=[])
    return count


def prune(database: Database, key_prefix: str, older_than_s: float) -> int:
    """Forget jobs that ended `older_than_s` ago and were sent with a unique key that begins so; how many."""
    old = (col(Job.finished_at) < now() - older_than_s, col(Job.flight_key).startswith(key_prefix, autoescape=True))
    with database.begin() as session:
        gone = list(session.execute(sa.delete(Job).where(*old).returning(col(Job.id))).scalars())
        for start in range(0, len(gone), 500):
            ids = gone[start : start + 500]
            session.execute(sa.delete(JobAttempt).where(col(JobAttempt.job_id).in_(ids)))
    return len(gone)


class Running:
    """What a handler is given: its job, claimed under a lease that a background thread keeps alive.

    Attributes:
        context: settings, database, store of this worker.
        job_id, attempt, payload: of the row; `attempt` counts from 1.
        lost: the lease is known to be somebody else's, nothing can be committed any more.
    """

    def __init__(self, context: Context, job: Job) -> None:
        self.context = context
        self.job = job
        self.job_id = job.id
        self.attempt = job.attempt
        self.payload: dict[str, Any] = job.payload
        self.lost = False
        self._progress: dict[str, Any] = dict(job.progress or {})

    def report(self, **progress: Any) -> None:
        """Store progress on the row (merged, shown to people); also a heartbeat. Not inside `commit`, it has its own.

        Raises:
            ConflictError: the lease is no longer ours.
        """
        self._progress |= progress
        with self._fenced(progress=self._progress):
            pass

    def check_cancelled(self) -> None:
        """Raise `errors.Cancelled` when somebody asked for it, `errors.ConflictError` when the lease is no longer ours."""
        with self.context.database.read() as session:
            columns = (col(Job.lease_number), col(Job.state), col(Job.cancel_requested))
            row = session.execute(sa.select(*columns).where(col(Job.id) == self.job_id)).one_or_none()
        if row is None or row[0] != self.job.lease_number or row[1] != "running":
            self.lost = True
        if self.lost:
            raise _lost(self.job)
        if row is not None and row[2]:
            raise Cancelled(f"job {self.job_id} was cancelled")

    @contextmanager
    def commit(self) -> Iterator[Session]:
        """A writing transaction that commits only while the lease is still ours; else ConflictError and nothing written."""
        with self._fenced() as session:
            yield session

    @contextmanager
    def _fenced(self, **values: Any) -> Iterator[Session]:
        # The update comes first: it locks the row, so nobody can take the job away before the commit.
        with self.context.database.begin() as session:
            if self.lost or not _renew(session, self.job, self.context.settings.lease_s, **values):
                self.lost = True
                raise _lost(self.job)
            yield session


Handler = Callable[[Running], dict[str, Any] | None]
"""Does the work and returns the result for the row. Looks before it acts: it may be the second attempt.

Any SutdolError ends the attempt as failed with its text; any other exception too, with the traceback in the log. Both are
tried again until `JobKind.max_attempts`, InputError and Cancelled are not.
"""


def actor_name(queue: str) -> str:
    """The Dramatiq actor that answers the doorbells of `queue`."""
    return f"sutdol.work.{queue}"


def _doorbell(job_id: str, queue: str, not_before: float) -> Message:
    """A Dramatiq message as its JSON encoder would write it, so that `send` needs no Dramatiq. One per job at a time."""
    at = now()
    fields = {
        "queue_name": queue,
        "actor_name": actor_name(queue),
        "args": [job_id],
        "kwargs": {},
        "options": {},
        "message_id": job_id,
        "message_timestamp": int(at * 1000),
    }
    body = json.dumps(fields, separators=(",", ":"))
    return Message(id=job_id, queue=queue, body=body, not_before=not_before, lease_until=0.0, created_at=at)


def _ring(session: Session, job_id: str, queue: str, not_before: float) -> None:
    """Ring at `not_before`, whatever became of an earlier doorbell for this job: it may be in the hands of a dead worker."""
    update = ["body", "not_before", "lease_owner", "lease_until"]
    upsert(session, _doorbell(job_id, queue, not_before), keys=["id"], update=update)


def _mine(job: Job) -> tuple[sa.ColumnElement[bool], ...]:
    return (col(Job.id) == job.id, col(Job.lease_number) == job.lease_number, col(Job.state) == "running")


def _lost(job: Job) -> ConflictError:
    return ConflictError(f"job {job.id}: the lease {job.lease_number} was lost, somebody else may be working on it")


def _renew(session: Session, job: Job, lease_s: float, **values: Any) -> bool:
    statement = sa.update(Job).where(*_mine(job)).values(lease_until=now() + lease_s, **values).returning(col(Job.id))
    return session.execute(statement.execution_options(synchronize_session=False)).first() is not None


def _end(session: Session, job: Job, state: str, *, outcome: str, error: str | None = None, **values: Any) -> None:
    """The one way out of `running`: row, history, doorbells for whoever waits behind it."""
    at = now()
    values |= {"state": state, "error": error, "lease_owner": None, "lease_until": None}
    if state == "queued":
        values["rung_at"] = values["not_before"]
    else:
        values["finished_at"] = at
    statement = sa.update(Job).where(*_mine(job)).values(**values).returning(col(Job.id))
    if session.execute(statement.execution_options(synchronize_session=False)).first() is None:
        raise _lost(job)
    session.execute(
        sa.update(JobAttempt)
        .where(col(JobAttempt.job_id) == job.id, col(JobAttempt.attempt) == job.attempt)
        .values(ended_at=at, outcome=outcome, error=error)
    )
    if state == "queued":
        _ring(session, job.id, job.queue, values["not_before"])
    if job.flight_key is not None:
        columns = (col(Job.id), col(Job.queue), col(Job.not_before))
        behind = (col(Job.flight_key) == job.flight_key, col(Job.state) == "queued", col(Job.id) != job.id)
        for job_id, queue, not_before in session.execute(sa.select(*columns).where(*behind)).all():
            _ring(session, job_id, queue, not_before)


def _abandon(database: Database, job: Job) -> bool:
    """Take the job away from a worker whose lease ran out; False when it beat again or somebody was quicker."""
    with database.begin() as session:
        row = session.get(Job, job.id, with_for_update=True)
        if row is None or row.lease_number != job.lease_number or row.state != "running":
            return False
        if row.lease_until is None or row.lease_until >= now():
            return False
        text = f"the worker {row.lease_owner} stopped beating at attempt {row.attempt} of {row.kind}"
        session.expunge(row)
        if row.cancel_requested:
            _end(session, row, "cancelled", outcome="abandoned", error=text)
        elif row.attempt < row.max_attempts:
            _end(session, row, "queued", outcome="abandoned", not_before=now())
        else:
            _end(session, row, "failed", outcome="abandoned", error=text)
        tell(session, "job.abandoned", text, job_id=row.id, attempt=row.attempt)
        return True
