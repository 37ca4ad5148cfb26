"""What worker and clock processes share: they stop on a signal, show that they live, and sweep while they lead.

    stop_signals() -> queue of signal numbers; living(context, role) -> a row in `replica` kept fresh by the caller's loop

Errors: SQLAlchemy's own, when the database cannot be reached.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from sutdol.context import Context
from sutdol.jobs import lease, rows
from sutdol.settings import Settings

SWEEPER = "job-sweeper"


def sweep_every(settings: Settings) -> float:
    """Seconds between two sweeps: 2, or less where leases are short."""
    return min(2.0, settings.lease_s / 6)


def sweep_as_leader(context: Context, owner: str) -> int:
    """Sweep, unless another process does it these seconds; how many jobs were abandoned."""
    if not lease.acquire(context.database, SWEEPER, owner, context.settings.lease_s / 2):
        return 0
    return rows.sweep(context.database)


def stop_sweeping(context: Context, owner: str) -> None:
    """Let another process sweep from now on."""
    lease.release(context.database, SWEEPER, owner)


@contextmanager
def living(context: Context, role: str) -> Iterator[Callable[[], None]]:
    """A row in `replica` while the block runs; gives a function that keeps it fresh and may be called at any rate."""
    replica_id = lease.announce(context.database, role)
    next_at = time.monotonic() + context.settings.heartbeat_s

    def beat() -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + context.settings.heartbeat_s
            lease.beat(context.database, replica_id, role)

    try:
        yield beat
    finally:
        lease.leave(context.database, replica_id)


def stop_signals() -> SimpleQueue[int]:
    """From now on SIGTERM and SIGINT only put their number into the queue, whose `put` is safe in a signal handler."""
    asked: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked.put(received))
    return asked


def stopped(asked: SimpleQueue[int], wait_s: float) -> bool:
    """Wait up to `wait_s` for one of the signals."""
    try:
        asked.get(timeout=wait_s)
    except Empty:
        return False
    return True
