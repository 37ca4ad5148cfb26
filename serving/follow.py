"""This process follows the registry: aliases, rollouts, the label budget; it judges what is on trial, and shows itself.

    every FOLLOW_S: champions -> load, publish | challengers -> load beside | trials -> judge -> roll back, end
    every RATES_S: open label tasks -> the samplers' rates;  every heartbeat: the replica's row

Whoever moves an alias anywhere (a gate, a person, another replica's watch) is followed within a second. On PostgreSQL the
commit itself calls (see `sutdol.wake`), and without a call the registry is read only every QUIET_S. A version that does not
load leaves the old one serving, is told once, and the same bytes are tried again only after a growing pause.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from typing import Any

import structlog
from sqlalchemy import and_, func, or_
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, delete, select

from serving.slots import Slots, Trial, Wanted
from sutdol import rollouts, sampling, wake
from sutdol.context import Context
from sutdol.db import upsert
from sutdol.errors import SutdolError
from sutdol.focus import Focus, read_focus
from sutdol.tables import Alias, LabelTask, Model, ModelVersion, Replica, Rollout, now

FOLLOW_S = 0.3
QUIET_S = 2.0
RATES_S = 2.0
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0


class Follower:
    """One thread.

    Attributes:
        database_error: why the registry could not be read last time, None when it could.
    """

    def __init__(self, context: Context, slots: Slots) -> None:
        self._context = context
        self._slots = slots
        self._refused: dict[tuple[str, int, str], tuple[float, float]] = {}
        self._listener = wake.Listener(context.database, wake.REGISTRY)
        self._read_at = -math.inf
        self._looked = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._log = structlog.get_logger("serving.follow")
        self._started_at = now()
        self._rates_at = self._heartbeat_at = 0.0
        self._reported: dict[str, Any] | None = None
        self.database_error: str | None = None

    def start(self) -> None:
        """Begin to follow; returns when every champion is loaded or refused, or the first look failed.

        Whoever connects before that would be turned away, so the port is opened after it.
        """
        self._slots.start()
        self._listener.start()
        self._thread.start()
        self._looked.wait()

    def stop(self) -> None:
        """End following, and take this replica's row away."""
        self._ended.set()
        self._listener.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._slots.stop()
        try:
            with self._context.database.begin() as session:
                session.execute(delete(Replica).where(Replica.id == self._slots.replica_id))  # type: ignore[arg-type]
        except SQLAlchemyError as error:
            self._log.warning("replica row not removed", error=str(error).splitlines()[0])

    @property
    def alive(self) -> bool:
        """Whether this process still follows the registry; without that it would serve yesterday's champion for ever."""
        return self._thread.is_alive()

    def _follow(self) -> None:
        while True:
            try:
                if self._listener.woken.is_set() or not self._may_rest():
                    self._listener.woken.clear()
                    self._read_at = time.monotonic()
                    self._read()
                self._tick()
                self.database_error = None
                self._slots.followed = True
            except SQLAlchemyError as error:
                self._read_at = -math.inf
                self.database_error = str(error).splitlines()[0]
                self._log.warning("registry not read", error=self.database_error)
            except Exception:  # the outermost loop of this thread: told, and tried again
                self._log.exception("following the registry failed")
            self._looked.set()
            self._listener.woken.wait(FOLLOW_S)
            if self._ended.is_set():
                return

    def _may_rest(self) -> bool:
        """Whether a call would have come if the registry had changed."""
        return self._listener.listening and time.monotonic() - self._read_at < QUIET_S

    def _read(self) -> None:
        """Follow what the registry says now."""
        slots = self._slots
        slots.wanted = wanted_now = self._read_wanted()
        current = slots.current()
        for slug in current:
            if slug not in wanted_now or wanted_now[slug].version is None:
                slots.retire(slug)
        for slug, wanted in wanted_now.items():
            loaded = current.get(slug)
            if wanted.version is None or (
                loaded and (loaded.version, loaded.sha256) == (wanted.version, wanted.sha256)
            ):
                slots.agreed(slug)
            elif slots.eager(slug) and not self._ended.is_set():
                self._bring(slug, wanted.version, wanted.sha256)
            if wanted.trial is not None and not self._ended.is_set():
                self._bring_challenger(slug, wanted.trial)

    def _tick(self) -> None:
        self._judge()
        if time.monotonic() - self._rates_at > RATES_S:
            self._rates_at = time.monotonic()
            self._follow_the_budget()
        self._heartbeat()

    def _read_wanted(self) -> dict[str, Wanted]:
        with self._context.database.read() as session:
            models = session.exec(select(Model.slug)).all()
            aliases = session.exec(
                select(Alias.model, Alias.name, Alias.version, ModelVersion.sha256).join(
                    ModelVersion,
                    and_(ModelVersion.model == Alias.model, ModelVersion.version == Alias.version),  # type: ignore[arg-type]
                )
            ).all()
            trials = {
                row.model: Trial(row.version, row.mode, row.share, row.max_disagreement)
                for row in session.exec(select(Rollout))
            }
        champions = {slug: (version, sha256) for slug, name, version, sha256 in aliases if name == "champion"}
        found = {}
        for slug in models:
            version, sha256 = champions.get(slug, (None, ""))
            others = {name: v for s, name, v, _ in aliases if s == slug and name != "champion"}
            found[slug] = Wanted(version, sha256, others, trials.get(slug))
        return found

    def _bring(self, slug: str, version: int, sha256: str) -> None:
        """Load the champion and publish it, unless the alias has moved on meanwhile."""
        retry_at, pause_s = self._refused.get((slug, version, sha256), (0.0, 0.0))
        if time.monotonic() < retry_at:
            return
        try:
            loaded = self._slots.load_candidate(slug, version)
        except SutdolError as error:
            self._refuse(slug, version, sha256, error, pause_s)
            return
        again = self._read_wanted().get(slug)
        if again is not None and (again.version, again.sha256) == (version, sha256):
            self._refused.pop((slug, version, sha256), None)
            self._slots.publish(loaded)

    def _refuse(self, slug: str, version: int, sha256: str, error: SutdolError, last_pause_s: float) -> None:
        pause_s = min(last_pause_s * 2, LONGEST_RETRY_S) if last_pause_s else FIRST_RETRY_S
        self._refused[slug, version, sha256] = (time.monotonic() + pause_s, pause_s)
        self._slots.refused(slug, version, error, first=not last_pause_s)

    def _bring_challenger(self, slug: str, trial: Trial) -> None:
        if self._slots.has(slug, trial.version):
            return
        try:
            loaded = self._slots.load_candidate(slug, trial.version)
        except SutdolError as error:
            self._end(slug, trial.version, f"it does not load: {error}")
            return
        self._slots.watch.forget(slug, trial.version)
        self._slots.keep_other(loaded)

    def _judge(self) -> None:
        slots = self._slots
        for slug, version, reference, limits in slots.on_trial():
            reason = slots.watch.judge(slug, version, reference, limits)
            if reason is None:
                continue
            self._log.error("taken back", model=slug, version=version, reason=reason)
            current = slots.current().get(slug)
            if current is not None and current.version == version:
                record = {
                    "watch": {str(v): slots.watch.numbers(slug, v) for v in (version, reference) if v is not None}
                }
                text = f"taken back by the watch: {reason}"
                slots.take_back(slug, version, text=text, record=record)
            else:
                self._end(slug, version, reason)

    def _end(self, slug: str, version: int, reason: str) -> None:
        with self._context.database.begin() as session:
            running = session.get(Rollout, slug)
            if running is not None and running.version == version:
                numbers = self._slots.watch.numbers(slug, version)
                rollouts.end(session, slug, who="watch", text=reason, record={"watch": numbers})
        wanted = self._slots.wanted.get(slug)
        if wanted is not None:
            self._slots.wanted[slug] = Wanted(wanted.version, wanted.sha256, wanted.aliases, None)

    def _follow_the_budget(self) -> None:
        """Samplers slow down as the labelling budget of the day and the open backlog fill up."""
        settings = self._context.settings
        waiting = or_(LabelTask.state.in_(("queued", "in_studio")), and_(_is("candidate"), LabelTask.arm == "drawn"))  # type: ignore[attr-defined,arg-type]
        recent = and_(LabelTask.queued_at.is_not(None), LabelTask.queued_at > now() - 86_400)  # type: ignore[union-attr,operator,arg-type]
        with self._context.database.read() as session:
            open_tasks = _count_by_model(session, waiting)
            queued_today = _count_by_model(session, recent)
            focus = {slug: read_focus(session, slug, v.version) for slug, v in self._slots.current().items()}
        for slug, sampler in self._slots.samplers():
            drawn, other = sampling.rates(
                settings, open_tasks=open_tasks.get(slug, 0), queued_today=queued_today.get(slug, 0)
            )
            sampler.set_rates(drawn, other)
            sampler.set_focus(focus.get(slug, Focus()))

    def _heartbeat(self) -> None:
        serving = self._slots.serving()
        if serving == self._reported and time.monotonic() - self._heartbeat_at < self._context.settings.heartbeat_s:
            return
        row = Replica(
            id=self._slots.replica_id,
            role="serve",
            pid=os.getpid(),
            host=socket.gethostname(),
            url=self._context.settings.url,
            serving=serving,
            started_at=self._started_at,
            heartbeat_at=now(),
        )
        with self._context.database.begin() as session:
            upsert(session, row, keys=["id"], update=["serving", "heartbeat_at"])
        self._reported, self._heartbeat_at = serving, time.monotonic()


def _count_by_model(session: Session, condition: Any) -> dict[str, int]:
    rows = session.exec(select(LabelTask.model, func.count()).where(condition).group_by(LabelTask.model))
    return dict(rows.all())


def _is(state: str) -> Any:
    return LabelTask.state == state
