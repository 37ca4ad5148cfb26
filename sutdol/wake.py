"""A word from one process to all others at the moment of a commit: PostgreSQL's NOTIFY; elsewhere everybody polls.

    call(session, "registry") in the transaction that changes something -> commit -> Listener.heard in every process

Nothing rests on it: whoever listens polls as well, only more seldom. A connection that breaks is opened again.

Errors: none reach the caller; what goes wrong is logged, and `listening` says that polling has to do.
"""

from __future__ import annotations

import threading

import sqlalchemy as sa
import structlog
from sqlmodel import Session

from sutdol.db import Database

REGISTRY = "sutdol_registry"
"""Aliases have moved."""
_AGAIN_S = 2.0


def call(session: Session, channel: str) -> None:
    """Wake everybody who listens to `channel`, if and when this transaction commits."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("SELECT pg_notify(:channel, '')"), {"channel": channel})


class Listener:
    """A thread with a connection of its own that sets `woken` at every call; does nothing on SQLite.

    Attributes:
        woken: set by a call, and by `stop`; cleared by whoever waits for it.
        listening: calls reach us now.
    """

    def __init__(self, database: Database, channel: str) -> None:
        self.woken = threading.Event()
        self.listening = False
        self._database = database
        self._channel = channel
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"listen-{channel}", daemon=True)
        self._log = structlog.get_logger("sutdol.wake")

    def start(self) -> None:
        if not self._database.is_sqlite:
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self.woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                self._once()
            except Exception as error:  # the outermost loop of this thread: told, and tried again
                self._log.warning("calls are not heard", channel=self._channel, error=str(error).splitlines()[:1])
            self.listening = False
            self._ended.wait(_AGAIN_S)

    def _once(self) -> None:
        pooled = self._database.engine.raw_connection()
        pooled.detach()  # it is ours alone, the pool makes itself another one
        connection = pooled.driver_connection
        assert connection is not None
        try:
            connection.autocommit = True
            connection.execute(f'LISTEN "{self._channel}"')
            self.listening = True
            self.woken.set()  # what was called before we listened
            while not self._ended.is_set():
                for _ in connection.notifies(timeout=0.5, stop_after=1):
                    self.woken.set()
        finally:
            pooled.close()
