"""Worker and clock as real processes that are killed, suspended, stopped, and whose work survives it."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from sutdol.context import Context, open_context
from sutdol.errors import SetupError
from sutdol.jobs import KINDS, Running, cancel, lease, rows, send, worker
from sutdol.jobs.clock import PERIODIC
from sutdol.jobs.process import sweep_every
from sutdol.settings import Settings, load
from sutdol.tables import Event, Job, JobAttempt, Replica
from tests.job_processes import Processes, Started, Step, postgres, redis, steps, wait_for

SHORT: dict[str, Any] = {"lease_s": 2.0, "heartbeat_s": 0.3, "clock_tick_s": 0.2, "window_interval_s": 0.2}


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Context]:
    """A context with short leases."""
    opened = open_context(load(home=tmp_path / "home", **SHORT))
    yield opened
    opened.database.close()


@pytest.fixture
def processes(ground: Context) -> Iterator[Processes]:
    started = Processes(ground.settings)
    yield started
    started.close()


def _send(context: Context, kind: str = "train", **payload: Any) -> str:
    with context.database.begin() as session:
        job_id = send(session, kind, payload)
    assert job_id is not None
    return job_id


def _job(context: Context, job_id: str) -> Job:
    with context.database.read() as session:
        return session.get_one(Job, job_id)


def _ended(context: Context, job_id: str) -> Callable[[], bool]:
    return lambda: _job(context, job_id).state in ("done", "failed", "cancelled")


def _attempts(context: Context, job_id: str) -> list[str | None]:
    with context.database.read() as session:
        found = session.exec(select(JobAttempt).where(JobAttempt.job_id == job_id)).all()
    return [attempt.outcome for attempt in sorted(found, key=lambda attempt: attempt.attempt)]


def _done_events(context: Context) -> list[str]:
    with context.database.read() as session:
        return [event.text for event in session.exec(select(Event).where(Event.kind == "test.done"))]


def _suspend(context: Context, process: Started) -> None:
    """SIGSTOP, but not in the middle of a write: SQLite's lock would be held for as long as it sleeps."""
    while True:
        process.send_signal(signal.SIGSTOP)
        probe = sqlite3.connect(context.settings.home / "sutdol.db", timeout=0.5, isolation_level=None)
        try:
            probe.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
        finally:
            probe.close()


def _start_of(settings: Settings, pid: int) -> Step:
    step: Step = wait_for(
        lambda: next((s for s in steps(settings, "start") if s.pid == pid), None), f"{pid} starts a job"
    )
    return step


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "redis"])
def test_a_killed_workers_job_is_done_by_another(kind: str, tmp_path: Path) -> None:
    """The promise of DESIGN section 4, whatever carries the doorbells: kill -9 costs a lease, not the job."""
    with ExitStack() as stack:
        urls = {}
        if kind == "postgresql":
            urls["database_url"] = stack.enter_context(postgres())
        if kind == "redis":
            urls["broker_url"] = stack.enter_context(redis())
        context = open_context(load(home=tmp_path / "home", **SHORT, **urls))
        stack.callback(context.database.close)
        processes = Processes(context.settings)
        stack.callback(processes.close)

        first = processes.start("work", "train", 5)
        job_id = _send(context, name="long", gate="gate")
        _start_of(context.settings, first.pid)
        second = processes.start("work", "train", 5)
        first.kill()
        first.wait()
        _start_of(context.settings, second.pid)
        (context.settings.home / "gate").touch()
        wait_for(_ended(context, job_id), "the job ends")
        job = _job(context, job_id)
        assert (job.state, job.result) == ("done", {"pid": second.pid})
        assert job.progress == {"pid_1": first.pid, "pid_2": second.pid}, "progress of both attempts stands on the row"
        assert _attempts(context, job_id) == ["abandoned", "done"]
        assert _done_events(context) == ["long"]


def test_with_default_settings_a_job_is_taken_over_within_twenty_seconds() -> None:
    """The sum of everything that has to pass after the last heartbeat, at its longest."""
    settings = load()
    sweeper_lease = settings.lease_s / 2  # the dead worker may have been the sweeper; runs beside the job's own lease
    assert max(settings.lease_s, sweeper_lease) + sweep_every(settings) + worker.TICK_S + 1.0 < 20
    assert settings.heartbeat_s * 3 < settings.lease_s, "two lost heartbeats are not a death"


def test_two_workers_do_every_job_once(ground: Context, processes: Processes) -> None:
    """Every completion is one event; a job done twice would register two models."""
    for _ in range(2):
        processes.start("work", "bridge", 5)
    ids = [_send(ground, "bridge.window", name=f"job{n}") for n in range(24)]
    for job_id in ids:
        wait_for(_ended(ground, job_id), "all jobs end")
    assert sorted(_done_events(ground)) == sorted(f"job{n}" for n in range(24))
    assert all(_attempts(ground, job_id) == ["done"] for job_id in ids)


