"""The prediction log keeps its word: what a client was told is committed before it is told.

    Entry -> (picked: the image into the store) -> queue -> writer thread: one transaction for all that wait -> settle

The writer commits at once and takes along whatever has queued meanwhile; there is no timer. Rows go in by Core inserts.
An image is in the store before the row that names it is committed; an image without a row is harmless.

Errors: BusyError (503) for the request whose entry could not be queued, stored or committed. It is not answered then, so
that no answer is missing from the log. One broken row does not take its neighbours along: a failed group is tried again
row by row, unless the database itself is gone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Table, insert, update
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlmodel import Session, SQLModel

from serving.metrics import Metrics
from serving.tickets import Outcome, Ticket, settle
from sutdol.db import Database, upsert
from sutdol.errors import BusyError
from sutdol.images import Image
from sutdol.stores import Store
from sutdol.tables import LabelTask, Sample

MAX_GROUP = 512
"""Entries in one commit."""
MAX_PENDING = 4096
"""Answers waiting for their commit before further ones are refused."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request writes, and the reply it gets once that is committed.

    Attributes:
        rows: rows to append, each (table class, values).
        image: to be kept, when an arm picked it.
        task: the label task for it; the first one of a (model, sample) stays, but `drawn` wins while it is a candidate.
    """

    ticket: Ticket
    reply: bytes
    rows: tuple[tuple[type[SQLModel], dict[str, Any]], ...]
    image: Image | None = None
    task: LabelTask | None = None


class LogWriter:
    """One thread that writes; `submit` may be called from any thread.

    Args:
        told: gets each group right after its commit, on the writer's thread; it must be quick and never raise.

    Attributes:
        error: why the last commit failed, None when it went well.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        metrics: Metrics,
        *,
        max_pending: int = MAX_PENDING,
        told: Callable[[list[Entry]], None] | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._metrics = metrics
        self._max_pending = max_pending
        self._told = told
        self._queue: deque[Entry] = deque()
        self._storing = self._committing = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._storers = ThreadPoolExecutor(2, thread_name_prefix="log-images")
        self._log = structlog.get_logger("serving.log")
        self.error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Commit what is queued, then end."""
        self._storers.shutdown(wait=True)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def pending(self) -> int:
        """Entries that are not committed yet."""
        return len(self._queue) + self._storing + self._committing

    def submit(self, entry: Entry) -> None:
        """Queue an entry; its ticket is settled when it is committed.

        Raises:
            BusyError: too many are waiting, or the writer has stopped.
        """
        with self._wake:
            if self._stopping or self.pending >= self._max_pending:
                raise BusyError("the prediction log cannot keep up", retry_after_s=2)
            if entry.image is not None:
                self._storing += 1
            else:
                self._queue.append(entry)
                self._wake.notify()
        if entry.image is not None:
            self._storers.submit(self._keep_image, entry, entry.image)

    def _keep_image(self, entry: Entry, image: Image) -> None:
        try:
            self._store.put(f"samples/{image.sample_id}", image.data)
        except Exception as error:  # stores raise their own kinds; the request that waits raises it again as a 503
            self._log.exception("image not stored", sample_id=image.sample_id)
            with self._wake:
                self._storing -= 1
            self._refuse([entry], error)
            return
        with self._wake:
            self._storing -= 1
            self._queue.append(entry)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._stopping:
                    self._wake.wait()
                group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
                self._committing = len(group)
            if not group:
                return
            self._commit(group)
            self._committing = 0

    def _commit(self, group: list[Entry]) -> None:
        began = time.perf_counter()
        try:
            with self._database.begin() as session:
                _write(session, group)
        except (OperationalError, InterfaceError) as error:
            self._refuse(group, error)
        except (SQLAlchemyError, ValueError, TypeError) as error:
            if len(group) > 1:
                for entry in group:
                    self._commit([entry])
            else:
                self._refuse(group, error)
        else:
            self.error = None
            self._metrics.log_commits.inc()
            self._metrics.log_seconds.observe(time.perf_counter() - began)
            settle([(entry.ticket, entry.reply) for entry in group])
            if self._told is not None:
                self._told(group)

    def _refuse(self, group: list[Entry], error: Exception) -> None:
        self.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self._log.error("prediction log: not written", entries=len(group), error=self.error)
        self._metrics.log_failures.inc(len(group))
        outcomes: list[Outcome] = []
        for entry in group:
            refusal = BusyError("this could not be written to the log, so it is not answered", retry_after_s=2)
            refusal.__cause__ = error
            outcomes.append((entry.ticket, refusal))
        settle(outcomes)


def _write(session: Session, group: list[Entry]) -> None:
    connection = session.connection()
    by_table: dict[type[SQLModel], list[dict[str, Any]]] = {}
    for entry in group:
        for kind, values in entry.rows:
            by_table.setdefault(kind, []).append(values)
    for kind, rows in by_table.items():
        connection.execute(insert(_table(kind)), rows)
    for entry in group:
        if entry.image is not None:
            upsert(session, _sample(entry.image), keys=["id"], update=[])
        if entry.task is not None:
            _offer(session, entry.task)


def _offer(session: Session, task: LabelTask) -> None:
    """Add the label task; one that another arm made earlier becomes `drawn` while nobody has queued it."""
    upsert(session, task, keys=["model", "sample_id"], update=[])
    if task.arm == "drawn":
        table = _table(LabelTask)
        session.connection().execute(
            update(table)
            .where(
                table.c.model == task.model,
                table.c.sample_id == task.sample_id,
                table.c.state == "candidate",
                table.c.arm != "drawn",
            )
            .values(
                arm="drawn",
                inclusion_probability=task.inclusion_probability,
                reason=task.reason,
                priority=task.priority,
            )
        )


def _sample(image: Image) -> Sample:
    return Sample(
        id=image.sample_id,
        width_px=image.width_px,
        height_px=image.height_px,
        media_type=image.media_type,
        size_bytes=len(image.data),
    )


def _table(kind: type[SQLModel]) -> Table:
    return kind.__table__  # type: ignore[attr-defined,no-any-return]
