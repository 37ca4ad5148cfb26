"""Leadership and presence, and what the clock does with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from sutdol.context import Context, open_context
from sutdol.jobs import KINDS, lease, rows
from sutdol.jobs.clock import PERIODIC, Clock, send_periodic
from sutdol.jobs.process import living
from sutdol.jobs.worker import run_pending
from sutdol.settings import load
from sutdol.tables import Job, Lease, Replica
from tests.job_processes import empty, postgres


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    opened = open_context(load(home=tmp_path / "home", database_url=url))
    empty(opened)
    yield opened
    opened.database.close()


def test_one_of_many_leads_and_the_next_one_follows(ground: Context) -> None:
    """Two clocks would send everything twice."""
    won: list[str] = []
    start = threading.Barrier(5)

    def race(owner: str) -> None:
        start.wait()
        if lease.acquire(ground.database, "clock", owner, 30):
            won.append(owner)

    threads = [threading.Thread(target=race, args=(f"c{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert lease.acquire(ground.database, "clock", won[0], 30), "the holder renews"
    assert not lease.acquire(ground.database, "clock", "other", 30)
    lease.release(ground.database, "clock", "other")
    assert not lease.acquire(ground.database, "clock", "other", 30), "only the holder can release"
    lease.release(ground.database, "clock", won[0])
    assert lease.acquire(ground.database, "clock", "other", 30)
    with ground.database.read() as session:
        assert session.get_one(Lease, "clock").number == 2


def test_a_lease_that_ran_out_is_free(ground: Context) -> None:
    """A leader that died cannot release."""
    assert lease.acquire(ground.database, "clock", "dead", -1)
    assert lease.acquire(ground.database, "clock", "next", 30)


def test_the_dead_are_buried_and_the_living_return(ground: Context) -> None:
    """The console shows what runs; a process that was only slow is not lost from it."""
    with living(ground, "work"):
        with ground.database.read() as session:
            (replica,) = session.exec(select(Replica)).all()
        assert replica.role == "work"
        assert lease.bury(ground.database, 3600) == 0
        assert lease.bury(ground.database, -1) == 1
        lease.beat(ground.database, replica.id, "work")
        with ground.database.read() as session:
            assert session.get(Replica, replica.id) is not None
    with ground.database.read() as session:
        assert session.exec(select(Replica)).all() == []


def test_the_leading_clock_sends_everything_once_and_a_second_one_nothing(context: Context) -> None:
    """A new leader starts with a full round, so a change of leaders skips nothing."""
    first, second = Clock(context, "first"), Clock(context, "second")
    assert sorted(first.tick()) == sorted(PERIODIC)
    assert second.tick() == []
    first.resign()
    run_pending(context, dict.fromkeys(KINDS, lambda running: None))
    third = Clock(context, "third")
    assert sorted(third.tick()) == sorted(PERIODIC)


def test_a_slow_periodic_job_does_not_pile_up(context: Context) -> None:
    """When Label Studio takes a minute to answer, the sixth reading in a row helps nobody."""
    assert send_periodic(context, ["bridge.read"]) == ["bridge.read"]
    assert send_periodic(context, ["bridge.read"]) == [], "it is queued"
    with context.database.read() as session:
        (job,) = session.exec(select(Job)).all()
    claimed = rows.claim(context.database, job.id, "worker", lease_s=30)
    assert claimed is not None
    assert send_periodic(context, ["bridge.read"]) == [], "it is running"
    rows.finish(context.database, claimed, None)
    assert send_periodic(context, ["bridge.read"]) == ["bridge.read"]


def test_every_periodic_job_is_known_and_has_an_interval(context: Context) -> None:
    """The table names kinds and settings by text."""
    assert set(PERIODIC) <= set(KINDS)
    assert all(getattr(context.settings, name) > 0 for name in PERIODIC.values())
