"""The prediction log keeps its word: what a client was told is durable before it is told.

    Entry -> (picked: the image into the store) -> queue -> writer thread: one transaction for all that wait -> settle
                                                                 | database or store gone
                                                                 +-> spool: one flush for all that wait -> settle
                                                                     ... back again: drained in groups, beside the new ones

The writer commits at once and takes along whatever has queued meanwhile; there is no timer. An image is in the store (or in
the spool) before the row that names it is committed; an image without a row is harmless.

Errors: BusyError (503) for the request whose entry could not be kept anywhere. It is not answered then, so that no answer is
missing from the log. One broken row does not take its neighbours along: a refused group is tried again row by row.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlmodel import SQLModel

from serving.metrics import Metrics
from serving.rows import Rows, Unreachable, Unwritable
from serving.spool import Record, Spool, SpoolFull
from serving.tickets import Outcome, Ticket, settle
from sutdol import tables
from sutdol.db import Database
from sutdol.errors import BusyError
from sutdol.images import Image
from sutdol.stores import Store
from sutdol.tables import LabelTask, Sample, new_id, now

MAX_GROUP = 512
"""Entries in one commit."""
MAX_PENDING = 4096
"""Answers waiting for their commit before further ones are refused."""
RETRY_S = 1.0
"""While entries wait in the spool, the database is asked again so often."""
_ORPHANS_S = 30.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request writes, and the reply it gets once that is committed; without a ticket nobody waits for it.

    Attributes:
        rows: rows to append, each (table class, values).
        image: to be kept, when an arm picked it.
        task: the label task for it; the first one of a (model, sample) stays, but `drawn` wins while it is a candidate.
    """

    ticket: Ticket | None
    reply: bytes
    rows: tuple[tuple[type[SQLModel], dict[str, Any]], ...]
    image: Image | None = None
    task: LabelTask | None = None


@dataclass(frozen=True, slots=True)
class Spooling:
    """What waits in the spool, and why."""

    entries: int
    bytes: int
    reason: str


