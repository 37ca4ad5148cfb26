"""The life of a job row, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from sqlmodel import select

from sutdol.context import Context, open_context
from sutdol.errors import Cancelled, ConflictError, InputError, NotFoundError, StudioError
from sutdol.jobs import Running, cancel, rows, send
from sutdol.jobs.worker import run_pending
from sutdol.settings import load
from sutdol.tables import Event, Job, JobAttempt, Message, Secret, now
from tests.job_processes import empty, postgres


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """A context with an empty database; a failed attempt is tried again after a blink."""
    options: dict[str, Any] = {"home": tmp_path / "home", "lease_s": 0.2, "heartbeat_s": 0.05}
    if request.param == "postgresql":
        options["database_url"] = request.getfixturevalue("postgres_url")
    opened = open_context(load(**options))
    empty(opened)
    yield opened
    opened.database.close()


def _send(context: Context, kind: str = "train", **options: Any) -> str:
    with context.database.begin() as session:
        job_id = send(session, kind, {"run_id": "r1"}, **options)
    assert job_id is not None
    return job_id


def _claim(context: Context, job_id: str, lease_s: float = 30.0) -> Job:
    job = rows.claim(context.database, job_id, "worker", lease_s=lease_s)
    assert job is not None
    return job


def _job(context: Context, job_id: str) -> Job:
    with context.database.read() as session:
        return session.get_one(Job, job_id)


def _outcomes(context: Context, job_id: str) -> list[str | None]:
    with context.database.read() as session:
        mine = select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.attempt)  # type: ignore[arg-type]
        return [attempt.outcome for attempt in session.exec(mine)]


def _events(context: Context) -> list[str]:
    with context.database.read() as session:
        return [event.kind for event in session.exec(select(Event))]


def _run_until_idle(context: Context, handler: Any, job_id: str) -> Job:
    """Run it as often as it is tried, waiting out the back-off."""
    with context.database.begin() as session:
        session.get_one(Job, job_id).not_before = 0.0
    while run_pending(context, {"train": handler}):
        with context.database.begin() as session:
            session.get_one(Job, job_id).not_before = 0.0
    return _job(context, job_id)


def test_a_sent_job_runs_once_and_keeps_its_result(ground: Context) -> None:
    """The shortest road: sent, claimed, done, and nothing left to do."""
    job_id = _send(ground)
    seen: list[tuple[int, Any]] = []

    def handler(running: Running) -> dict[str, Any]:
        seen.append((running.attempt, running.payload))
        running.report(epoch=1)
        running.report(loss=0.5)
        return {"version": 2}

    assert run_pending(ground, {"train": handler}) == 1
    assert run_pending(ground, {"train": handler}) == 0
    job = _job(ground, job_id)
    assert (job.state, job.result, job.progress) == ("done", {"version": 2}, {"epoch": 1, "loss": 0.5})
    assert seen == [(1, {"run_id": "r1"})]
    assert _outcomes(ground, job_id) == ["done"]


def test_a_job_sent_in_a_rolled_back_transaction_never_was(ground: Context) -> None:
    """Job and cause are one: half of it would train on labels that do not exist."""

    def fall() -> None:
        with ground.database.begin() as session:
            send(session, "train", {}, unique_key="k")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fall()
    with ground.database.read() as session:
        assert session.exec(select(Job)).all() == []
        assert session.exec(select(Message)).all() == []


def test_an_unknown_kind_is_refused_by_name(ground: Context) -> None:
    """A typing error in a job's name must not become a row that nobody works on."""
    with pytest.raises(NotFoundError, match=r"trian.*known: train"), ground.database.begin() as session:
        send(session, "trian", {})


def test_a_doorbell_is_a_message_dramatiq_can_read(ground: Context) -> None:
    """It is written without Dramatiq, so that the serving process need not load it."""
    job_id = _send(ground)
    with ground.database.read() as session:
        body = session.get_one(Message, job_id).body
    message: dramatiq.Message[Any] = dramatiq.Message.decode(body.encode())
    assert (message.queue_name, message.actor_name, message.args) == ("train", "sutdol.work.train", (job_id,))


def test_a_unique_key_lets_one_wait_and_one_follow_the_running_one(ground: Context) -> None:
    """Ten changes need one more look, not ten; a change during the look needs another one, after it."""
    first = _send(ground, unique_key="k")
    with ground.database.begin() as session:
        assert send(session, "train", {}, unique_key="k") is None
    running = _claim(ground, first)
    second = _send(ground, unique_key="k")
    assert rows.claim(ground.database, second, "other", lease_s=30) is None
    with ground.database.begin() as session:
        session.delete(session.get_one(Message, second))
    rows.finish(ground.database, running, None)
    with ground.database.read() as session:
        assert session.get(Message, second) is not None, "the end of the first rings for the second"
    assert _claim(ground, second).attempt == 1


