"""Log entries become rows: SQL text made once per table, one connection kept, one transaction per group.

    group of entries -> rows by table -> BEGIN -> executemany -> COMMIT

SQLAlchemy makes the statements (so they are right for SQLite and PostgreSQL) and the connection; the group itself goes
through the driver. A prediction costs a third of what it cost through Core: this is the only place where that matters.

Errors: Unreachable when the database could not be asked at all (gone, locked, no such table, disk full); Unwritable for a
group that it refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import SQLModel

from sutdol.db import Database
from sutdol.tables import LabelTask, Sample

Values = dict[str, Any]
_JSON = msgspec.json.Encoder()
_DRAWABLE = ("candidate", "merged", "withdrawn")
"""States of a task of another arm that chance may still draw: nobody has been asked."""


class Unreachable(Exception):
    """The database is not there; the same group may be written later."""


class Unwritable(Exception):
    """The database refused the group; one of its rows is to blame."""


class Rows:
    """The writing end of the log; for one thread."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._is_sqlite = database.is_sqlite
        self._statements: dict[tuple[Any, ...], _Statement] = {}
        self._connection: Any = None

    def write(self, rows: Iterable[tuple[type[SQLModel], Values]], offers: Iterable[Values], *, again: bool) -> None:
        """Commit `rows`, and `offers`: label tasks, of which the first of a (model, sample) stays, but `drawn` wins.

        Args:
            again: some of them may have been committed before; those are passed over.
        """
        by_table: dict[type[SQLModel], list[Values]] = {}
        for kind, values in rows:
            by_table.setdefault(kind, []).append(values)
        driver = self._engine.dialect.loaded_dbapi
        try:
            cursor = self._begin()
            for kind, group in by_table.items():
                # an image may be kept already; any other row is new unless we write it again
                statement = self._insert(kind, tuple(group[0]), skip=again or kind is Sample)
                cursor.executemany(statement.text, [statement.parameters(values) for values in group])
            for task in offers:
                insert = self._insert(LabelTask, tuple(task), skip=True)
                cursor.execute(insert.text, insert.parameters(task))
                if task["arm"] == "drawn":
                    update = self._draw()
                    cursor.execute(update.text, update.parameters({f"b_{name}": v for name, v in task.items()}))
            if self._is_sqlite:
                cursor.execute("COMMIT")
            else:
                self._connection.commit()
        except (
            driver.OperationalError,
            driver.InterfaceError,
            sa.exc.OperationalError,
            sa.exc.InterfaceError,
        ) as error:
            self.close()
            raise Unreachable(_first_line(error)) from error
        except (driver.Error, sa.exc.SQLAlchemyError, ValueError, TypeError, KeyError, OverflowError) as error:
            self.close()
            raise Unwritable(_first_line(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection up, and with it whatever was not committed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may be gone; SQLite needs it, else a live cursor keeps the lock
                connection.rollback()
            connection.invalidate()

    def _begin(self) -> Any:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        cursor = self._connection.cursor()
        if self._is_sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        return cursor

    def _insert(self, kind: type[SQLModel], names: tuple[str, ...], *, skip: bool) -> _Statement:
        key = (kind, names, skip)
        if key not in self._statements:
            table: sa.Table = kind.__table__  # type: ignore[attr-defined]
            from sqlalchemy.dialects import postgresql, sqlite

            make = sqlite.insert if self._is_sqlite else postgresql.insert
            statement = make(table).values({name: sa.bindparam(name, type_=table.c[name].type) for name in names})
            self._statements[key] = self._compiled(statement.on_conflict_do_nothing() if skip else statement, table)
        return self._statements[key]

    def _draw(self) -> _Statement:
        """One that another arm made earlier becomes `drawn` while nobody has queued it, also when it was laid aside."""
        if ("draw",) not in self._statements:
            table: sa.Table = LabelTask.__table__  # type: ignore[attr-defined]
            own = {n: sa.bindparam(f"b_{n}", type_=table.c[n].type) for n in ("model", "sample_id")}
            changed = ("inclusion_probability", "reason", "priority")
            statement = (
                sa.update(table)
                .where(table.c.model == own["model"], table.c.sample_id == own["sample_id"])
                .where(
                    sa.or_(*(table.c.state == sa.text(f"'{s}'") for s in _DRAWABLE)), table.c.arm != sa.text("'drawn'")
                )
                .values(
                    {n: sa.bindparam(f"b_{n}", type_=table.c[n].type) for n in changed}
                    | {"arm": sa.text("'drawn'"), "state": sa.text("'candidate'"), "merged_into": sa.null()}
                )
            )
            self._statements["draw",] = self._compiled(statement, table)
        return self._statements["draw",]

    def _compiled(self, statement: Any, table: sa.Table) -> _Statement:
        compiled = statement.compile(dialect=self._engine.dialect)
        as_json = {column.name for column in table.columns if isinstance(column.type, sa.JSON)}
        return _Statement(str(compiled), compiled.positiontup, list(compiled.params), as_json)


class _Statement:
    def __init__(self, text: str, order: list[str] | None, names: list[str], as_json: set[str]) -> None:
        self.text = text
        self._order = order
        self._names = order or names
        self._json = as_json | {f"b_{name}" for name in as_json}

    def parameters(self, values: Values) -> Any:
        """For the driver: a tuple or a dictionary, JSON columns as text."""
        found = []
        for name in self._names:
            value = values[name]
            found.append(_JSON.encode(value).decode() if name in self._json and value is not None else value)
        return tuple(found) if self._order else dict(zip(self._names, found, strict=True))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
