"""Images become logged answers, on one thread per core; nothing here runs on the event loop.

    submit -> queue (bounded, one lane per model) -> a thread takes its fair share -> admit, decode, prepare each
           -> run together -> interpret, pick each -> log.submit -> (commit) -> the request's ticket is settled

A batch is what is waiting anyway: min(B, ceil(waiting / threads)) of one model, B measured at load; nobody waits for company.
What one item does wrong stays with it: its decoding error is its own, a batch that fails is run again one by one, and items
whose client has gone or whose deadline has passed are dropped when they are taken.

A raw tensor takes the same road without its ends: it has no image that anybody could look at, so it is neither picked nor
logged, and its caller gets the model's own numbers (`Numbers`).

Errors: BusyError (queue full, deadline passed), ImageError for the item, InputError for a tensor that the model cannot take,
ModelError for the model.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from serving.loading import Loaded
from serving.log import Entry, LogWriter
from serving.metrics import Metrics
from serving.shadow import Offered, Shadow
from serving.slots import Slots
from serving.statistics import Statistics
from serving.tickets import Ticket, settle
from sutdol import images
from sutdol.appearance import Appearance, appearance
from sutdol.errors import BusyError, InputError, ModelError, NotFiniteError, SutdolError
from sutdol.familiarity import pack
from sutdol.images import Image
from sutdol.predictor import Raw
from sutdol.registry import split
from sutdol.runtime import Float32
from sutdol.sampling import Picked
from sutdol.tables import now
from sutdol.types import Prediction


@dataclass(slots=True)
class Item:
    """One image, or one raw tensor, that waits for its answer."""

    model: str
    data: bytes
    key_id: str | None
    ticket: Ticket
    deadline: float = math.inf
    """In `time.monotonic()` seconds."""
    ask: Any = None
    """What the caller asked for beyond the image; only `compose` knows what it means."""
    tensor: Float32 | None = None
    """(3, h, w) float32 at the model's own size, in place of `data`."""
    accepted: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The model's own outputs for one raw tensor, and which version they come from."""

    loaded: Loaded
    scores: Float32
    features: Float32


@dataclass(slots=True)
class Answer:
    """What the engine knows about one item when it is done; `compose` makes log rows and the reply of it."""

    item: Item
    loaded: Loaded
    image: Image
    prediction: Prediction
    picked: Picked
    duration_ms: float
    appearance: Appearance
    scores: dict[str, float]
    """Every score by name, of a picked image; empty otherwise."""
    features: bytes | None
    """Of a picked image, see `familiarity.pack`."""


@dataclass(slots=True)
class _Prepared:
    item: Item
    image: Image | None
    tensor: Float32
    loaded: Loaded
    """Who answers it: the version that the request named, or a canary whose share it falls into."""
    stood_in: bool = False
    """The version that should have answered has failed on it."""