def test_a_superfluous_job_that_is_due_earlier_moves_the_waiting_one_forward(ground: Context) -> None:
    """Somebody who asks for it now must not wait for the one that was planned for tonight."""
    waiting = _send(ground, unique_key="k", delay_s=3600)
    assert rows.claim(ground.database, waiting, "worker", lease_s=30) is None
    with ground.database.begin() as session:
        assert send(session, "train", {}, unique_key="k") is None
    with ground.database.read() as session:
        assert session.get_one(Message, waiting).not_before <= now()
    _claim(ground, waiting)


def test_many_claims_at_once_have_one_winner(ground: Context) -> None:
    """Doorbells come twice, and two workers then run for the same door."""
    job_id, winners = _send(ground), []
    start = threading.Barrier(6)

    def race(n: int) -> None:
        start.wait()
        if rows.claim(ground.database, job_id, f"w{n}", lease_s=30) is not None:
            winners.append(n)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert _outcomes(ground, job_id) == [None]


def test_a_claim_takes_only_the_kinds_it_can_do(ground: Context) -> None:
    """During an upgrade an old worker meets kinds it has no handler for; they wait for a newer one."""
    job_id = _send(ground)
    assert rows.claim(ground.database, job_id, "old", lease_s=30, kinds=frozenset({"bridge.read"})) is None
    assert _job(ground, job_id).state == "queued"


@pytest.mark.parametrize("error", [StudioError("down"), ZeroDivisionError("oops")])
def test_a_failing_job_is_tried_as_often_as_its_kind_says(ground: Context, error: Exception) -> None:
    """Label Studio restarts, disks fill up for a minute; but not for ever."""
    job_id = _send(ground)

    def handler(running: Running) -> None:
        raise error

    job = _run_until_idle(ground, handler, job_id)
    assert (job.state, job.attempt) == ("failed", 3)
    assert str(error) in (job.error or "")
    assert _outcomes(ground, job_id) == ["failed"] * 3
    assert _events(ground) == ["job.failed"]


def test_a_failed_attempt_waits_longer_each_time(ground: Context) -> None:
    """A server that is down is not helped by being asked at once."""
    job_id, pauses = _send(ground), []
    for _ in range(2):
        before = now()
        rows.fail(ground.database, _claim(ground, job_id), "down", retry=True)
        with ground.database.begin() as session:
            row = session.get_one(Job, job_id)
            pauses.append(row.not_before - before)
            assert session.get_one(Message, job_id).not_before == row.not_before
            row.not_before = 0.0
    assert pauses[0] >= 2
    assert pauses[1] >= 4


def test_wrong_input_is_not_tried_again(ground: Context) -> None:
    """The same data set will be as broken the second time."""
    job_id = _send(ground)

    def handler(running: Running) -> None:
        raise InputError("labels/0007.txt:3: expected 5 numbers")

    job = _run_until_idle(ground, handler, job_id)
    assert (job.state, job.attempt, job.error) == ("failed", 1, "labels/0007.txt:3: expected 5 numbers")


def test_a_queued_job_is_cancelled_at_once(ground: Context) -> None:
    """Nobody should wait for a job to start only to stop it."""
    job_id = _send(ground, unique_key="k")
    with ground.database.begin() as session:
        cancel(session, job_id)
    assert run_pending(ground, {"train": lambda running: None}) == 0
    assert _job(ground, job_id).state == "cancelled"
    _send(ground, unique_key="k")


def test_a_running_job_is_cancelled_where_it_looks(ground: Context) -> None:
    """Training stops between batches, and what it had written stays whole."""
    job_id = _send(ground)

    def handler(running: Running) -> None:
        running.check_cancelled()
        with ground.database.begin() as session:
            cancel(session, running.job_id)
        running.check_cancelled()

    job = _run_until_idle(ground, handler, job_id)
    assert (job.state, job.attempt) == ("cancelled", 1)
    assert _outcomes(ground, job_id) == ["cancelled"]


def test_a_cancelled_job_that_fails_instead_is_not_tried_again(ground: Context) -> None:
    """Whatever the handler dies of after the cancel, nobody wants the next attempt."""
    job_id = _send(ground)
    job = _claim(ground, job_id)
    with ground.database.begin() as session:
        cancel(session, job_id)
    rows.fail(ground.database, job, "died", retry=True)
    assert _job(ground, job_id).state == "cancelled"


