"""One loaded model per slug behind one pointer, and how the pointer moves.

    load -> hashes -> warm -> golden check -> finite check -> publish by one assignment -> the old one drains, and is kept

`follow` reads the aliases several times a second and brings this process to the present champion; promoting and rolling back
here load first and move the alias only when that went well. Loading runs in one thread of the lowest priority, so requests
do not feel it. A failure leaves the old version serving, is told once as the event `swap.refused` and on the replica's row,
and the same bytes are tried again only after a growing pause.

Errors: NotFoundError for an unknown model (lists the known ones), BusyError while a known one is not loaded, ModelError and
NotFoundError of the bundle from `load_candidate`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from sqlalchemy import and_, func, or_
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, delete, select

from serving.metrics import Metrics
from sutdol import registry, sampling
from sutdol.context import Context
from sutdol.db import upsert
from sutdol.errors import BusyError, ModelError, SutdolError, unknown
from sutdol.events import tell
from sutdol.predictor import Predictor
from sutdol.sampling import Sampler
from sutdol.stores import Store
from sutdol.tables import Alias, Decision, LabelTask, Model, ModelVersion, Replica, new_id, now

FOLLOW_S = 0.3
RATES_S = 2.0
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
BATCHES = (1, 4, 8)
"""Batch sizes that are tried at load; the smallest that pays is used."""
_BATCH_GAIN = 0.9
_SLOW_RUN_S = 0.01
"""On a CPU a model that takes longer for one image gains nothing from batches."""


@dataclass(frozen=True)
class Loaded:
    """A model version that can answer.

    Attributes:
        batch: images per run that pay; 1 where batches bring nothing.
        load_ms, warm_ms: reading and opening the bundle; warming, golden check and measuring the batch.
    """

    model: str
    version: int
    sha256: str
    predictor: Predictor
    sampler: Sampler
    batch: int
    load_ms: float
    warm_ms: float


@dataclass(frozen=True)
class Wanted:
    """What the registry says about one model; `version` is None while nothing was promoted."""

    version: int | None
    sha256: str


class _ReadElsewhere(Store):
    """The store, read by a thread of normal priority: the store's own threads inherit the priority of whoever first needs
    them, and images of predictions are written by the same threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="model-reader")

    def start(self) -> None:
        """Called by a thread of normal priority: the reader inherits it."""
        self._reader.submit(int)

    def get(self, key: str) -> bytes:
        return self._reader.submit(self._store.get, key).result()

    def close(self) -> None:
        self._reader.shutdown(wait=True)


