"""Who leads and who lives: leases on names (table `lease`) and rows of living processes (table `replica`).

    acquire(database, "clock", me, seconds) -> True: nobody else may act under that name until `seconds` from now

One conditional statement decides, so two processes cannot both win, on SQLite and on PostgreSQL. A holder renews by
acquiring again, and must stop acting when that says False. All machines must agree about the time to well under a lease.

Errors: SQLAlchemy's own, when the database cannot be reached.
"""

from __future__ import annotations

import os
import socket
from uuid import uuid4

import sqlalchemy as sa
from sqlmodel import col

from sutdol.db import Database, insert_for
from sutdol.tables import Lease, Replica, now


def owner_name() -> str:
    """A name for this process as a holder of leases: host, pid, and random digits, because pids come back."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


def acquire(database: Database, name: str, owner: str, seconds: float) -> bool:
    """Take or renew the lease `name` for `seconds`; False while another owner's has not run out.

    `Lease.number` grows whenever the holder changes, so it can fence what a former holder still writes.
    """
    with database.read() as session:  # a follower asks every second or so; it must not take the write lock for that
        held = session.get(Lease, name)
    if held is not None and held.owner != owner and held.until > now():
        return False
    at = now()
    with database.begin() as session:
        insert = insert_for(session)(Lease).values(name=name, owner=owner, until=at + seconds, number=1)
        taken = session.execute(
            insert.on_conflict_do_update(
                index_elements=["name"],
                set_={
                    "owner": insert.excluded.owner,
                    "until": insert.excluded.until,
                    "number": col(Lease.number) + sa.case((col(Lease.owner) == owner, 0), else_=1),
                },
                where=sa.or_(col(Lease.owner) == owner, col(Lease.until) <= at),
            ).returning(col(Lease.owner))
        ).first()
    return taken is not None


def release(database: Database, name: str, owner: str) -> None:
    """Give the lease `name` up, if `owner` holds it; the next `acquire` of anybody succeeds."""
    with database.begin() as session:
        session.execute(sa.update(Lease).where(col(Lease.name) == name, col(Lease.owner) == owner).values(until=0.0))


def announce(database: Database, role: str) -> str:
    """Enter this process among the living (`work` or `clock`); the id is for `beat` and `leave`."""
    replica = Replica(role=role, pid=os.getpid(), host=socket.gethostname(), serving={})
    with database.begin() as session:
        session.add(replica)
    return replica.id


def beat(database: Database, replica_id: str, role: str) -> None:
    """Say that this process still lives; enters it again when others took it for dead."""
    with database.begin() as session:
        row = session.get(Replica, replica_id)
        if row is None:
            row = Replica(id=replica_id, role=role, pid=os.getpid(), host=socket.gethostname(), serving={})
        row.heartbeat_at = now()
        session.add(row)


def leave(database: Database, replica_id: str) -> None:
    """Take this process out from among the living."""
    with database.begin() as session:
        session.execute(sa.delete(Replica).where(col(Replica.id) == replica_id))


def bury(database: Database, older_than_s: float) -> int:
    """Delete the rows of processes, of any role, that were silent for `older_than_s`; how many they were."""
    with database.begin() as session:
        gone = session.execute(
            sa.delete(Replica).where(col(Replica.heartbeat_at) < now() - older_than_s).returning(col(Replica.id))
        ).all()
    return len(gone)
