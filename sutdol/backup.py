"""The whole installation into a folder, while it serves, and back into an empty one on any database and store.

    FOLDER/store/KEY                          every object, copied once: they never change, the next backup copies only new ones
    FOLDER/20260101T000000Z/TABLE.jsonl.gz    every row as one reading transaction saw it
    FOLDER/20260101T000000Z/manifest.json     format, schema, counts and hashes; written last: without it there is no backup

Rows first, objects afterwards: whatever a row names was in the store before. Who lives, who leads and what rings is left out.
Rows are plain JSON, so a backup of SQLite may be restored into PostgreSQL, a folder into S3, and the other way round. It holds
the hashes of API keys and the installation's shared secrets: keep it as you keep those.

Errors: InputError for a folder that is no backup or is damaged, ConflictError when the installation is not empty.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, SQLModel

from sutdol.context import Context
from sutdol.db import Database
from sutdol.errors import ConflictError, InputError, NotFoundError
from sutdol.tables import Model, PredictionRow, now

FORMAT = 1
LEFT_OUT = frozenset({"replica", "lease", "message"})
"""Tables about processes that are gone by the time of a restore; doorbells are rung again by the sweeper."""
_AT_ONCE = 1000


class Manifest(msgspec.Struct):
    """What a backup holds."""

    format: int
    at: float
    schema: str
    """The migration that the rows fit."""
    tables: dict[str, tuple[int, str]]
    """Table -> rows, sha256 of its file."""
    objects: dict[str, int]
    """Key in the store -> bytes."""


def back_up(context: Context, folder: Path) -> tuple[Path, Manifest, int]:
    """Write a backup; (its folder, what is in it, how many objects had to be copied)."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    at = now()
    target = folder / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    target.mkdir(mode=0o700)
    tables: dict[str, tuple[int, str]] = {}
    with _snapshot(context.database) as session:
        schema = str(session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())
        for table in _tables():
            tables[table.name] = _write(session, table, target / f"{table.name}.jsonl.gz")
    objects, copied = _copy_objects(context, folder / "store")
    manifest = Manifest(FORMAT, at, schema, tables, objects)
    part = target / ".manifest.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    part.replace(target / "manifest.json")
    return target, manifest, copied


def restore(context: Context, folder: Path, *, at: str | None = None) -> Manifest:
    """Put a backup (the newest, or the one named `at`) into an empty installation; servers that run there follow.

    Objects first, then all rows in one transaction, so that no server sees a version whose files are not there.
    """
    source = _chosen(folder, at)
    manifest = _read_manifest(source)
    for name, (_, sha256) in manifest.tables.items():
        if hashlib.sha256((source / f"{name}.jsonl.gz").read_bytes()).hexdigest() != sha256:
            raise InputError(f"{source.name}/{name}.jsonl.gz: damaged, its hash is not the one in manifest.json")
    _put_objects(context, folder / "store", manifest)
    with context.database.begin() as session:
        _require_empty(session)
        if str(session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()) != manifest.schema:
            raise InputError(
                f"backup {source.name}: made under schema {manifest.schema}, which is not this one's",
                hint="restore it with the sutdol that made it, then upgrade",
            )
        for table in reversed(_tables()):
            session.execute(table.delete())
        for table in _tables():
            for rows in _read(source / f"{table.name}.jsonl.gz", table):
                session.execute(table.insert(), rows)
    return manifest


def _tables() -> list[sa.Table]:
    return [table for table in SQLModel.metadata.sorted_tables if table.name not in LEFT_OUT]


def _snapshot(database: Database) -> Session:
    session = Session(database.engine)
    if not database.is_sqlite:  # there every reading transaction is one view already
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    return session


def _write(session: Session, table: sa.Table, path: Path) -> tuple[int, str]:
    count, encoder = 0, msgspec.json.Encoder()
    statement = sa.select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_AT_ONCE)
    with gzip.open(path, "wb", compresslevel=5) as file:
        for row in session.execute(statement):
            file.write(encoder.encode(tuple(row)) + b"\n")
            count += 1
    path.chmod(0o600)
    return count, hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    names = [column.name for column in table.columns]
    binary = {column.name for column in table.columns if isinstance(column.type, sa.LargeBinary)}
    rows: list[dict[str, Any]] = []
    with gzip.open(path, "rb") as file:
        for line in file:
            row = dict(zip(names, msgspec.json.decode(line), strict=True))
            for name in binary:
                row[name] = base64.b64decode(row[name]) if row[name] is not None else None
            rows.append(row)
            if len(rows) == _AT_ONCE:
                yield rows
                rows = []
    if rows:
        yield rows


def _copy_objects(context: Context, folder: Path) -> tuple[dict[str, int], int]:
    objects: dict[str, int] = {}
    copied = 0
    for key in context.store.keys(""):
        path = folder / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                context.store.fetch(key, path)
            except NotFoundError:
                continue  # deleted a moment ago, by retention or by a person
            path.chmod(0o600)
            copied += 1
        objects[key] = path.stat().st_size
    return objects, copied


def _put_objects(context: Context, folder: Path, manifest: Manifest) -> None:
    for key, size in manifest.objects.items():
        path = folder / key
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(
                f"store/{key}: expected {size} bytes, found {path.stat().st_size if path.is_file() else 'none'}"
            )
        if not context.store.has(key):
            context.store.put_file(key, path)


def _require_empty(session: Session) -> None:
    for kind in (Model, PredictionRow):
        if session.execute(sa.select(sa.literal(1)).select_from(kind).limit(1)).first() is not None:
            raise ConflictError(
                f"restore: the installation holds rows of {kind.__tablename__} already",
                hint="restore into an empty one: another SUTDOL_HOME, or another database and store",
            )


def _chosen(folder: Path, at: str | None) -> Path:
    known = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if at is not None:
        known = [path for path in known if path.name == at]
    if not known:
        raise InputError(
            f"{folder}: no backup here" + (f" named {at}" if at else ""), hint="sutdol backup FOLDER makes one"
        )
    return known[-1]


def _read_manifest(source: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode((source / "manifest.json").read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise InputError(f"{source.name}/manifest.json: {error}") from error
    if manifest.format != FORMAT:
        raise InputError(f"backup {source.name}: expected format {FORMAT}, found {manifest.format}")
    return manifest
