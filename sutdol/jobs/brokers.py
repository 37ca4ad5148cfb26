"""What carries doorbells to workers. BROKERS maps a URL scheme to its opener; all of them are Dramatiq brokers.

    sqlite, postgresql    the database itself: table `message`, delivered under leases (EmbeddedBroker)
    redis, rediss         Dramatiq's own, told to look for dead workers with every command; `?namespace=` keeps two apart
    amqp, amqps           Dramatiq's own

`send` writes every doorbell into table `message`. The embedded broker delivers it from there; with any other broker the
workers forward what lies there (`forward`). No middleware: retries, time limits and delays belong to the job row.

Errors: SetupError for an unknown scheme, a missing extra, or an embedded broker that is not the database in use.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit
from uuid import uuid4

import dramatiq
import sqlalchemy as sa
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ConnectionFailed, QueueJoinTimeout, QueueNotFound
from sqlmodel import col

from sutdol.context import Context
from sutdol.db import Database, upsert
from sutdol.errors import SetupError
from sutdol.tables import Message, now

POLL_S = 0.1
"""Pause between two looks into an empty table: the time from commit to start of a job is this at most, half on average."""
FORWARD_LEASE_S = 10.0


class EmbeddedBroker(dramatiq.Broker):
    """The queue in the database itself. A message is leased, kept alive while in hand, deleted when acknowledged.

    Whoever dies with messages in hand loses them after `lease_s`. Delayed messages stay in the table, not in a worker.

    Args:
        database: migrated; stays open when the broker closes.
        lease_s: seconds after the last sign of life that a message is delivered again.
    """

    def __init__(self, database: Database, *, lease_s: float) -> None:
        super().__init__(middleware=[])
        self.database = database
        self.lease_s = lease_s

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """Store `message`, to be delivered after `delay` milliseconds."""
        if message.queue_name not in self.queues:
            raise QueueNotFound(message.queue_name)  # type: ignore[no-untyped-call]
        self.emit_before("enqueue", message, delay)
        at = now()
        row = Message(
            id=message.message_id,
            queue=message.queue_name,
            body=message.encode().decode(),
            not_before=at + (delay or 0) / 1000,
            lease_until=0.0,
            created_at=at,
        )
        with _connected(), self.database.begin() as session:
            upsert(session, row, keys=["id"], update=["body", "not_before", "lease_owner", "lease_until"])
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 1000) -> Consumer:
        """A consumer with at most `prefetch` messages in hand that says None after `timeout` milliseconds without one."""
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)  # type: ignore[no-untyped-call]
        return _EmbeddedConsumer(self, queue_name, prefetch, timeout / 1000)

    def flush(self, queue_name: str) -> None:
        with self.database.begin() as session:
            session.execute(sa.delete(Message).where(col(Message.queue) == queue_name))

    def flush_all(self) -> None:
        for queue_name in self.get_declared_queues():
            self.flush(queue_name)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until every message of the queue was acknowledged, at most `timeout` milliseconds."""
        deadline = time.monotonic() + timeout / 1000 if timeout is not None else None
        while deadline is None or time.monotonic() < deadline:
            with self.database.read() as session:
                if not session.execute(sa.select(col(Message.id)).where(col(Message.queue) == queue_name)).first():
                    return
            time.sleep(POLL_S)
        raise QueueJoinTimeout(queue_name)  # type: ignore[no-untyped-call]


class _Delivery(MessageProxy):
    """A message with the lease it was delivered under; only the holder of that lease can delete or return it."""

    def __init__(self, message: dramatiq.Message[Any], row_id: str, lease: str) -> None:
        super().__init__(message)
        self.row_id = row_id
        self.lease = lease


class _EmbeddedConsumer(Consumer):
    """Dramatiq's consumer thread iterates; its worker threads acknowledge, so what is in hand is guarded by a lock."""

    def __init__(self, broker: EmbeddedBroker, queue_name: str, prefetch: int, timeout_s: float) -> None:
        self._database = broker.database
        self._lease_s = broker.lease_s
        self._queue = queue_name
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._ready: deque[_Delivery] = deque()
        self._in_hand: dict[str, str] = {}
        self._lock = threading.Lock()
        self._freed = threading.Event()
        self._renew_at = time.monotonic() + self._lease_s / 4

    def __next__(self) -> MessageProxy | None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            with _connected():
                self._renew()
                if not self._ready:
                    self._fetch()
            if self._ready:
                return self._ready.popleft()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._freed.wait(min(POLL_S, left))
            self._freed.clear()

    def ack(self, message: MessageProxy) -> None:
        with _connected():
            discard(self._database, [(message.row_id, message.lease)])
        self._forget(message)

    def nack(self, message: MessageProxy) -> None:
        """Nobody here can handle it. Dropped: the sweeper rings again while the job is wanted."""
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        for message in messages:
            with _connected(), self._database.begin() as session:
                held = (col(Message.id) == message.row_id, col(Message.lease_owner) == message.lease)
                session.execute(sa.update(Message).where(*held).values(lease_owner=None, lease_until=0.0))
            self._forget(message)

    def close(self) -> None:
        self.requeue(list(self._ready))
        self._ready.clear()

    def _fetch(self) -> None:
        with self._lock:
            room = self._prefetch - len(self._in_hand)
        if room < 1:
            return
        lease, rows = take(self._database, [self._queue], room, self._lease_s)
        for row_id, body in rows:
            self._ready.append(_Delivery(dramatiq.Message.decode(body.encode()), row_id, lease))
        with self._lock:
            self._in_hand |= {row_id: lease for row_id, _ in rows}

    def _renew(self) -> None:
        if time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + self._lease_s / 4
        with self._lock:
            leases = sorted(set(self._in_hand.values()))
        if leases:
            with self._database.begin() as session:
                until = now() + self._lease_s
                held = col(Message.lease_owner).in_(leases)
                session.execute(sa.update(Message).where(held).values(lease_until=until))

    def _forget(self, message: MessageProxy) -> None:
        with self._lock:
            if self._in_hand.get(message.row_id) == message.lease:
                del self._in_hand[message.row_id]
        self._freed.set()