def test_a_suspended_worker_finds_its_job_taken_and_writes_nothing(ground: Context, processes: Processes) -> None:
    """A laptop that slept, a stalled disk: the old worker believes it still owns the job."""
    first = processes.start("work", "train", 5)
    job_id = _send(ground, name="contested", gate="gate", deaf=True)
    _start_of(ground.settings, first.pid)
    second = processes.start("work", "train", 5)
    _suspend(ground, first)
    _start_of(ground.settings, second.pid)
    (ground.settings.home / "gate").touch()
    wait_for(_ended(ground, job_id), "the second worker ends it")
    first.send_signal(signal.SIGCONT)
    log = ground.settings.home / "process-0.log"
    wait_for(lambda: "job lost" in log.read_text(), "the first worker notices")
    assert _done_events(ground) == ["contested"]
    assert _job(ground, job_id).result == {"pid": second.pid}
    assert _attempts(ground, job_id) == ["abandoned", "done"]


def test_sigterm_hands_back_what_does_not_end_and_keeps_what_waits(ground: Context, processes: Processes) -> None:
    """Deployments stop workers in mid-training; the next one goes on, and the queue behind it is whole."""
    first = processes.start("work", "train", 0.1)
    long = _send(ground, name="long", gate="gate", deaf=True)
    _start_of(ground.settings, first.pid)
    queued = [_send(ground, name=f"queued{n}") for n in range(3)]
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 0
    job = _job(ground, long)
    assert (job.state, _attempts(ground, long)) == ("queued", ["released"])
    assert [_job(ground, job_id).attempt for job_id in queued] == [0, 0, 0], (
        "a training waits in the queue, not in a worker"
    )
    with ground.database.read() as session:
        assert session.exec(select(Replica)).all() == []
    (ground.settings.home / "gate").touch()
    processes.start("work", "train", 5)
    for job_id in (long, *queued):
        wait_for(_ended(ground, job_id), "everything ends")
    assert sorted(_done_events(ground)) == ["long", "queued0", "queued1", "queued2"]


def test_sigterm_lets_a_short_job_finish(ground: Context, processes: Processes) -> None:
    """Handing back is for long jobs; the others are cheaper finished than repeated."""
    process = processes.start("work", "train", 20)
    job_id = _send(ground, name="short", gate="gate")
    _start_of(ground.settings, process.pid)
    process.send_signal(signal.SIGTERM)
    (ground.settings.home / "gate").touch()
    assert process.wait(timeout=30) == 0
    assert _attempts(ground, job_id) == ["done"]


def test_a_worker_shows_that_it_lives_and_a_running_job_can_be_cancelled(ground: Context, processes: Processes) -> None:
    """What people see and what they press."""
    process = processes.start("work", "train", 5)
    job_id = _send(ground, name="unwanted", gate="never")
    _start_of(ground.settings, process.pid)
    with ground.database.read() as session:
        (replica,) = session.exec(select(Replica)).all()
    assert (replica.role, replica.pid) == ("work", process.pid)
    with ground.database.begin() as session:
        cancel(session, job_id)
    wait_for(_ended(ground, job_id), "the job ends")
    assert _job(ground, job_id).state == "cancelled"
    assert _done_events(ground) == []


def test_the_clock_sends_without_piling_up_and_its_successor_takes_over(ground: Context, processes: Processes) -> None:
    """Nobody works here, many intervals pass, and still each job waits once."""
    first, second = processes.start("clock"), processes.start("clock")

    def jobs() -> list[str]:
        with ground.database.read() as session:
            return sorted(job.kind for job in session.exec(select(Job)))

    wait_for(lambda: jobs() == sorted(PERIODIC), "everything is sent")
    for process in (first, second):
        with ground.database.begin() as session:
            for job in session.exec(select(Job)):
                session.delete(job)
        wait_for(lambda: len(jobs()) >= 3, "a clock sends again")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert len(jobs()) == len(set(jobs()))
    with ground.database.read() as session:
        assert session.exec(select(Replica)).all() == []
    assert lease.acquire(ground.database, "clock", "me", 1), "the last one gave the lease back"


def test_a_worker_without_a_handler_it_needs_does_not_start(ground: Context) -> None:
    """Half a worker would take doorbells from those that can do the job."""
    with pytest.raises(SetupError, match=r"'bridge': no handler for bridge\.push"):
        worker.run(ground.settings, ["bridge"], dict.fromkeys(set(KINDS) - {"bridge.push"}, lambda running: None))
    with pytest.raises(SetupError, match=r"unknown queue 'gpu'.*bridge, train"):
        worker.run(ground.settings, ["gpu"], {})


def test_a_handler_that_loses_its_lease_hears_of_it(ground: Context) -> None:
    """check_cancelled is the one place a training looks at, so it must tell about both."""
    job_id = _send(ground)
    seen: list[bool] = []

    def handler(running: Running) -> None:
        with ground.database.begin() as session:
            session.get_one(Job, job_id).lease_number += 1
        try:
            wait_for(lambda: running.lost, "the heartbeat notices")
            running.check_cancelled()
        finally:
            seen.append(running.lost)

    assert worker.run_pending(ground, {"train": handler}) == 1
    assert seen == [True]
    assert _job(ground, job_id).state == "running", "it belongs to somebody else; the row is not touched"
    assert rows.due(ground.database, frozenset({"train"})) == []
