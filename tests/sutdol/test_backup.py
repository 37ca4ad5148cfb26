"""A backup is taken while everything runs and comes back elsewhere; a migration that fails leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from sqlmodel import SQLModel, select

from sutdol import backup, keys
from sutdol.context import Context, open_context
from sutdol.db import Database
from sutdol.errors import ConflictError, InputError
from sutdol.settings import load
from sutdol.tables import LabelTask, PredictionRow, Sample
from tests.job_processes import postgres
from tests.running_server import running, wait_for, wait_until_up
from tests.tiny_models import classifier_bundle, coloured_png


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.faults)])
def grounds(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Context, Context]]:
    """(an installation, an empty one on the other database)."""
    with ExitStack() as stack:
        urls = {"database_url": stack.enter_context(postgres())}
        here, there = (urls, {}) if request.param == "postgresql" else ({}, urls)
        opened = [
            open_context(load(home=tmp_path / name, label_rate=1.0, **more))
            for name, more in (("here", here), ("there", there))
        ]
        yield opened[0], opened[1]
        for context in opened:
            context.database.close()


def serving(context: Context) -> dict[str, object]:
    return {"database_url": context.settings.database_url, "label_rate": 1.0}


def test_a_backup_under_load_comes_back_on_the_other_database(grounds: tuple[Context, Context], tmp_path: Path) -> None:
    """What was answered before it began is in it; the key, the champion and the images work where it comes back."""
    here, there = grounds
    version = classifier_bundle(here)
    with here.database.begin() as session:
        key = keys.create(session, "camera", ["admin"])
    headers = {"Authorization": f"Bearer {key}"}
    answered: list[str] = []
    ended = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(headers=headers, timeout=60) as client:
            while not ended.is_set():
                reply = client.post(f"{url}/v1/predict/tiny", content=coloured_png("red", seed=len(answered)))
                assert reply.status_code == 200
                answered.append(reply.json()["prediction_id"])

    with running(here.settings.home, **serving(here)) as server:
        client = threading.Thread(target=ask, args=(server.url,))
        client.start()
        wait_for(lambda: len(answered) > 30, "traffic")
        before = list(answered)
        _, first, copied = backup.back_up(here, tmp_path / "backups")
        count = len(answered)
        wait_for(lambda: len(answered) > count + 5, "traffic during the second one")
        ended.set()
        client.join()
    assert copied == len(first.objects) > 5
    (tmp_path / "backups" / "99990101T000000Z").mkdir()  # one that was cut off has no manifest and does not count
    with running(there.settings.home, **serving(there)) as empty:
        restored = backup.restore(there, tmp_path / "backups")
        assert restored.tables["prediction"][0] == first.tables["prediction"][0] >= len(before)
        wait_until_up(empty)
        url = f"{empty.url}/v1/predict/tiny"

        def answers() -> bool:
            return httpx.post(url, content=coloured_png("blue"), headers=headers, timeout=60).status_code == 200

        wait_for(answers, "the server that was running there to answer")
        reply = httpx.post(url, content=coloured_png("blue"), headers=headers, timeout=60).json()
        assert (reply["version"], reply["predictions"][0]["name"]) == (version, "blue")
    with there.database.read() as session:
        assert set(before) <= set(session.exec(select(PredictionRow.id)))
        task = session.exec(select(LabelTask).order_by(LabelTask.created_at)).first()
        assert task is not None
        assert isinstance(task.features, bytes)
        assert there.store.get(f"samples/{session.get_one(Sample, task.sample_id).id}")
    with pytest.raises(ConflictError, match="rows of model"):
        backup.restore(there, tmp_path / "backups")


def test_the_second_backup_copies_only_what_is_new(context: Context, tmp_path: Path) -> None:
    """A nightly backup of a terabyte of images must not be a terabyte every night."""
    context.store.put("samples/a", b"one")
    folder, _, copied = backup.back_up(context, tmp_path / "b")
    assert copied == 1
    folder.rename(folder.with_name("20200101T000000Z"))
    context.store.put("samples/b", b"two")
    assert backup.back_up(context, tmp_path / "b")[2] == 1


def test_damage_is_found_before_anything_is_written(context: Context, tmp_path: Path) -> None:
    """A backup that cannot be trusted must say so while there still is another one."""
    context.store.put("samples/a", b"one")
    with context.database.begin() as session:
        keys.create(session, "k", ["admin"])
    folder, _, _ = backup.back_up(context, tmp_path / "b")
    other = open_context(load(home=tmp_path / "other"))
    for path, words in (
        (folder / "api_key.jsonl.gz", "damaged"),
        (tmp_path / "b" / "store" / "samples" / "a", "bytes"),
    ):
        kept = path.read_bytes()
        path.write_bytes(kept + b"x")
        with pytest.raises(InputError, match=words):
            backup.restore(other, tmp_path / "b")
        path.write_bytes(kept)
    with pytest.raises(InputError, match="no backup"):
        backup.restore(other, tmp_path / "nowhere")
    assert other.store.keys("") == []
    assert backup.restore(other, tmp_path / "b").objects == {"samples/a": 3}
    other.database.close()


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_migration_that_fails_leaves_nothing_behind(engine: str, tmp_path: Path) -> None:
    """Half a schema blocks the next attempt for ever; failed here at every fortieth statement."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres()) if engine == "postgresql" else f"sqlite:///{tmp_path / 'm.db'}"
        for fail_at in range(1, 10_000, 40):
            database = Database(url)
            statements = 0

            @sa.event.listens_for(database.engine, "before_cursor_execute")
            def _fail(*arguments: object, fail_at: int = fail_at) -> None:
                nonlocal statements
                changes = str(arguments[2]).lstrip().startswith(("CREATE", "INSERT"))
                statements += changes
                if changes and statements == fail_at:
                    raise InterruptedError("the power went")

            try:
                database.migrate()
            except InterruptedError:
                with database.engine.connect() as connection:
                    assert sa.inspect(connection).get_table_names() == []
                database.close()
                continue
            with database.engine.connect() as connection:
                found = set(sa.inspect(connection).get_table_names())
            assert found == {table.name for table in SQLModel.metadata.sorted_tables} | {"alembic_version"}
            database.close()
            assert fail_at > 60
            return
