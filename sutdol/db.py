"""The database: one synchronous engine per process, short transactions, migrations at start.

SQLite runs in WAL with synchronous=FULL and every transaction of `begin` starts with BEGIN IMMEDIATE: with deferred
transactions a read followed by a write fails with "database is locked" in half of all cases, whatever the busy timeout.
Readers use `read`, which never takes the write lock. PostgreSQL needs none of this.

Errors: SetupError when the URL cannot be used; SQLAlchemy's own errors otherwise.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlmodel import Session, create_engine

from sutdol import tables
from sutdol.errors import SetupError

MIGRATIONS = Path(__file__).with_name("migrations")
_IMMEDIATE = threading.local()


class Database:
    """Handed over to whoever needs rows; safe to share between threads.

    >>> database = Database("sqlite://")  # in memory, for doctests only
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        try:
            if self.is_sqlite:
                path = sa.engine.make_url(url).database
                if path and path != ":memory:":
                    Path(path).parent.mkdir(parents=True, exist_ok=True)
                self.engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
                _prepare_sqlite(self.engine)
            else:
                self.engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=10)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise SetupError(
                f"database URL cannot be used: {error}", hint="expected sqlite:///FILE or postgresql+psycopg://..."
            ) from error

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A writing transaction: commits at the end, rolls back on any exception. Keep it short, no network inside."""
        with Session(self.engine, expire_on_commit=False) as session:
            with _immediate():
                session.connection()
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A reading transaction: one consistent view, no write lock, never committed. Its rows may be used afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session  # closing rolls back and detaches; an explicit rollback would first expire every row

    def migrate(self) -> None:
        """Bring the schema to the newest revision; safe to call from several processes at once.

        Raises:
            SetupError: the database belongs to a newer sutdol.
        """
        if self._is_newest():
            return  # and alembic with its 12 MB stays out of a serving process
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self.engine.connect() as connection:
                with _immediate():
                    connection.execute(
                        sa.text("SELECT 1" if self.is_sqlite else "SELECT pg_advisory_xact_lock(7250981)")
                    )
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
        except CommandError as error:
            raise SetupError(
                f"database schema: {error}", hint="it was made by a newer sutdol; upgrade this one"
            ) from error

    def _is_newest(self) -> bool:
        """Whether the schema is that of the newest migration file, as far as a look without alembic can tell."""
        texts = [path.read_text() for path in MIGRATIONS.glob("versions/*.py")]
        made = {name for text in texts for name in re.findall(r"^revision\b.*= ['\"](.+)['\"]", text, re.M)}
        built_on = {name for text in texts for name in re.findall(r"^down_revision\b.*= ['\"](.+)['\"]", text, re.M)}
        try:
            with self.engine.connect() as connection:
                found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all()
        except sa.exc.SQLAlchemyError:
            return False
        return {*found} == made - built_on

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _immediate() -> Iterator[None]:
    """The transaction that this thread begins inside takes SQLite's write lock at once."""
    _IMMEDIATE.on = True
    try:
        yield
    finally:
        _IMMEDIATE.on = False


def _prepare_sqlite(engine: sa.Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # pysqlite must not begin on its own; we say when and how
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if getattr(_IMMEDIATE, "on", False) else "BEGIN")


def upsert(session: Session, row: Any, *, keys: list[str], update: list[str]) -> None:
    """Insert `row` (a table object), or, where `keys` collide, update only the columns named in `update` (may be empty)."""
    table = type(row).__table__
    values = {c.name: getattr(row, c.name) for c in table.columns}
    insert = insert_for(session)(table).values(**values)
    if update:
        statement = insert.on_conflict_do_update(index_elements=keys, set_={c: insert.excluded[c] for c in update})
    else:
        statement = insert.on_conflict_do_nothing(index_elements=keys)
    session.execute(statement)


def insert_for(session: Session) -> Any:
    """The `insert` of this session's database, which knows `on_conflict_do_update`."""
    from sqlalchemy.dialects import postgresql, sqlite

    return sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert


__all__ = ["Database", "insert_for", "tables", "upsert"]
