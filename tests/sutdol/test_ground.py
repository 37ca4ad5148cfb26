"""Settings, keys, store and database: the small promises everything else stands on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlmodel import select

from sutdol import keys, settings
from sutdol.context import Context
from sutdol.db import Database
from sutdol.errors import AuthError, InputError, NotFoundError, SetupError
from sutdol.tables import ApiKey, Event, new_id, now


def test_a_wrong_setting_is_named_with_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line refuses early."""
    monkeypatch.setenv("SUTDOL_PORT", "ninety")
    with pytest.raises(SetupError, match=r"SUTDOL_PORT.*ninety"):
        settings.load()


def test_a_setting_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Container engines hand secrets over as files; what stands in the environment can be read by every neighbour."""
    (tmp_path / "url").write_text("postgresql+psycopg://sutdol:p%40ss@db/sutdol\n")
    monkeypatch.setenv("SUTDOL_DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("SUTDOL_PORT_FILE", str(tmp_path / "port"))
    with pytest.raises(SetupError, match=r"SUTDOL_PORT_FILE.*port cannot be read"):
        settings.load()
    (tmp_path / "port").write_text("ninety")
    with pytest.raises(SetupError, match=r"SUTDOL_PORT.*ninety"):
        settings.load()
    (tmp_path / "port").write_text("9000")
    found = settings.load()
    assert (found.database, found.port) == ("postgresql+psycopg://sutdol:p%40ss@db/sutdol", 9000)
    assert "p%40ss" not in str(settings.effective(found))
    monkeypatch.setenv("SUTDOL_PORT", "9001")
    with pytest.raises(SetupError, match="given twice"):
        settings.load()


def test_a_child_sees_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`up` starts the programs a cluster would start, with one set of settings."""
    venvs = {"label_studio_venv": tmp_path / "v", "tensorflow_venv": tmp_path / "t"}
    parent = settings.load(home=tmp_path, port=9123, label_rate=0.25, cors_origins="https://a.example", **venvs)
    for name, value in settings.child_environment(parent).items():
        monkeypatch.setenv(name, value)
    assert settings.load() == parent


def test_every_setting_says_what_it_means() -> None:
    """The README's table and `sutdol settings` come from these."""
    assert all(meaning.endswith((".", "error")) for _, _, _, meaning in settings.describe())


def test_a_key_opens_what_its_scopes_say(context: Context) -> None:
    """One line of the authorisation matrix for each reason to refuse."""
    with context.database.begin() as session:
        key = keys.create(session, "camera", ["predict"])
        admin = keys.create(session, "boss", ["admin"])
        old = keys.create(session, "old", ["predict"], expires_at=now() - 1)
    for presented, scope, status in (
        (key, "predict", None),
        (key, "admin", 403),
        (admin, "label", None),
        (old, "predict", 401),
        (key[:-1] + ("a" if key[-1] != "a" else "b"), "predict", 401),
    ):
        key_id, digest = keys.parse(presented)
        with context.database.read() as session:
            row = session.get(ApiKey, key_id)
        if status is None:
            keys.check(row, digest, scope)
        else:
            with pytest.raises(AuthError) as error:
                keys.check(row, digest, scope)
            assert error.value.status == status
    with context.database.begin() as session:
        keys.revoke(session, keys.parse(key)[0])
    with pytest.raises(AuthError, match="revoked"), context.database.read() as session:
        keys.check(session.get(ApiKey, keys.parse(key)[0]), keys.parse(key)[1], "predict")
    with pytest.raises(InputError), context.database.begin() as session:
        keys.create(session, "x", ["everything"])
    with pytest.raises(NotFoundError), context.database.begin() as session:
        keys.revoke(session, "nope")


@pytest.mark.parametrize("text", ["", "secret", "sut_", "sut_a_", "sut__b", "bearer sut_a_b"])
def test_what_is_no_key_is_refused_without_a_look_up(text: str) -> None:
    """Garbage must not cost a query."""
    with pytest.raises(AuthError):
        keys.parse(text)


def test_a_shared_secret_is_made_once(context: Context) -> None:
    """Two processes that start together must sign with one key."""
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(keys.secret(context.database, "images"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert keys.signature_is_right("abc", keys.sign("abc", found[0]), found[0])
    assert not keys.signature_is_right("abd", keys.sign("abc", found[0]), found[0])


def test_read_then_write_never_finds_the_database_locked(context: Context) -> None:
    """Deferred transactions fail in half of all cases here, whatever the busy timeout."""
    other = Database(context.database.url)
    failures: list[BaseException] = []

    def write(database: Database) -> None:
        try:
            for _ in range(40):
                with database.begin() as session:
                    count = len(session.exec(select(Event)).all())
                    session.add(Event(kind="test", text=str(count), data={}))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(d,)) for d in (context.database, other, context.database)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with context.database.read() as session:
        assert sorted(int(e.text) for e in session.exec(select(Event))) == list(range(120))
    other.close()


def test_an_exception_leaves_nothing_behind(context: Context) -> None:
    """Nothing half-done."""
    with pytest.raises(ZeroDivisionError), context.database.begin() as session:
        session.add(Event(kind="test", text="never", data={}))
        session.flush()
        raise ZeroDivisionError
    with context.database.read() as session:
        assert session.exec(select(Event)).all() == []


def test_a_database_that_cannot_be_opened_says_what_is_expected() -> None:
    """The remedy is in the message."""
    with pytest.raises(SetupError, match="postgresql"):
        Database("nonsense")


def test_ids_sort_by_time_and_say_their_version() -> None:
    """UUIDv7: an index on them stays compact."""
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(i[14] == "7" and i[19] in "89ab" for i in ids)
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)


def test_migrations_and_tables_say_the_same(context: Context) -> None:
    """A column in the code that the database lacks fails at the first insert, in production."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlmodel import SQLModel

    with context.database.engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    assert difference == []