class Slots:
    """The models of this process; `get` may be called from any thread and never waits.

    Attributes:
        replica_id: of this process's row in `replica`.
        database_error: why the registry could not be read last time, None when it could.
        followed: the registry has been read, and every champion was loaded or refused.
    """

    def __init__(self, context: Context, metrics: Metrics) -> None:
        self._context = context
        self._metrics = metrics
        self._current: dict[str, Loaded] = {}
        self._kept: dict[str, Loaded] = {}
        self._wanted: dict[str, Wanted] = {}
        self._errors: dict[str, str] = {}
        self._swap_ms: dict[str, float] = {}
        self._refused: dict[tuple[str, int, str], tuple[float, float]] = {}
        self._samplers: dict[str, Sampler] = {}
        self._swapping = threading.RLock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="model-loader", initializer=_lowest_priority)
        self._store = _ReadElsewhere(context.store)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._log = structlog.get_logger("serving.slots")
        self._started_at = now()
        self._rates_at = self._heartbeat_at = 0.0
        self._reported: dict[str, Any] | None = None
        self.replica_id = new_id()
        self.database_error: str | None = None
        self.followed = False
        self._looked = threading.Event()

    def start(self) -> None:
        """Begin to follow the registry; returns when every champion is loaded or refused, or the first look failed.

        Whoever connects before that would be turned away, so the port is opened after it.
        """
        self._store.start()
        self._thread.start()
        self._looked.wait()

    def stop(self) -> None:
        """End following, and take this replica's row away."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._store.close()
        try:
            with self._context.database.begin() as session:
                session.execute(delete(Replica).where(Replica.id == self.replica_id))  # type: ignore[arg-type]
        except SQLAlchemyError as error:
            self._log.warning("replica row not removed", error=str(error).splitlines()[0])

    @property
    def alive(self) -> bool:
        """Whether this process still follows the registry; without that it would serve yesterday's champion for ever."""
        return self._thread.is_alive()

    def get(self, slug: str) -> Loaded:
        """The version of `slug` that answers now.

        Raises:
            NotFoundError: no such model; lists those there are. BusyError: known, but nothing is loaded for it.
        """
        loaded = self._current.get(slug)
        if loaded is not None:
            return loaded
        wanted = self._wanted.get(slug)
        if wanted is None and not self.followed:
            raise BusyError("models are being loaded")
        if wanted is None:
            raise unknown("model", slug, sorted(self._wanted))
        if wanted.version is None:
            raise BusyError(f"model {slug!r} has no promoted version yet", retry_after_s=5)
        reason = self._errors.get(slug, "it is being loaded")
        raise BusyError(f"version {wanted.version} of {slug!r} does not answer: {reason}", retry_after_s=2)

    def serving(self) -> dict[str, dict[str, Any]]:
        """Per model what really answers, and what stands in the way of the champion: as on the replica's row."""
        state: dict[str, dict[str, Any]] = {}
        for slug, wanted in self._wanted.items():
            loaded = self._current.get(slug)
            state[slug] = {
                "version": loaded.version if loaded else None,
                "champion": wanted.version,
                "sha256": loaded.sha256 if loaded else None,
                "provider": loaded.predictor.provider if loaded else None,
                "batch": loaded.batch if loaded else None,
                "error": self._errors.get(slug),
                "swap_ms": self._swap_ms.get(slug),
            }
        return state

    def load_candidate(self, slug: str, version: int) -> Loaded:
        """Load a version beside the one that serves, warm it and check it; nothing is published. Blocks.

        A version that serves, or served last, is there already.

        Raises:
            ModelError: wrong hash, not loadable, wrong or non-finite answers. NotFoundError: no such version or bundle.
        """
        pending: Future[Loaded] = self._loader.submit(self._load, slug, version)
        return pending.result()

    def promote(self, slug: str, version: int, *, who: str, text: str) -> tuple[Decision, float]:
        """Load a version here, make it the champion, publish it. Blocks.

        Returns:
            The decision, and the milliseconds from the request to the publication.

        Raises:
            ModelError: it does not load or its checks fail; the old one serves on. ConflictError, NotFoundError.
        """
        began = time.perf_counter()
        loaded = self._load_or_tell(slug, version)
        with self._swapping:
            with self._context.database.begin() as session:
                decision = registry.promote(session, slug, version, who=who, text=text)
            self._publish(loaded)
        return decision, (time.perf_counter() - began) * 1000

    def rollback(self, slug: str, *, who: str, text: str) -> tuple[Decision, float]:
        """Put `previous` back to work; it is still in memory unless this process is younger than the swap. Blocks.

        Raises:
            ConflictError: there is no previous version. ModelError: it does not load any more.
        """
        began = time.perf_counter()
        with self._context.database.read() as session:
            registry.get_model(session, slug)
            previous = registry.alias(session, slug, "previous")
        loaded = self._load_or_tell(slug, previous) if previous is not None else None
        with self._swapping:
            with self._context.database.begin() as session:
                decision = registry.rollback(session, slug, who=who, text=text)
            if loaded is not None and loaded.version == decision.candidate:
                self._publish(loaded)
        return decision, (time.perf_counter() - began) * 1000

    def _load_or_tell(self, slug: str, version: int) -> Loaded:
        try:
            return self.load_candidate(slug, version)
        except ModelError as error:
            self._metrics.swaps.labels(slug, "refused").inc()
            with self._context.database.begin() as session:
                _tell_refused(session, slug, version, self._current.get(slug), str(error))
            raise

    def _load(self, slug: str, version: int) -> Loaded:
        with self._context.database.read() as session:
            sha256 = registry.get_version(session, slug, version).sha256
        for there in (self._current.get(slug), self._kept.get(slug)):
            if there is not None and (there.version, there.sha256) == (version, sha256):
                return there
        began = time.perf_counter()
        settings = self._context.settings
        try:
            predictor = Predictor.open(self._store, slug, version, providers=settings.provider_names or None, threads=1)
            if predictor.manifest.files["model.onnx"] != sha256:
                raise ModelError(f"model.onnx of {slug} version {version} is not the one that was registered")
            opened = time.perf_counter()
            predictor.warm()
            predictor.check_golden()
            batch = _best_batch(predictor)
        except (SutdolError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(f"version {version} of {slug}: {type(error).__name__}: {error}") from error
        warmed = time.perf_counter()
        return Loaded(
            slug,
            version,
            sha256,
            predictor,
            self._sampler(slug),
            batch,
            (opened - began) * 1000,
            (warmed - opened) * 1000,
        )

    def _sampler(self, slug: str) -> Sampler:
        """One per model, whatever version answers: its thresholds are target rates and outlive a swap."""
        with self._swapping:
            if slug not in self._samplers:
                drawn, other = sampling.rates(self._context.settings, open_tasks=0, queued_today=0)
                self._samplers[slug] = Sampler(slug, drawn_rate=drawn, other_rate=other)
            return self._samplers[slug]

    def _publish(self, loaded: Loaded) -> None:
        """The swap itself. The caller holds `_swapping` and knows that `loaded` is the champion."""
        slug = loaded.model
        began = time.perf_counter()
        old = self._current.get(slug)
        if old is loaded:
            return
        self._current[slug] = loaded
        swap_ms = (time.perf_counter() - began) * 1000
        if old is not None:
            self._kept[slug] = old
        self._errors.pop(slug, None)
        total_ms = self._swap_ms[slug] = loaded.load_ms + loaded.warm_ms + swap_ms
        self._metrics.swaps.labels(slug, "done").inc()
        self._metrics.swap_seconds.labels(slug).observe(total_ms / 1000)
        self._metrics.serving_version.labels(slug).set(loaded.version)
        self._wanted[slug] = Wanted(loaded.version, loaded.sha256)
        try:
            with self._context.database.begin() as session:
                tell(
                    session,
                    "swap.done",
                    f"{slug}: version {loaded.version} answers" + (f", was {old.version}" if old else ""),
                    model=slug,
                    version=loaded.version,
                    previous=old.version if old else None,
                    replica=self.replica_id,
                    provider=loaded.predictor.provider,
                    load_ms=round(loaded.load_ms, 2),
                    warm_ms=round(loaded.warm_ms, 2),
                    swap_ms=round(swap_ms, 4),
                )
        except SQLAlchemyError as error:  # the swap has happened; only its story is missing
            self._log.warning("swap not told", error=str(error).splitlines()[0])

    def _follow(self) -> None:
        while True:
            try:
                self._tick()
                self.database_error = None
                self.followed = True
            except SQLAlchemyError as error:
                self.database_error = str(error).splitlines()[0]
                self._log.warning("registry not read", error=self.database_error)
            except Exception:  # the outermost loop of this thread: told, and tried again
                self._log.exception("following the registry failed")
            self._looked.set()
            if self._ended.wait(FOLLOW_S):
                return

    def _tick(self) -> None:
        self._wanted = self._read_wanted()
        for slug in list(self._current):
            if slug not in self._wanted or self._wanted[slug].version is None:
                self._retire(slug)
        for slug, wanted in self._wanted.items():
            current = self._current.get(slug)
            if wanted.version is None or (
                current and (current.version, current.sha256) == (wanted.version, wanted.sha256)
            ):
                self._errors.pop(slug, None)
                continue
            if not self._ended.is_set():
                self._bring(slug, wanted.version, wanted.sha256)
        if time.monotonic() - self._rates_at > RATES_S:
            self._rates_at = time.monotonic()
            self._follow_the_budget()
        self._heartbeat()

    def _read_wanted(self) -> dict[str, Wanted]:
        with self._context.database.read() as session:
            rows = session.exec(
                select(Model.slug, Alias.version, ModelVersion.sha256)
                .join(Alias, and_(Alias.model == Model.slug, Alias.name == "champion"), isouter=True)  # type: ignore[arg-type]
                .join(
                    ModelVersion,
                    and_(ModelVersion.model == Model.slug, ModelVersion.version == Alias.version),  # type: ignore[arg-type]
                    isouter=True,
                )
            ).all()
        return {slug: Wanted(version, sha256 or "") for slug, version, sha256 in rows}

    def _retire(self, slug: str) -> None:
        with self._swapping:
            if self._read_wanted().get(slug, Wanted(None, "")).version is None:
                self._current.pop(slug, None)
                self._kept.pop(slug, None)

    def _bring(self, slug: str, version: int, sha256: str) -> None:
        """Load the champion and publish it, unless the alias has moved on meanwhile."""
        retry_at, pause_s = self._refused.get((slug, version, sha256), (0.0, 0.0))
        if time.monotonic() < retry_at:
            return
        try:
            loaded = self.load_candidate(slug, version)
        except SutdolError as error:
            self._refuse(slug, version, sha256, error, pause_s)
            return
        with self._swapping:
            if self._read_wanted().get(slug) == Wanted(version, sha256):
                self._refused.pop((slug, version, sha256), None)
                self._publish(loaded)

    def _refuse(self, slug: str, version: int, sha256: str, error: SutdolError, last_pause_s: float) -> None:
        pause_s = min(last_pause_s * 2, LONGEST_RETRY_S) if last_pause_s else FIRST_RETRY_S
        self._refused[slug, version, sha256] = (time.monotonic() + pause_s, pause_s)
        self._errors[slug] = f"version {version} refused: {error}"
        if last_pause_s:
            return
        self._metrics.swaps.labels(slug, "refused").inc()
        with self._context.database.begin() as session:
            _tell_refused(session, slug, version, self._current.get(slug), str(error))

    def _follow_the_budget(self) -> None:
        """Samplers slow down as the labelling budget of the day and the open backlog fill up."""
        settings = self._context.settings
        waiting = or_(LabelTask.state.in_(("queued", "in_studio")), and_(_is("candidate"), LabelTask.arm == "drawn"))  # type: ignore[attr-defined,arg-type]
        recent = and_(LabelTask.queued_at.is_not(None), LabelTask.queued_at > now() - 86_400)  # type: ignore[union-attr,operator,arg-type]
        with self._context.database.read() as session:
            open_tasks = _count_by_model(session, waiting)
            queued_today = _count_by_model(session, recent)
        for slug, sampler in list(self._samplers.items()):
            drawn, other = sampling.rates(
                settings, open_tasks=open_tasks.get(slug, 0), queued_today=queued_today.get(slug, 0)
            )
            sampler.set_rates(drawn, other)

    def _heartbeat(self) -> None:
        serving = self.serving()
        if serving == self._reported and time.monotonic() - self._heartbeat_at < self._context.settings.heartbeat_s:
            return
        row = Replica(
            id=self.replica_id,
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


def _best_batch(predictor: Predictor) -> int:
    """The batch size at which an image costs least, the smaller one where it hardly matters; runs a few batches."""
    height, width = predictor.manifest.input.size_hw
    cost: dict[int, float] = {}
    for n in BATCHES:
        images = np.zeros((n, 3, height, width), np.float32)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            predictor.run(images)
            times.append(time.perf_counter() - began)
            if times[-1] > 10 * _SLOW_RUN_S:
                break
        cost[n] = min(times) / n
        if n == 1 and cost[1] > _SLOW_RUN_S and predictor.provider == "CPUExecutionProvider":
            return 1
    best = 1
    for n in BATCHES[1:]:
        if cost[n] < _BATCH_GAIN * cost[best]:
            best = n
    return best


def _tell_refused(session: Session, slug: str, version: int, current: Loaded | None, reason: str) -> None:
    serves = f"version {current.version} serves on" if current else "nothing serves"
    tell(
        session,
        "swap.refused",
        f"{slug}: version {version} refused, {serves}: {reason}",
        model=slug,
        version=version,
        serving=current.version if current else None,
        reason=reason,
    )


def _count_by_model(session: Session, condition: Any) -> dict[str, int]:
    rows = session.exec(select(LabelTask.model, func.count()).where(condition).group_by(LabelTask.model))
    return dict(rows.all())


def _is(state: str) -> Any:
    return LabelTask.state == state


def _lowest_priority() -> None:
    """For the calling thread alone; Linux knows a priority per thread. Threads it starts inherit it."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