def test_cancelling_what_has_ended_changes_nothing_and_what_never_was_is_an_error(ground: Context) -> None:
    """The button is pressed twice; the id is mistyped."""
    job_id = _send(ground)
    rows.finish(ground.database, _claim(ground, job_id), None)
    with ground.database.begin() as session:
        cancel(session, job_id)
    assert _job(ground, job_id).state == "done"
    with pytest.raises(NotFoundError), ground.database.begin() as session:
        cancel(session, "nobody")


def test_a_stale_worker_can_write_nothing(ground: Context) -> None:
    """A worker that was suspended wakes up after another has taken over; its model must not be registered."""
    job_id = _send(ground)
    stale = _claim(ground, job_id, lease_s=-1.0)
    assert rows.sweep(ground.database) == 1
    fresh = _claim(ground, job_id)
    running = Running(ground, stale)
    with pytest.raises(ConflictError), running.commit() as session:
        session.add(Secret(name="half", value="written"))
    for write in (
        lambda: running.report(epoch=9),
        running.check_cancelled,
        lambda: rows.finish(ground.database, stale, {}),
        lambda: rows.fail(ground.database, stale, "late", retry=True),
        lambda: rows.cancelled(ground.database, stale),
        lambda: rows.release(ground.database, stale),
    ):
        with pytest.raises(ConflictError):
            write()
    assert not rows.renew(ground.database, stale, lease_s=30)
    job = _job(ground, job_id)
    assert (job.state, job.lease_number, job.progress) == ("running", 2, None)
    with ground.database.read() as session:
        assert session.get(Secret, "half") is None
    Running(ground, fresh).check_cancelled()


def test_a_commit_is_undone_when_its_body_fails(ground: Context) -> None:
    """Half a transaction is never kept, with or without a lease."""
    running = Running(ground, _claim(ground, _send(ground)))

    def fall() -> None:
        with running.commit() as session:
            session.add(Secret(name="half", value="written"))
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        fall()
    with ground.database.read() as session:
        assert session.get(Secret, "half") is None


def test_an_abandoned_job_is_queued_again_until_its_attempts_are_used_up(ground: Context) -> None:
    """A job that kills its worker each time must not kill all of them for ever."""
    job_id = _send(ground)
    for attempt in (1, 2, 3):
        _claim(ground, job_id, lease_s=-1.0)
        assert rows.sweep(ground.database) == 1
        assert _job(ground, job_id).state == ("queued" if attempt < 3 else "failed")
    assert _outcomes(ground, job_id) == ["abandoned"] * 3
    assert _events(ground) == ["job.abandoned"] * 3
    assert rows.sweep(ground.database) == 0


def test_a_released_job_has_lost_no_attempt(ground: Context) -> None:
    """Deployments on a busy day must not use up what is meant for failures."""
    job_id = _send(ground)
    for _ in range(5):
        rows.release(ground.database, _claim(ground, job_id))
    rows.fail(ground.database, _claim(ground, job_id), "first failure", retry=True)
    assert _job(ground, job_id).state == "queued"


def test_the_sweeper_rings_again_for_a_job_nobody_came_for(ground: Context) -> None:
    """Brokers lose messages; the row is still there."""
    job_id = _send(ground)
    with ground.database.begin() as session:
        session.delete(session.get_one(Message, job_id))
        session.get_one(Job, job_id).rung_at -= 2 * rows.RING_AGAIN_S
    rows.sweep(ground.database)
    with ground.database.read() as session:
        assert session.get(Message, job_id) is not None
    rows.sweep(ground.database)


def test_a_beating_handler_keeps_its_job_longer_than_a_lease(ground: Context) -> None:
    """A training takes an hour, a lease twelve seconds."""
    job_id = _send(ground)
    first_until: list[float] = []

    def handler(running: Running) -> None:
        first_until.append(_job(ground, job_id).lease_until or 0.0)
        while now() < first_until[0] + 0.2:
            assert rows.sweep(ground.database) == 0
            running.check_cancelled()

    assert _run_until_idle(ground, handler, job_id).state == "done"


def test_old_periodic_jobs_are_forgotten_and_others_kept(ground: Context) -> None:
    """Thirty rows a minute would make a million in a month; what people sent stays."""
    old, other = _send(ground, unique_key="clock:train"), _send(ground, unique_key="clock_mine")
    for job_id in (old, other):
        rows.finish(ground.database, _claim(ground, job_id), None)
    assert rows.prune(ground.database, "clock:", 3600) == 0
    assert rows.prune(ground.database, "clock:", -1) == 1
    with ground.database.read() as session:
        assert session.get(Job, old) is None
        assert session.get(Job, other) is not None
    assert _outcomes(ground, old) == []
