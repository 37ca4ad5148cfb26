"""The worker process: doorbells in, handlers run, job rows out.

    doorbell -> claim -> handler(Running) in a Dramatiq thread, a heartbeat thread beside it -> finish | fail | cancelled

One Dramatiq worker per queue, in this process, so that a training never holds up the bridge. The main thread keeps house:
it sweeps when it leads, forwards doorbells to a broker that is not the database, and shows that this process lives.
On SIGTERM or SIGINT nothing more is taken, running handlers get a grace time, what then still runs is handed back.

Errors: a handler's own errors end the attempt (see `rows.Handler`); SetupError at the start; the house-keeping logs what
it could not do and tries again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dramatiq
import structlog

from sutdol.context import Context, open_context
from sutdol.errors import Cancelled, ConflictError, InputError, SetupError, SutdolError
from sutdol.jobs import lease, rows
from sutdol.jobs.brokers import forward, is_embedded, open_broker
from sutdol.jobs.process import living, stop_signals, stop_sweeping, stopped, sweep_as_leader, sweep_every
from sutdol.jobs.rows import CLOCK_PREFIX, KINDS, Handler, Running
from sutdol.settings import Settings

THREADS = {"train": 1, "batch": 2}
"""Jobs of a queue that run at once in one process; DEFAULT_THREADS where nothing is said."""
DEFAULT_THREADS = 4
GRACE_S = 5.0
"""What running handlers get after SIGTERM before their jobs are handed back."""
UNWIND_S = 2.0
"""After that, what handlers get to notice at `check_cancelled` that they lost their job."""
TICK_S = 0.2

log = structlog.get_logger(__name__)


def run(
    settings: Settings,
    queues: list[str],
    handlers: Mapping[str, Handler],
    *,
    threads: int | None = None,
    grace_s: float = GRACE_S,
) -> None:
    """Work on `queues` until SIGTERM or SIGINT; to be called from the main thread of a process of its own.

    Args:
        handlers: kind -> handler; every kind of every queue must be there.
        threads: jobs at once per queue, instead of THREADS.
        grace_s: seconds that running handlers get at the end.

    Raises:
        SetupError: a queue nobody knows or without a handler for one of its kinds; database or broker cannot be opened.
    """
    _check(queues, handlers)
    context = open_context(settings)
    stop = stop_signals()
    crew = Crew(context, handlers)
    workers = [crew.listen(queue, threads or THREADS.get(queue, DEFAULT_THREADS)) for queue in queues]
    log.info("worker started", queues=queues, owner=crew.owner)
    with living(context, "work") as beat:
        house = _House(context, crew.owner, crew.brokers)
        while not stopped(stop, TICK_S):
            try:
                beat()
                house.keep()
            except Exception:  # the outermost loop: whatever fails here is tried again, the handlers go on meanwhile
                log.exception("house-keeping failed")
        log.info("worker stops", running=len(crew.running))
        stop_sweeping(context, crew.owner)
        left = crew.stop(workers, grace_s)
    context.database.close()
    if left:
        # Handlers that do not return would be torn down in mid-flight by the interpreter's own end, which may crash.
        log.warning("worker leaves with handlers still running", jobs=left)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def run_pending(context: Context, handlers: Mapping[str, Handler]) -> int:
    """Claim and run every due queued job of these kinds in this thread until none is left; how many attempts were made.

    For tests and one-shot commands; needs no broker and no worker.
    """
    owner, kinds, count = lease.owner_name(), frozenset(handlers), 0
    while True:
        before = count
        for job_id in rows.due(context.database, kinds):
            job = rows.claim(context.database, job_id, owner, lease_s=context.settings.lease_s, kinds=kinds)
            if job is not None:
                _attempt(Running(context, job), handlers[job.kind])
                count += 1
        if count == before:
            return count


class Crew:
    """The handlers of one process, the jobs they are at, and the brokers they listen to."""

    def __init__(self, context: Context, handlers: Mapping[str, Handler]) -> None:
        self.context = context
        self.handlers = handlers
        self.owner = lease.owner_name()
        self.brokers: dict[str, dramatiq.Broker] = {}
        self.running: dict[str, Running] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def listen(self, queue: str, threads: int) -> dramatiq.Worker:
        """Start a Dramatiq worker of its own for `queue`, which never has more messages in hand than threads."""
        broker = open_broker(self.context)
        name = rows.actor_name(queue)
        dramatiq.Actor(self.answer, broker=broker, actor_name=name, queue_name=queue, priority=0, options={})
        worker = dramatiq.Worker(broker, queues={queue}, worker_timeout=200, worker_threads=threads)
        worker.queue_prefetch = threads
        worker.start()
        self.brokers[queue] = broker
        return worker

    def answer(self, job_id: str) -> None:
        """The actor of every queue: claim the job behind a doorbell and run its handler; nothing if somebody else did."""
        settings = self.context.settings
        with self._lock:
            if self._stopping.is_set():
                rows.ring(
                    self.context.database, job_id
                )  # for another worker; this doorbell is about to be acknowledged
                return
            job = rows.claim(
                self.context.database, job_id, self.owner, lease_s=settings.lease_s, kinds=frozenset(self.handlers)
            )
            if job is None:
                return
            running = self.running[job_id] = Running(self.context, job)
        try:
            _attempt(running, self.handlers[job.kind])
        finally:
            with self._lock:
                self.running.pop(job_id, None)

    def stop(self, workers: list[dramatiq.Worker], grace_s: float) -> list[str]:
        """Take nothing more, wait for the handlers, hand back what does not end; ids of jobs whose handlers still run."""
        with self._lock:
            self._stopping.set()
        for worker in workers:
            for thread in worker.workers:
                thread.stop()
        self._wait(grace_s)
        for running in list(self.running.values()):
            try:
                rows.release(self.context.database, running.job)
                running.lost = True
            except ConflictError:
                continue  # it ended just now
        self._wait(UNWIND_S)
        for worker in workers:
            worker.stop(timeout=1_000 if self.running else 5_000)
        for broker in self.brokers.values():
            broker.close()
        return list(self.running)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)


class _House:
    """What every worker does beside its handlers: forward doorbells, and sweep while it leads."""

    def __init__(self, context: Context, owner: str, brokers: dict[str, dramatiq.Broker]) -> None:
        self._context = context
        self._owner = owner
        self._outside = {queue: broker for queue, broker in brokers.items() if not is_embedded(broker)}
        self._sweep_at = 0.0

    def keep(self) -> None:
        for queue, broker in self._outside.items():
            forward(self._context, broker, [queue])
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + sweep_every(self._context.settings)
            sweep_as_leader(self._context, self._owner)


def _check(queues: list[str], handlers: Mapping[str, Handler]) -> None:
    known = sorted({kind.queue for kind in KINDS.values()})
    for queue in queues:
        if queue not in known:
            raise SetupError(f"unknown queue {queue!r}", hint=f"known: {', '.join(known)}")
        unbound = [name for name, kind in KINDS.items() if kind.queue == queue and name not in handlers]
        if unbound:
            raise SetupError(f"queue {queue!r}: no handler for {', '.join(unbound)}", hint="a missing extra?")


def _attempt(running: Running, handler: Handler) -> None:
    """One attempt at a claimed job: the handler under a kept lease, then the row says how it ended."""
    job = running.job
    told = log.bind(job=job.id, kind=job.kind, attempt=job.attempt)
    note = told.debug if (job.flight_key or "").startswith(CLOCK_PREFIX) else told.info
    note("job started")
    try:
        with _heartbeat(running):
            _run(running, handler)
    except ConflictError as error:
        told.warning("job lost", error=str(error))
    else:
        note("job ended")


def _run(running: Running, handler: Handler) -> None:
    database, job = running.context.database, running.job
    back_off = min(1.0, running.context.settings.lease_s / 12)
    try:
        result = handler(running)
    except Cancelled:
        rows.cancelled(database, job)
    except SutdolError as error:
        if running.lost:
            raise
        rows.fail(database, job, str(error), retry=not isinstance(error, InputError), back_off=back_off)
    except Exception as error:  # the outermost loop of a handler: recorded on the row, told in full in the log
        log.exception("job failed unexpectedly", job=job.id, kind=job.kind)
        rows.fail(database, job, f"{type(error).__name__}: {error}", retry=True, back_off=back_off)
    else:
        rows.finish(database, job, result)


@contextmanager
def _heartbeat(running: Running) -> Iterator[None]:
    """Renew the lease every `heartbeat_s` while the block runs."""
    settings = running.context.settings
    done = threading.Event()

    def keep() -> None:
        while not done.wait(settings.heartbeat_s) and not running.lost:
            try:
                running.lost = not rows.renew(running.context.database, running.job, lease_s=settings.lease_s)
            except Exception:  # the outermost loop of this thread: the lease outlives a few missed beats
                log.exception("heartbeat failed", job=running.job_id)

    thread = threading.Thread(target=keep, name=f"heartbeat-{running.job_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
