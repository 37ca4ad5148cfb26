"""The clock process: one leader among any number of them sends the periodic jobs, sweeps, and buries dead processes.

    lease `clock` -> every `clock_tick_s`: what is due of PERIODIC -> send(kind, {}, unique_key="clock:<kind>")

A job that is still queued or running from the last time is not sent again, so a slow one never piles up. Nothing is
remembered across a change of leaders: the new one sends everything once, and handlers look before they act.

Rejected: APScheduler (its job stores keep their own truth beside the job table; all we need is a list of intervals),
Dramatiq's cron packages (no leader).
"""

from __future__ import annotations

import time

import sqlalchemy as sa
import structlog
from sqlmodel import col

from sutdol.context import Context, open_context
from sutdol.jobs import lease, rows
from sutdol.jobs.process import living, stop_signals, stop_sweeping, stopped, sweep_as_leader, sweep_every
from sutdol.settings import Settings
from sutdol.tables import Job

PERIODIC = {
    "bridge.window": "window_interval_s",
    "bridge.push": "window_interval_s",
    "bridge.read": "poll_interval_s",
    "bridge.sweep": "sweep_interval_s",
    "bridge.export": "export_interval_s",
    "retrain.trigger": "window_interval_s",
    "monitor": "monitor_interval_s",
    "registry.mirror": "mlflow_interval_s",
    "retrain.autolabel": "sweep_interval_s",
}
"""Kind of job -> the setting with its interval. The payload is empty: all models."""
KEEP_S = 3600.0
"""Ended periodic jobs are forgotten after this; there are some thirty a minute."""
PRUNE_EVERY_S = 60.0
LEADER = "clock"

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Tick until SIGTERM or SIGINT; to be called from the main thread of a process of its own.

    Raises:
        SetupError: the database cannot be opened.
    """
    context = open_context(settings)
    stop = stop_signals()
    clock = Clock(context, lease.owner_name())
    log.info("clock started", owner=clock.owner)
    with living(context, "clock") as beat:
        while not stopped(stop, min(settings.clock_tick_s, sweep_every(settings))):
            try:
                beat()
                clock.tick()
            except Exception:  # the outermost loop: whatever fails here is tried again at the next tick
                log.exception("tick failed")
        clock.resign()
        stop_sweeping(context, clock.owner)
    context.database.close()
    log.info("clock stopped")


class Clock:
    """What is due when, for as long as this process leads."""

    def __init__(self, context: Context, owner: str) -> None:
        self.context = context
        self.owner = owner
        self._due: dict[str, float] = {}
        self._prune_at = 0.0
        self._sweep_at = 0.0
        self._look_at = 0.0

    def tick(self) -> list[str]:
        """Do what is due, if this process leads; the kinds that were sent."""
        settings, at = self.context.settings, time.monotonic()
        if at >= self._sweep_at:
            self._sweep_at = at + sweep_every(settings)
            sweep_as_leader(self.context, self.owner)
        if at < self._look_at:
            return []
        self._look_at = at + settings.clock_tick_s * 0.9
        if not lease.acquire(self.context.database, LEADER, self.owner, settings.lease_s + settings.clock_tick_s):
            self._due.clear()
            return []
        if at >= self._prune_at:
            self._prune_at = at + PRUNE_EVERY_S
            rows.prune(self.context.database, rows.CLOCK_PREFIX, KEEP_S)
            lease.bury(self.context.database, 3 * settings.lease_s)
        due = [kind for kind in PERIODIC if at >= self._due.get(kind, 0.0)]
        for kind in due:
            self._due[kind] = at + getattr(settings, PERIODIC[kind])
        return send_periodic(self.context, due)

    def resign(self) -> None:
        """Give the leadership up, so that another clock follows at once."""
        lease.release(self.context.database, LEADER, self.owner)


def send_periodic(context: Context, kinds: list[str]) -> list[str]:
    """Send those of `kinds` that are neither queued nor running from an earlier time; their names."""
    if not kinds:
        return []
    keys = {rows.CLOCK_PREFIX + kind for kind in kinds}
    with context.database.read() as session:
        open_ = (col(Job.flight_key).in_(keys), col(Job.state).in_(("queued", "running")))
        taken = set(session.execute(sa.select(col(Job.flight_key)).where(*open_)).scalars())
    with context.database.begin() as session:
        wanted = [kind for kind in kinds if rows.CLOCK_PREFIX + kind not in taken]
        return [kind for kind in wanted if rows.send(session, kind, {}, unique_key=rows.CLOCK_PREFIX + kind)]
