"""The loaded models of this process behind one pointer each, and how the pointers move.

    promote:  load and check in the background -> alias moves -> publish by one assignment -> the old one drains, and is kept
    follow:   the registry said otherwise (see `follow`) -> the same, the other way round
    lazy:     asked for, not loaded -> load meanwhile; over the memory limit the least recently used one goes
    trial:    canary share, shadow, and the version before: which requests meet which version (see `watch`, `shadow`)

A reference is `NAME`, `NAME@champion`, `NAME@challenger`, `NAME@previous` or `NAME@3`, with or without `models:/` before it.

Errors: NotFoundError for an unknown model or version (lists the known ones), BusyError while a known one is not loaded,
ModelError and NotFoundError of the bundle from `load_candidate`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from serving.loading import Loaded, Loader
from serving.metrics import Metrics
from serving.shadow import Pair
from serving.watch import Limits, Watch
from sutdol import registry, sampling
from sutdol.context import Context
from sutdol.errors import BusyError, ModelError, SutdolError, unknown
from sutdol.events import tell
from sutdol.sampling import Sampler, uniform
from sutdol.tables import Decision, new_id

_FAILED_S = 5.0
"""A version asked for by its number that did not load is not tried again before."""
_IN_USE_S = 1.0


@dataclass(frozen=True)
class Trial:
    """A challenger that gets a share of the traffic, as the registry has it."""

    version: int
    mode: str
    share: float
    max_disagreement: float


@dataclass(frozen=True)
class Wanted:
    """What the registry says about one model; `version` is None while nothing was promoted."""

    version: int | None
    sha256: str
    aliases: dict[str, int] = field(default_factory=dict)
    trial: Trial | None = None


class Slots:
    """The models of this process; `get` and `route` may be called from any thread and never wait.

    Attributes:
        replica_id: of this process's row in `replica`.
        watch: what was seen of each version lately.
        wanted: what the registry said last, by slug; written by the thread that follows it.
        followed: the registry has been read, and every champion was loaded or refused.
    """

    def __init__(self, context: Context, metrics: Metrics, watch: Watch | None = None) -> None:
        self._context = context
        self._metrics = metrics
        self._current: dict[str, Loaded] = {}
        self._kept: dict[str, Loaded] = {}
        self._others: dict[tuple[str, int], Loaded] = {}
        self._used: dict[tuple[str, int], float] = {}
        self._published_at: dict[str, float] = {}
        self._failed: dict[tuple[str, int], tuple[float, SutdolError]] = {}
        self._errors: dict[str, str] = {}
        self._swap_ms: dict[str, float] = {}
        self._samplers: dict[str, Sampler] = {}
        self._arms = sampling.arms_of(context.settings)
        self._swapping = threading.RLock()
        self._loader = Loader(context, self._sampler)
        self._log = structlog.get_logger("serving.slots")
        self._pinned = set(context.settings.pinned)
        self.watch = watch or Watch()
        self.replica_id = new_id()
        self.wanted: dict[str, Wanted] = {}
        self.followed = False

    def start(self) -> None:
        self._loader.start()

    def stop(self) -> None:
        self._loader.stop()

    def get(self, reference: str) -> Loaded:
        """The version that `reference` means now; asks for one that is not loaded to be loaded.

        Raises:
            NotFoundError: no such model or version; lists those there are. BusyError: known, but not loaded yet.
        """
        loaded = self._current.get(reference)
        if loaded is None:
            loaded = self._find(reference)
        self._used[loaded.model, loaded.version] = time.monotonic()
        return loaded

    async def ready(self, reference: str) -> Loaded:
        """As `get`, but waits for a version that is being loaded because of this request.

        Raises:
            NotFoundError, BusyError as `get`; ModelError when it does not load.
        """
        if reference in self._current:
            return self.get(reference)
        slug, version = self._resolve(reference)
        if self._there(slug, version) is None and (self.lazy(slug) or self.wanted[slug].version != version):
            await asyncio.shield(asyncio.wrap_future(self._ask_for(slug, version)))
        return self.get(reference)

    def route(self, loaded: Loaded, sample_id: str) -> Loaded:
        """Who answers for this content: the challenger when a canary runs and its share holds it, else `loaded`."""
        trial = self._trial(loaded)
        if (
            trial is None
            or trial.mode != "canary"
            or not self._in_share(loaded.model, trial.version, sample_id, trial.share)
        ):
            return loaded
        return self._others.get((loaded.model, trial.version), loaded)

    def pair(self, loaded: Loaded, sample_id: str) -> Pair | None:
        """Which other version should answer also, beside an answer of `loaded`; None for nearly all requests."""
        slug, settings = loaded.model, self._context.settings
        wanted = self.wanted.get(slug)
        trial = wanted.trial if wanted else None
        current = self._current.get(slug)
        if trial is not None and current is not None:
            challenger = self._others.get((slug, trial.version))
            if loaded is challenger and trial.mode == "canary":
                return Pair(current, trial.version)
            in_share = self._in_share(slug, trial.version, sample_id, trial.share)
            if loaded is current and challenger is not None and trial.mode == "shadow" and in_share:
                return Pair(challenger, trial.version)
            return None
        before = self._kept.get(slug)
        if loaded is current and before is not None and self._is_young(slug):
            in_share = self._in_share(slug, loaded.version, sample_id, settings.watch_share)
            return Pair(before, loaded.version) if in_share else None
        return None

    def stand_in(self, loaded: Loaded) -> Loaded | None:
        """Who answers when `loaded` fails on an image: for a version on trial the proven one, else nobody."""
        current = self._current.get(loaded.model)
        if loaded is not current:
            return current
        return self._kept.get(loaded.model) if self._is_young(loaded.model) else None

    def on_trial(self) -> list[tuple[str, int, int | None, Limits]]:
        """(model, version, the version it is compared with, limits) of everything that `Watch.judge` should look at."""
        settings = self._context.settings
        found: list[tuple[str, int, int | None, Limits]] = []
        for slug, wanted in list(self.wanted.items()):
            current = self._current.get(slug)
            if current is None:
                continue
            if wanted.trial is not None:
                disagreement = wanted.trial.max_disagreement
                limits = Limits(settings.rollback_errors, settings.rollback_slower, disagreement)
                found.append((slug, wanted.trial.version, current.version, limits))
            before = self._kept.get(slug)
            if before is not None and self._is_young(slug):
                limits = Limits(settings.rollback_errors, settings.rollback_slower, settings.rollback_disagreement)
                found.append((slug, current.version, before.version, limits))
        return found

    def serving(self) -> dict[str, dict[str, Any]]:
        """Per model what really answers, and what stands in the way of the champion: as on the replica's row."""
        state: dict[str, dict[str, Any]] = {}
        for slug, wanted in self.wanted.items():
            loaded = self._current.get(slug)
            error = self._errors.get(slug)
            state[slug] = {
                "version": loaded.version if loaded else None,
                "champion": wanted.version,
                "sha256": loaded.sha256 if loaded else None,
                "provider": loaded.predictor.provider if loaded else None,
                "batch": loaded.batch if loaded else None,
                "error": error,
                "swap_ms": self._swap_ms.get(slug),
                "resting": loaded is None and error is None and self.lazy(slug),
                "challenger": wanted.trial.version if wanted.trial and self.has(slug, wanted.trial.version) else None,
            }
        return state

    @property
    def memory_bytes(self) -> int:
        """What all loaded versions are counted with."""
        return sum(loaded.memory_bytes for loaded in self._everything())

    def load_candidate(self, slug: str, version: int) -> Loaded:
        """Load a version beside the one that serves, warm it and check it; nothing is published. Blocks.

        A version that serves, or served last, is there already.

        Raises:
            ModelError: wrong hash, not loadable, wrong or non-finite answers. NotFoundError: no such version or bundle.
        """
        there = self._there(slug, version)
        if there is not None:
            with self._context.database.read() as session:
                if registry.get_version(session, slug, version).sha256 == there.sha256:
                    return there
        return self._loader.load(slug, version).result()

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
            self.publish(loaded)
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
                self.publish(loaded, watched=False)
        return decision, (time.perf_counter() - began) * 1000

    def take_back(self, slug: str, version: int, *, text: str, record: dict[str, Any]) -> Decision | None:
        """Roll back a champion that the watch has found wanting; None when it is champion no more. Blocks.

        Raises:
            ConflictError, ModelError as `rollback`.
        """
        before = self._kept.get(slug)
        with self._swapping:
            with self._context.database.begin() as session:
                if registry.alias(session, slug, "champion") != version:
                    return None
                decision = registry.rollback(session, slug, who="watch", text=text, record=record)
            if before is not None and before.version == decision.candidate:
                self.publish(before, watched=False)
        return decision

    def publish(self, loaded: Loaded, *, watched: bool = True) -> None:
        """The swap itself; the caller knows that `loaded` is the champion.

        Args:
            watched: whether the one before stands by for a while; not after a rollback, where it is the bad one.
        """
        slug = loaded.model
        with self._swapping:
            began = time.perf_counter()
            old = self._current.get(slug)
            if old is loaded:
                return
            self._current[slug] = loaded
            swap_ms = (time.perf_counter() - began) * 1000
            self._others.pop((slug, loaded.version), None)
            if old is not None:
                self._kept[slug] = old
            if watched and old is not None:
                self.watch.forget(slug, loaded.version)
                self._published_at[slug] = time.monotonic()
            else:
                self._published_at.pop(slug, None)
            self._errors.pop(slug, None)
            wanted = self.wanted.get(slug, Wanted(None, ""))
            self.wanted[slug] = Wanted(loaded.version, loaded.sha256, wanted.aliases, None)
            self._used[slug, loaded.version] = time.monotonic()
            self._make_room(loaded)
        total_ms = self._swap_ms[slug] = loaded.load_ms + loaded.warm_ms + swap_ms
        self._metrics.swaps.labels(slug, "done").inc()
        self._metrics.swap_seconds.labels(slug).observe(total_ms / 1000)
        self._metrics.serving_version.labels(slug).set(loaded.version)
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

    def retire(self, slug: str) -> None:
        """Let go of a model that has no champion any more, or of a lazy one that shall rest."""
        with self._swapping:
            self._current.pop(slug, None)
            self._kept.pop(slug, None)
            for key in [key for key in self._others if key[0] == slug]:
                del self._others[key]

    def refused(self, slug: str, version: int, error: SutdolError, *, first: bool) -> None:
        """Remember why the champion does not answer; the `first` time it is told."""
        self._errors[slug] = f"version {version} refused: {error}"
        if first:
            self._metrics.swaps.labels(slug, "refused").inc()
            self._tell_refused(slug, version, str(error))

    def agreed(self, slug: str) -> None:
        """What answers is what the registry wants, or there is nothing to want."""
        self._errors.pop(slug, None)

    def eager(self, slug: str) -> bool:
        """Whether its champion is loaded before anybody asks for it."""
        return not self.lazy(slug) or slug in self._current

    def keep_other(self, loaded: Loaded) -> None:
        """Hold a version beside the champion: a challenger, or one that was asked for by its number."""
        with self._swapping:
            self._others[loaded.model, loaded.version] = loaded
            self._used[loaded.model, loaded.version] = time.monotonic()
            self._make_room(loaded)

    def has(self, slug: str, version: int) -> bool:
        """Whether that version is loaded here, in whatever role."""
        return self._there(slug, version) is not None

    def samplers(self) -> list[tuple[str, Sampler]]:
        """The sampler of each model that was ever loaded here."""
        return list(self._samplers.items())

    def current(self) -> dict[str, Loaded]:
        """A copy of what answers now."""
        return dict(self._current)

    def _find(self, reference: str) -> Loaded:
        slug, version = self._resolve(reference)
        loaded = self._there(slug, version)
        if loaded is not None:
            return loaded
        if version == self.wanted[slug].version and not self.lazy(slug):
            reason = self._errors.get(slug, "it is being loaded")
            raise BusyError(f"version {version} of {slug!r} does not answer: {reason}", retry_after_s=2)
        self._ask_for(slug, version)
        raise BusyError(f"version {version} of {slug!r} is being loaded", retry_after_s=1)

    def _resolve(self, reference: str) -> tuple[str, int]:
        slug, which = registry.split(reference)
        wanted = self.wanted.get(slug)
        if wanted is None and not self.followed:
            raise BusyError("models are being loaded")
        if wanted is None:
            raise unknown("model", slug, sorted(self.wanted))
        if which.isdigit():
            return slug, int(which)
        version = wanted.version if which == "champion" else wanted.aliases.get(which)
        if version is None and which == "champion":
            raise BusyError(f"model {slug!r} has no promoted version yet", retry_after_s=5)
        if version is None:
            raise unknown("model reference", reference, [f"{slug}@{name}" for name in ("champion", *wanted.aliases)])
        return slug, version

    def _ask_for(self, slug: str, version: int) -> Future[Loaded]:
        at, failure = self._failed.get((slug, version), (0.0, None))
        if failure is not None and time.monotonic() - at < _FAILED_S:
            raise failure
        pending = self._loader.load(slug, version)
        pending.add_done_callback(lambda done: self._came(slug, version, done))
        return pending

    def _came(self, slug: str, version: int, done: Future[Loaded]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, SutdolError):
            self._failed[slug, version] = (time.monotonic(), error)
        elif error is None:
            self._failed.pop((slug, version), None)
            with self._swapping:
                wanted = self.wanted.get(slug)
                is_champion = wanted is not None and wanted.version == version and slug not in self._current
            if is_champion:
                self.publish(done.result())
            elif not self.has(slug, version):
                self.keep_other(done.result())

    def _there(self, slug: str, version: int) -> Loaded | None:
        for loaded in (self._current.get(slug), self._kept.get(slug), self._others.get((slug, version))):
            if loaded is not None and loaded.version == version:
                return loaded
        return None

    def _everything(self) -> list[Loaded]:
        return [*self._current.values(), *self._kept.values(), *self._others.values()]

    def lazy(self, slug: str) -> bool:
        """Whether a model is loaded when somebody asks for it, and may be let go when nobody does."""
        return self._context.settings.models_memory_bytes > 0 and slug not in self._pinned

    def _make_room(self, newest: Loaded) -> None:
        """Let the least recently used versions go until the limit holds; pinned ones and `newest` stay."""
        limit = self._context.settings.models_memory_bytes
        if not limit:
            return
        while self.memory_bytes > limit:
            free = [
                loaded
                for loaded in self._everything()
                if loaded is not newest
                and (loaded.model not in self._pinned or loaded is not self._current.get(loaded.model))
            ]
            if not free:
                self._log.warning("models need more than the limit", bytes=self.memory_bytes, limit=limit)
                return
            oldest = min(free, key=lambda loaded: self._used.get((loaded.model, loaded.version), 0.0))
            self._let_go(oldest)

    def _let_go(self, loaded: Loaded) -> None:
        self._metrics.evicted.labels(loaded.model).inc()
        if self._current.get(loaded.model) is loaded:
            del self._current[loaded.model]
            self._kept.pop(loaded.model, None)
        elif self._kept.get(loaded.model) is loaded:
            del self._kept[loaded.model]
        self._others.pop((loaded.model, loaded.version), None)

    def _trial(self, loaded: Loaded) -> Trial | None:
        wanted = self.wanted.get(loaded.model)
        return wanted.trial if wanted is not None and self._current.get(loaded.model) is loaded else None

    def _in_share(self, slug: str, version: int, sample_id: str, share: float) -> bool:
        return uniform(f"rollout:{slug}:{version}", sample_id) < share

    def _is_young(self, slug: str) -> bool:
        at = self._published_at.get(slug)
        return at is not None and time.monotonic() - at < self._context.settings.watch_s

    def _load_or_tell(self, slug: str, version: int) -> Loaded:
        try:
            return self.load_candidate(slug, version)
        except ModelError as error:
            self._metrics.swaps.labels(slug, "refused").inc()
            self._tell_refused(slug, version, str(error))
            raise

    def _tell_refused(self, slug: str, version: int, reason: str) -> None:
        current = self._current.get(slug)
        serves = f"version {current.version} serves on" if current else "nothing serves"
        with self._context.database.begin() as session:
            tell(
                session,
                "swap.refused",
                f"{slug}: version {version} refused, {serves}: {reason}",
                model=slug,
                version=version,
                serving=current.version if current else None,
                reason=reason,
            )

    def _sampler(self, slug: str) -> Sampler:
        """One per model, whatever version answers: its thresholds are target rates and outlive a swap."""
        with self._swapping:
            if slug not in self._samplers:
                drawn, other = sampling.rates(self._context.settings, open_tasks=0, queued_today=0)
                self._samplers[slug] = Sampler(slug, drawn_rate=drawn, other_rate=other, arms=self._arms)
            return self._samplers[slug]
