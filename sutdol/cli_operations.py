"""Commands for whoever runs an installation: `migrate`, `alive` (health checks of containers), `backup`, `restore`, `erase`.

Each ends with 0 or 1 and says in one line what it did or found.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Literal

from cyclopts import App
from sqlmodel import select

from sutdol.db import Database
from sutdol.tables import Replica, now
from sutdol.terminal import Home, console, open_home, settings_of


def add_to(app: App) -> None:
    """Bind the commands of this file."""
    app.command(migrate)
    app.command(alive)
    app.command(backup)
    app.command(restore)


def migrate(*, home: Home = None) -> None:
    """Bring the database to the newest schema; every other command does so by itself when it starts.

    Example: sutdol migrate
    """
    database = Database(settings_of(home).database)
    database.migrate()
    database.close()
    console.print("the database has the newest schema")


def backup(folder: Path, *, label_studio: bool = True, home: Home = None) -> None:
    """Write database and store into a folder, while everything runs; the next one there copies only what is new.

    Example: sutdol backup /mnt/backups

    Parameters
    ----------
    label_studio
        Export the labels of Label Studio first; the backup holds them then.
    """
    from sutdol import backup as program

    if label_studio:
        from sutdol.cli_labels import labels_export

        labels_export(home=home)
    target, manifest, copied = program.back_up(open_home(home), folder)
    rows = sum(n for n, _ in manifest.tables.values())
    console.print(f"{target}: {rows} rows, {len(manifest.objects)} objects, {copied} of them new", highlight=False)


def restore(folder: Path, *, at: str | None = None, home: Home = None) -> None:
    """Put the newest backup of a folder into an empty installation, on whatever database and store.

    Example: SUTDOL_DATABASE_URL=postgresql+psycopg://... sutdol restore /mnt/backups

    Parameters
    ----------
    at
        Another one than the newest, by the name of its folder.
    """
    from sutdol import backup as program

    manifest = program.restore(open_home(home), folder, at=at)
    rows = sum(n for n, _ in manifest.tables.values())
    console.print(f"{rows} rows and {len(manifest.objects)} objects are back", highlight=False)
    console.print("for a Label Studio that is new as well: sutdol labels restore MODEL", highlight=False)


def alive(role: Literal["serve", "work", "clock"], *, home: Home = None) -> None:
    """Whether a process of that role lives on this host: for the health check of its container.

    Example: sutdol alive work
    """
    settings = settings_of(home)
    database = Database(settings.database)
    with database.read() as session:
        rows = session.exec(select(Replica).where(Replica.role == role, Replica.host == socket.gethostname()))
        beats = [row.heartbeat_at for row in rows]
    database.close()
    if not beats:
        console.print(f"no {role} has announced itself on this host")
        sys.exit(1)
    silent_s = now() - max(beats)
    console.print(f"{role}: last sign of life {silent_s:.0f} s ago")
    sys.exit(0 if silent_s < 3 * settings.lease_s else 1)