class Engine:
    """The inference threads and their queue.

    Args:
        compose: an answer becomes what the log writes and the client gets.
        threads: 0 means one per core.
        limit: items waiting before `submit` refuses; `limits` the same by model.
        shadow: gets the answers that another version should give as well.
        statistics: where counts and times per model version go.
    """

    def __init__(
        self,
        slots: Slots,
        log: LogWriter,
        metrics: Metrics,
        *,
        compose: Callable[[Answer], Entry],
        threads: int = 0,
        limit: int = 256,
        limits: dict[str, int] | None = None,
        shadow: Shadow | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._slots = slots
        self._log_writer = log
        self._metrics = metrics
        self._compose = compose
        self._statistics = statistics or Statistics()
        self._limit = limit
        self._limits = limits or {}
        self._shadow = shadow
        self._lanes: dict[str, deque[Item]] = {}
        self._waiting = 0
        self._seconds_each = 0.01
        self._wake = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{i}", daemon=True) for i in range(threads or _cores())
        ]
        self._log = structlog.get_logger("serving.engine")

    def start(self) -> None:
        pixels = np.zeros((8, 8, 3), np.uint8)
        images.decode(images.admit(images.encode_png(pixels)).data)  # the image libraries load their parts at first use
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer what is waiting, then end the threads."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def waiting(self) -> int:
        """Items that no thread has taken yet."""
        return self._waiting

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, item: Item) -> None:
        """Queue an item; its ticket is settled with the reply, or with an error.

        Raises:
            BusyError: the queue is full, or the engine is stopping.
        """
        with self._wake:
            if self._stopping or self._waiting >= self._limit:
                seconds = math.ceil(self._waiting * self._seconds_each / len(self._threads))
                raise BusyError(
                    f"{self._waiting} requests are waiting, that is the limit", retry_after_s=min(max(seconds, 1), 60)
                )
            lane = self._lanes.get(item.model)
            if lane is None:
                lane = self._lanes[item.model] = deque()
            elif self._limits and len(lane) >= self._limits.get(split(item.model)[0], self._limit):
                refusal = BusyError(f"{len(lane)} requests wait for {item.model}, that is its limit", retry_after_s=1)
                refusal.status = 429
                raise refusal
            lane.append(item)
            self._waiting += 1
            self._wake.notify()

    def _work(self) -> None:
        while True:
            items = self._take()
            if items is None:
                return
            began = time.perf_counter()
            try:
                self._answer(items)
            except Exception as error:  # the outermost loop of this thread; the requests raise it again
                self._log.exception("inference failed", items=len(items))
                settle([(item.ticket, error) for item in items])
            if items:
                each = (time.perf_counter() - began) / len(items)
                self._seconds_each += 0.05 * (each - self._seconds_each)

    def _take(self) -> list[Item] | None:
        """This thread's fair share of the lane whose turn it is; None when the engine has stopped."""
        with self._wake:
            while not self._waiting:
                if self._stopping:
                    return None
                self._wake.wait()
            model, lane = next(iter(self._lanes.items()))
            share = math.ceil(len(lane) / len(self._threads))
            items = [lane.popleft() for _ in range(min(share, self._batch_of(model)))]
            self._waiting -= len(items)
            del self._lanes[model]
            if lane:
                self._lanes[model] = lane  # to the end: models take turns
        return [item for item in items if self._still_wanted(item)]

    def _batch_of(self, model: str) -> int:
        try:
            return self._slots.get(model).batch
        except SutdolError:
            return 1

    def _still_wanted(self, item: Item) -> bool:
        if item.ticket.gone:
            self._metrics.dropped.labels("gone").inc()
            return False
        if time.monotonic() > item.deadline:
            self._metrics.dropped.labels("expired").inc()
            settle([(item.ticket, BusyError("the deadline passed while the request was waiting"))])
            return False
        return True

    def _answer(self, items: list[Item]) -> None:
        if not items:
            return
        try:
            loaded = self._slots.get(items[0].model)
        except SutdolError as error:
            settle([(item.ticket, error) for item in items])
            return
        began = time.perf_counter()
        prepared = [p for item in items if (p := self._prepare(loaded, item)) is not None]
        self._statistics.took(
            loaded.model,
            loaded.version,
            refused=len(items) - len(prepared),
            queued_s=sum(began - item.accepted for item in items),
            prepared_s=time.perf_counter() - began,
        )
        for group in _by_version(prepared):
            self._metrics.batch_size.observe(len(group))
            self._run(group[0].loaded, group)

    def _prepare(self, loaded: Loaded, item: Item, *, failed: _Prepared | None = None) -> _Prepared | None:
        """The item as the version that answers it wants it; `failed` when `loaded` stands in for another one."""
        try:
            if item.tensor is not None:
                return _Prepared(item, None, _fitting(item.tensor, loaded), loaded)
            image = failed.image if failed is not None and failed.image is not None else images.admit(item.data)
            if failed is None and not _names_a_number(item.model):
                loaded = self._slots.route(loaded, image.sample_id)
            rgb = images.decode(image.data, cover_hw=loaded.predictor.cover((image.height_px, image.width_px)))
            return _Prepared(item, image, loaded.predictor.prepare(rgb), loaded, failed is not None)
        except Exception as error:  # whatever it is, it is this item's own: its request raises it again
            settle([(item.ticket, error)])
            return None

    def _run(self, loaded: Loaded, prepared: list[_Prepared]) -> None:
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            alone = len(prepared) == 1
            batch = prepared[0].tensor[None] if alone else np.stack([p.tensor for p in prepared])
            raw = loaded.predictor.run(batch)
            if len(raw.scores) != len(prepared):
                raise ModelError(f"the model answered for {len(raw.scores)} of {len(prepared)} images")
        except ModelError as error:
            if len(prepared) == 1:
                self._failed(loaded, prepared[0], error)
                return
            for one in prepared:
                self._run(loaded, [one])
            return
        ran = time.perf_counter()
        seconds = time.thread_time() - cpu if loaded.on_cpu else ran - began
        self._slots.watch.ran(loaded.model, loaded.version, seconds_each=seconds / len(prepared))
        for i, one in enumerate(prepared):
            self._finish(loaded, one, raw, i)
        self._statistics.ran(
            loaded.model, loaded.version, items=len(prepared), ran_s=ran - began, finished_s=time.perf_counter() - ran
        )

    def _failed(self, loaded: Loaded, one: _Prepared, error: ModelError) -> None:
        """Counted; and answered by the proven version when `loaded` is a new one on trial."""
        self._statistics.failed(loaded.model, loaded.version)
        if one.image is not None and not one.stood_in:
            self._slots.watch.failed(loaded.model, loaded.version, not_finite=isinstance(error, NotFiniteError))
            proven = self._slots.stand_in(loaded)
            if proven is not None:
                again = self._prepare(proven, one.item, failed=one)
                if again is not None:
                    self._run(proven, [again])
                return
        settle([(one.item.ticket, _blame(one, error))])

    def _finish(self, loaded: Loaded, one: _Prepared, raw: Raw, i: int) -> None:
        if one.image is None:
            settle([(one.item.ticket, Numbers(loaded, raw.scores[i], raw.features[i]))])
            return
        try:
            predictor = loaded.predictor
            prediction = predictor.interpret(raw, i, (one.image.height_px, one.image.width_px))
            picked = loaded.sampler.pick(one.image.sample_id, prediction, predictor.manifest, at=now())
            duration_ms = (time.perf_counter() - one.item.accepted) * 1000
            looks = appearance(one.tensor, predictor.manifest.input)
            scores = predictor.scores(raw, i, prediction) if picked.arms else {}
            features = pack(predictor.ood, raw.features[i]) if picked.arms else None
            answer = Answer(one.item, loaded, one.image, prediction, picked, duration_ms, looks, scores, features)
            entry = self._compose(answer)
            self._log_writer.submit(entry)
            if self._shadow is not None:
                pair = self._slots.pair(loaded, one.image.sample_id)
                if pair is not None:
                    prediction_id = entry.rows[0][1]["id"]
                    self._shadow.offer(Offered(pair, loaded, one.image, one.tensor, prediction, prediction_id))
        except Exception as error:  # as in _prepare
            settle([(one.item.ticket, error)])


def _names_a_number(reference: str) -> bool:
    """`digits@3` means version 3, whatever is on trial."""
    _, at, which = reference.rpartition("@")
    return bool(at) and which.isdigit()


def _by_version(prepared: list[_Prepared]) -> list[list[_Prepared]]:
    """Nearly always one group; a canary's share makes two."""
    groups: dict[int, list[_Prepared]] = {}
    for one in prepared:
        groups.setdefault(id(one.loaded), []).append(one)
    return list(groups.values())


def _fitting(tensor: Float32, loaded: Loaded) -> Float32:
    """The tensor, when its shape is that of the version that answers now; a swap may have changed it meanwhile."""
    expected = (3, *loaded.predictor.manifest.input.size_hw)
    if tensor.shape != expected:
        raise InputError(f"images: version {loaded.version} takes (n, {expected}), found (n, {tensor.shape})")
    return tensor


def _blame(one: _Prepared, error: ModelError) -> SutdolError:
    """Pixels are always in range, so a failure is the model's; any number may stand in a raw tensor."""
    if one.image is None:
        return InputError(f"images: the model has no answer for this tensor: {error.message}")
    return error


def _cores() -> int:
    """Cores that this process may use; fewer than the machine has in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
