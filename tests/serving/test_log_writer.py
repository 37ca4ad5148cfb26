"""The log keeps its word: group commit, neighbours, a database that is gone, an image before its row."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import func, select

from serving.log import Entry, LogWriter
from serving.metrics import Metrics
from serving.tickets import Ticket
from sutdol.context import Context
from sutdol.errors import BusyError
from sutdol.images import admit
from sutdol.tables import LabelTask, PredictionRow, Sample, new_id
from tests.running_server import wait_for
from tests.tiny_models import coloured_png

IMAGE = admit(coloured_png("red"))


@pytest.fixture
def log(context: Context) -> Iterator[LogWriter]:
    writer = LogWriter(context.database, context.store, Metrics())
    writer.start()
    yield writer
    writer.stop()


def row(**changes: Any) -> dict[str, Any]:
    values = {
        "id": new_id(),
        "at": 1.0,
        "model": "m",
        "version": 1,
        "sample_id": IMAGE.sample_id,
        "width_px": 4,
        "height_px": 4,
        "answer": {"classes": [], "boxes": []},
        "confidence": 0.5,
        "raw_confidence": 0.5,
        "margin": 0.5,
        "ood_score": None,
        "inclusion_probability": 0.1,
        "arms": [],
        "duration_ms": 1.0,
        "key_id": None,
    }
    return values | changes


def task(arm: str, **changes: Any) -> LabelTask:
    values: dict[str, Any] = {
        "model": "m",
        "sample_id": IMAGE.sample_id,
        "prediction_id": new_id(),
        "version": 1,
        "arm": arm,
        "reason": f"because {arm}",
        "inclusion_probability": 0.25 if arm == "drawn" else None,
        "priority": 0.5,
        "uncertainty": 0.5,
        "answer": {},
    }
    return LabelTask(**(values | changes))


def entry(**changes: Any) -> Entry:
    values = row(**changes)
    return Entry(Ticket(), str(values["id"]).encode(), ((PredictionRow, values),))


def count(context: Context) -> int:
    with context.database.read() as session:
        return session.exec(select(func.count()).select_from(PredictionRow)).one()


async def test_a_reply_comes_after_its_commit(context: Context, log: LogWriter) -> None:
    """The moment the client hears, another process must be able to read the row."""
    for _ in range(20):
        one = entry()
        log.submit(one)
        prediction_id = (await one.ticket.future).decode()
        with context.database.read() as session:
            assert session.get(PredictionRow, prediction_id) is not None


async def test_what_waits_is_committed_together(context: Context, log: LogWriter) -> None:
    """One disk flush for many answers is what makes a durable log cheap."""
    with context.database.begin() as session:  # nobody else can write now, so they queue up
        session.execute(sa.text("SELECT 1"))
        entries = [entry() for _ in range(200)]
        for one in entries:
            log.submit(one)
    await asyncio.gather(*(one.ticket.future for one in entries))
    assert count(context) == 200


async def test_one_row_that_cannot_be_written_does_not_harm_its_neighbours(context: Context, log: LogWriter) -> None:
    """A group shares its commit, not its fate."""
    with context.database.begin():
        entries = [entry(), entry(id="same"), entry(id="same"), entry()]
        for one in entries:
            log.submit(one)
    results = await asyncio.gather(*(one.ticket.future for one in entries), return_exceptions=True)
    assert [isinstance(result, bytes) for result in results] == [True, True, False, True]
    assert isinstance(results[2], BusyError)
    assert count(context) == 3


@pytest.fixture
def spooling(context: Context, tmp_path: Path) -> Iterator[LogWriter]:
    """A writer with a spool of 20 kB."""
    writer = LogWriter(context.database, context.store, Metrics(), spool=(tmp_path / "spool", 20_000))
    writer.start()
    yield writer
    writer.stop()


def hide_the_table(context: Context) -> None:
    with context.database.begin() as session:
        session.execute(sa.text("ALTER TABLE prediction RENAME TO hidden"))


def show_the_table(context: Context) -> None:
    with context.database.begin() as session:
        session.execute(sa.text("ALTER TABLE hidden RENAME TO prediction"))


async def test_without_a_spool_an_outage_refuses_and_ends_by_itself(context: Context, log: LogWriter) -> None:
    """An answer without a row would be a broken promise."""
    hide_the_table(context)
    lost = entry()
    log.submit(lost)
    with pytest.raises(BusyError, match="log"):
        await lost.ticket.future
    assert log.error
    show_the_table(context)
    found = entry()
    log.submit(found)
    await found.ticket.future
    assert log.error is None
    assert count(context) == 1


async def test_an_outage_goes_into_the_spool_and_drains(context: Context, spooling: LogWriter) -> None:
    """Clients need not suffer for a database that restarts; and nothing they were told may be missing afterwards."""
    hide_the_table(context)
    answered = []
    for n in range(12):
        one = entry()
        spooling.submit(one)
        answered.append((await one.ticket.future).decode())
        assert spooling.spooling is not None
        assert spooling.spooling.entries == n + 1
    assert "no such table" in spooling.spooling.reason
    show_the_table(context)
    await asyncio.to_thread(wait_for, lambda: spooling.spooling is None, "the spool to drain")
    later = entry()
    spooling.submit(later)
    answered.append((await later.ticket.future).decode())
    with context.database.read() as session:
        assert sorted(session.exec(select(PredictionRow.id))) == sorted(answered)


async def test_a_full_spool_refuses(context: Context, spooling: LogWriter) -> None:
    """A disk must not fill up because a database is away for the weekend."""
    hide_the_table(context)
    results: list[Any] = []
    for _ in range(60):
        one = entry()
        spooling.submit(one)
        results += await asyncio.gather(one.ticket.future, return_exceptions=True)
    kept = [result for result in results if isinstance(result, bytes)]
    assert 10 < len(kept) < 60
    assert all(isinstance(result, BusyError) for result in results if result not in kept)
    assert spooling.error
    show_the_table(context)
    await asyncio.to_thread(wait_for, lambda: spooling.spooling is None, "the spool to drain")
    assert count(context) == len(kept)


DYING = """
import json, os, sys
from pathlib import Path
from serving.spool import Record, Spool
spool = Spool(Path(sys.argv[1]), "dead", limit_bytes=1_000_000)
spool.append([Record([("PredictionRow", values)]) for values in json.loads(sys.argv[2])])
os._exit(0)
"""


async def test_what_a_dead_process_left_in_its_spool_is_drained_once(context: Context, tmp_path: Path) -> None:
    """kill -9 in the middle of an outage, and in the middle of writing: every answered row comes, none twice."""
    folder = tmp_path / "spool"
    rows = [row() for _ in range(5)]
    subprocess.run([sys.executable, "-c", DYING, str(folder), json.dumps(rows)], check=True)
    path = folder / "dead.spool"
    whole = path.read_bytes()
    copied = folder / "torn.spool"
    copied.write_bytes(whole + whole[: len(whole) // 10])
    with context.database.begin() as session:  # one of them had reached the database already
        session.execute(sa.insert(PredictionRow.__table__).values(**rows[0]))  # type: ignore[attr-defined]
    writer = LogWriter(context.database, context.store, Metrics(), spool=(folder, 1_000_000))
    writer.start()
    gone = lambda: not (copied.exists() or path.exists())  # noqa: E731
    await asyncio.to_thread(wait_for, gone, "the spools left behind to be drained")
    await asyncio.to_thread(writer.stop)
    assert count(context) == 5


async def test_while_the_store_is_gone_images_wait_in_the_spool(context: Context, tmp_path: Path) -> None:
    """A picked sample whose image is lost could never be labelled."""
    assert context.store.root is not None
    blocked = context.store.root / "samples"
    blocked.write_text("a file where a folder should be")
    writer = LogWriter(context.database, context.store, Metrics(), spool=(tmp_path / "spool", 1_000_000))
    writer.start()
    values = row()
    one = Entry(Ticket(), b"yes", ((PredictionRow, values),), image=IMAGE, task=task("drawn"))
    writer.submit(one)
    assert await one.ticket.future == b"yes"
    assert writer.spooling is not None
    assert count(context) == 0
    blocked.unlink()
    await asyncio.to_thread(wait_for, lambda: writer.spooling is None, "the spool to drain")
    await asyncio.to_thread(writer.stop)
    assert context.store.get(f"samples/{IMAGE.sample_id}") == IMAGE.data
    assert the_task(context).arm == "drawn"


async def test_too_many_waiting_entries_are_refused(context: Context) -> None:
    """Memory must not grow because a disk is slow."""
    writer = LogWriter(context.database, context.store, Metrics(), max_pending=2)
    kept = [entry(), entry()]
    for one in kept:
        writer.submit(one)
    with pytest.raises(BusyError):
        writer.submit(entry())
    writer.start()
    await asyncio.gather(*(one.ticket.future for one in kept))
    writer.stop()


async def test_stopping_commits_what_is_queued(context: Context) -> None:
    """A planned shutdown loses nothing, not even what was still waiting."""
    writer = LogWriter(context.database, context.store, Metrics())
    entries = [entry() for _ in range(50)]
    for one in entries:
        writer.submit(one)
    writer.start()
    await asyncio.to_thread(writer.stop)
    assert count(context) == 50
    with pytest.raises(BusyError):
        writer.submit(entry())


async def picked(log: LogWriter, offered: LabelTask) -> None:
    values = row(arms=[offered.arm], id=offered.prediction_id)
    one = Entry(Ticket(), b"", ((PredictionRow, values),), image=IMAGE, task=offered)
    log.submit(one)
    await one.ticket.future


def the_task(context: Context) -> LabelTask:
    with context.database.read() as session:
        return session.exec(select(LabelTask)).one()


async def test_a_sample_has_one_task_and_the_random_draw_wins(context: Context, log: LogWriter) -> None:
    """Only `drawn` may enter the test split, so it must not be hidden by an earlier arm."""
    await picked(log, task("unfamiliar"))
    assert the_task(context).arm == "unfamiliar"
    await picked(log, task("drawn"))
    kept = the_task(context)
    assert (kept.arm, kept.inclusion_probability, kept.reason) == ("drawn", 0.25, "because drawn")
    await picked(log, task("empty"))
    await picked(log, task("drawn", inclusion_probability=0.9))
    assert (the_task(context).arm, the_task(context).inclusion_probability) == ("drawn", 0.25)
    with context.database.read() as session:
        assert session.exec(select(Sample)).one().id == IMAGE.sample_id
    assert context.store.get(f"samples/{IMAGE.sample_id}") == IMAGE.data


@pytest.mark.parametrize("state", ["merged", "withdrawn"])
async def test_chance_draws_what_was_merged_or_withdrawn(log: LogWriter, context: Context, state: str) -> None:
    """What chance draws is asked about; otherwise the estimate of live accuracy would miss it."""
    await picked(log, task("unfamiliar", state=state, merged_into="another" if state == "merged" else None))
    await picked(log, task("drawn"))
    kept = the_task(context)
    assert (kept.arm, kept.state, kept.merged_into) == ("drawn", "candidate", None)


async def test_a_task_that_is_with_the_labelers_is_left_alone(context: Context, log: LogWriter) -> None:
    """Its probability has already decided things."""
    await picked(log, task("unfamiliar"))
    with context.database.begin() as session:
        session.exec(select(LabelTask)).one().state = "queued"
    await picked(log, task("drawn"))
    assert the_task(context).arm == "unfamiliar"


async def test_an_image_that_cannot_be_stored_refuses_its_own_request_only(context: Context, log: LogWriter) -> None:
    """A row that names an image must not exist without it."""
    assert context.store.root is not None
    (context.store.root / "samples").write_text("a file where a folder should be")
    values = row()
    broken = Entry(Ticket(), b"", ((PredictionRow, values),), image=IMAGE, task=task("drawn"))
    healthy = entry()
    log.submit(broken)
    log.submit(healthy)
    await healthy.ticket.future
    with pytest.raises(BusyError):
        await broken.ticket.future
    assert count(context) == 1
    with context.database.read() as session:
        assert session.exec(select(LabelTask)).all() == []
