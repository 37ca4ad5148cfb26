"""Commands for whoever runs an installation: `migrate` for deployments, `alive` for health checks of containers.

Each ends with 0 or 1 and says in one line what it did or found.
"""

from __future__ import annotations

import socket
import sys
from typing import Literal

from cyclopts import App
from sqlmodel import select

from sutdol.db import Database
from sutdol.tables import Replica, now
from sutdol.terminal import Home, console, settings_of


def add_to(app: App) -> None:
    """Bind the commands of this file."""
    app.command(migrate)
    app.command(alive)


def migrate(*, home: Home = None) -> None:
    """Bring the database to the newest schema; every other command does so by itself when it starts.

    Example: sutdol migrate
    """
    database = Database(settings_of(home).database)
    database.migrate()
    database.close()
    console.print("the database has the newest schema")


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