class LogWriter:
    """One thread that writes; `submit` may be called from any thread.

    Args:
        spool: the folder for what cannot be written now, and how many bytes it may hold; None refuses at once.
        told: gets each group right after its commit, on the writer's thread; it must be quick and never raise.

    Attributes:
        error: why an entry was refused last, None when the last ones were kept.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        metrics: Metrics,
        *,
        max_pending: int = MAX_PENDING,
        spool: tuple[Path, int] | None = None,
        told: Callable[[list[Entry]], None] | None = None,
    ) -> None:
        self._rows = Rows(database)
        self._store = store
        self._metrics = metrics
        self._max_pending = max_pending
        self._told = told
        self._spool = Spool(spool[0], new_id(), limit_bytes=spool[1]) if spool else None
        self._draining: Iterator[list[Record]] | None = None
        self._retry_at = 0.0
        self._orphans_at = 0.0
        self._reason = ""
        self._queue: deque[tuple[Entry, bool]] = deque()
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

    @property
    def spooling(self) -> Spooling | None:
        """What waits for the database or the store to come back; None when nothing does."""
        spool = self._spool
        return Spooling(spool.count, spool.bytes, self._reason) if spool and spool.count else None

    def submit(self, entry: Entry) -> None:
        """Queue an entry; its ticket is settled when it is durable.

        Raises:
            BusyError: too many are waiting, or the writer has stopped.
        """
        with self._wake:
            if self._stopping or self.pending >= self._max_pending:
                raise BusyError("the prediction log cannot keep up", retry_after_s=2)
            if entry.image is not None:
                self._storing += 1
            else:
                self._queue.append((entry, True))
                self._wake.notify()
        if entry.image is not None:
            self._storers.submit(self._keep_image, entry, entry.image)

    def _keep_image(self, entry: Entry, image: Image) -> None:
        stored = True
        try:
            self._store.put(f"samples/{image.sample_id}", image.data)
        except Exception as error:  # stores raise their own kinds; the image goes into the spool with its entry
            self._log.warning("image not stored", sample_id=image.sample_id, error=str(error)[:200])
            self._reason, stored = f"store: {type(error).__name__}", False
        with self._wake:
            self._storing -= 1
            self._queue.append((entry, stored))
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._stopping:
                    self._wake.wait(self._pause())
                group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
                self._committing = len(group)
                ended = self._stopping and not group
            if group:
                self._keep(group)
                self._committing = 0
            if self._spool is not None and time.monotonic() >= self._retry_at:
                self._drain(self._spool)
            if ended:
                break
        self._rows.close()
        if self._spool is not None:
            self._spool.close()

    def _pause(self) -> float | None:
        if self._spool is None:
            return None
        at = self._retry_at if self._spool.count else self._orphans_at
        return max(at - time.monotonic(), 0.0)

    def _keep(self, group: list[tuple[Entry, bool]]) -> None:
        """Into the database; into the spool what cannot go there now."""
        homeless = [entry for entry, stored in group if not stored]
        whole = [entry for entry, stored in group if stored]
        if whole and self._spool is not None and self._spool.count and time.monotonic() < self._retry_at:
            homeless, whole = homeless + whole, []
        if whole:
            homeless += self._commit(whole)
        if homeless:
            self._put_aside(homeless)

    def _commit(self, group: list[Entry]) -> list[Entry]:
        """Write and settle a group; those that the database could not take now come back."""
        began = time.perf_counter()
        try:
            self._rows.write(*_statements(group), again=False)
        except Unreachable as error:
            self._reason, self._retry_at = f"database: {error}", time.monotonic() + RETRY_S
            return group
        except Unwritable as error:
            if len(group) == 1:
                self._refuse(group, error)
                return []
            return [entry for one in group for entry in self._commit([one])]
        self.error = None
        self._metrics.log_commits.inc()
        self._metrics.log_seconds.observe(time.perf_counter() - began)
        settle([(entry.ticket, entry.reply) for entry in group])
        if self._told is not None:
            self._told(group)
        return []

    def _put_aside(self, group: list[Entry]) -> None:
        if self._spool is None:
            self._refuse(group, Unreachable(self._reason))
            return
        if not self._spool.count:
            self._log.error("prediction log: into the spool", reason=self._reason)
            self._retry_at = max(self._retry_at, time.monotonic() + RETRY_S)
        try:
            self._spool.append([_record(entry) for entry in group])
        except (SpoolFull, OSError) as error:
            self._refuse(group, error)
            return
        self.error = None
        self._metrics.log_spooled.inc(len(group))
        settle([(entry.ticket, entry.reply) for entry in group])
        if self._told is not None:
            self._told(group)

    def _drain(self, spool: Spool) -> None:
        """One group of what waits into the database; the next one comes after the requests that have queued meanwhile."""
        if spool.count:
            self._draining = self._draining or spool.groups()
            try:
                group = next(self._draining, None)
                if group is None:
                    self._log.info("prediction log: the spool is drained", entries=spool.count)
                    spool.cut()
                    self._draining = None
                else:
                    self._write_again(group)
            except Exception as error:  # told, and tried again from the beginning; what is there already is passed over
                self._draining, self._reason = None, str(error)[:200]
                self._retry_at = time.monotonic() + RETRY_S
        elif time.monotonic() >= self._orphans_at:
            self._orphans_at = time.monotonic() + _ORPHANS_S
            try:
                for path, groups in spool.left_behind():
                    for group in groups:
                        self._write_again(group)
                    self._log.info("prediction log: drained what another process left", file=path.name)
            except Exception as error:  # as above
                self._log.warning("prediction log: a spool was not drained", error=str(error)[:200])

    def _write_again(self, group: list[Record]) -> None:
        for record in group:
            if record.image_key is not None:
                self._store.put(record.image_key, record.image)
        try:
            self._rows.write(*_read(group), again=True)
        except Unwritable as error:
            if len(group) > 1:
                for record in group:
                    self._write_again([record])
                return
            self._log.error("prediction log: a spooled entry was refused", error=str(error), rows=group[0].rows)
            self._metrics.log_failures.inc()

    def _refuse(self, group: list[Entry], error: Exception) -> None:
        self.error = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._log.error("prediction log: not written", entries=len(group), error=self.error)
        self._metrics.log_failures.inc(len(group))
        outcomes: list[Outcome] = []
        for entry in group:
            refusal = BusyError("this could not be written to the log, so it is not answered", retry_after_s=2)
            refusal.__cause__ = error
            outcomes.append((entry.ticket, refusal))
        settle(outcomes)


_Rows = list[tuple[type[SQLModel], dict[str, Any]]]


def _statements(group: list[Entry]) -> tuple[_Rows, list[dict[str, Any]]]:
    """(rows, label tasks) of a group, images first: a task must not stand without its sample."""
    rows: _Rows = [(Sample, _sample(entry.image)) for entry in group if entry.image is not None]
    rows += [row for entry in group for row in entry.rows]
    return rows, [_columns(entry.task) for entry in group if entry.task is not None]


def _record(entry: Entry) -> Record:
    rows, offers = _statements([entry])
    named = [(kind.__name__, values) for kind, values in rows]
    if entry.image is None:
        return Record(named, offers[0] if offers else None)
    return Record(named, offers[0] if offers else None, f"samples/{entry.image.sample_id}", entry.image.data)


def _read(group: list[Record]) -> tuple[_Rows, list[dict[str, Any]]]:
    rows = [(getattr(tables, name), values) for record in group for name, values in record.rows]
    return rows, [record.offer for record in group if record.offer is not None]


def _columns(row: SQLModel) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}  # type: ignore[attr-defined]


def _sample(image: Image) -> dict[str, Any]:
    return {
        "id": image.sample_id,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "media_type": image.media_type,
        "size_bytes": len(image.data),
        "created_at": now(),
    }