def take(database: Database, queues: list[str], limit: int, lease_s: float) -> tuple[str, list[tuple[str, str]]]:
    """Lease up to `limit` due messages of `queues`, oldest first: (name of the lease, [(message id, body), ...]).

    Looks without a lock first, because nearly always there is nothing.
    """
    at = now()
    ready = (col(Message.queue).in_(queues), col(Message.not_before) <= at, col(Message.lease_until) <= at)
    ids = sa.select(col(Message.id)).where(*ready).order_by(col(Message.not_before), col(Message.id)).limit(limit)
    with database.read() as session:
        if session.execute(ids).first() is None:
            return "", []
    lease = uuid4().hex
    with database.begin() as session:
        free = list(session.execute(ids.with_for_update(skip_locked=True)).scalars())
        taken = session.execute(
            sa.update(Message)
            .where(col(Message.id).in_(free))
            .values(lease_owner=lease, lease_until=at + lease_s)
            .returning(col(Message.id), col(Message.body), col(Message.not_before))
            .execution_options(synchronize_session=False)
        ).all()
    return lease, [(row_id, body) for row_id, body, _ in sorted(taken, key=lambda row: (row[2], row[0]))]


def discard(database: Database, held: list[tuple[str, str]]) -> None:
    """Delete messages, given as (id, name of the lease); one that was leased by somebody else meanwhile stays."""
    with database.begin() as session:
        for row_id, lease in held:
            wanted = (col(Message.id) == row_id, col(Message.lease_owner) == lease)
            session.execute(sa.delete(Message).where(*wanted))


def is_embedded(broker: dramatiq.Broker) -> bool:
    """Does it deliver from table `message` itself? If not, somebody has to `forward`."""
    return isinstance(broker, EmbeddedBroker)


def forward(context: Context, broker: dramatiq.Broker, queues: list[str]) -> int:
    """Hand due doorbells of `queues` from table `message` to a broker that is not the database; how many.

    Raises:
        dramatiq.errors.BrokerError or the client library's own: the broker is unreachable; the doorbells stay.
    """
    lease, rows = take(context.database, queues, 100, FORWARD_LEASE_S)
    for _, body in rows:
        broker.enqueue(dramatiq.Message.decode(body.encode()))
    if rows:
        discard(context.database, [(row_id, lease) for row_id, _ in rows])
    return len(rows)


def open_broker(context: Context) -> dramatiq.Broker:
    """The broker behind the setting `broker_url`, or the database itself.

    Raises:
        SetupError: an unknown scheme, a missing extra, an embedded broker that is not the database in use.
    """
    url = context.settings.broker
    scheme = urlsplit(url).scheme.split("+")[0]
    if scheme not in BROKERS:
        raise SetupError(f"broker URL: expected one of {', '.join(f'{s}://' for s in BROKERS)}, found {scheme!r}")
    return BROKERS[scheme](context, url)


@contextmanager
def _connected() -> Iterator[None]:
    """Dramatiq's word for an unreachable broker, so that its threads wait and try again."""
    try:
        yield
    except sa.exc.OperationalError as error:
        raise ConnectionFailed(str(error)) from error  # type: ignore[no-untyped-call]


def _embedded(context: Context, url: str) -> dramatiq.Broker:
    if url != context.settings.database:
        raise SetupError(
            "broker URL: a queue in a database must be the database in use, found another one",
            hint="leave SUTDOL_BROKER_URL empty",
        )
    return EmbeddedBroker(context.database, lease_s=context.settings.lease_s)


def _redis(context: Context, url: str) -> dramatiq.Broker:
    try:
        from dramatiq.brokers.redis import RedisBroker
    except ImportError as error:
        raise SetupError("broker URL: redis:// needs the package redis", hint="pip install 'sutdol[redis]'") from error
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    namespace = query.pop("namespace", ["sutdol"])[0]
    rest = "&".join(f"{name}={value}" for name, values in query.items() for value in values)
    broker: dramatiq.Broker = RedisBroker(  # type: ignore[no-untyped-call]
        url=urlunsplit(parts._replace(query=rest)),
        namespace=namespace,
        middleware=[],
        # With the defaults a dead worker's messages were not found within 40 minutes: maintenance runs by chance.
        maintenance_chance=1_000_000,
        heartbeat_timeout=int(context.settings.lease_s * 2_500),
    )
    return broker


def _amqp(context: Context, url: str) -> dramatiq.Broker:
    try:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
    except ImportError as error:
        raise SetupError("broker URL: amqp:// needs the package pika", hint="pip install 'sutdol[amqp]'") from error
    broker: dramatiq.Broker = RabbitmqBroker(url=url, middleware=[])
    return broker


BROKERS: dict[str, Callable[[Context, str], dramatiq.Broker]] = {
    "sqlite": _embedded,
    "postgresql": _embedded,
    "redis": _redis,
    "rediss": _redis,
    "amqp": _amqp,
    "amqps": _amqp,
}
