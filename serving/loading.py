"""A registered version becomes something that can answer: read, checked, tried, warmed, compared, measured.

    store -> hashes -> (from elsewhere: self-test in a child) -> open -> warm, finite -> golden answers -> batch size -> Loaded

All of it runs in one thread of the lowest priority, so requests do not feel it.

Errors: ModelError with the reason, NotFoundError without such a version or bundle.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from sutdol import registry, selftest
from sutdol.context import Context
from sutdol.errors import ModelError, SutdolError
from sutdol.predictor import Predictor
from sutdol.runtime import give_memory_back
from sutdol.sampling import Sampler
from sutdol.stores import Store

BATCHES = (1, 4, 8)
"""Batch sizes that are tried at load; the smallest that pays is used."""
_BATCH_GAIN = 0.9
_SLOW_RUN_S = 0.01
"""On a CPU a model that takes longer for one image gains nothing from batches."""
_MEMORY_FACTOR = 2
"""A session's memory over its files' size: its weights, and what a run needs."""


@dataclass(frozen=True)
class Loaded:
    """A model version that can answer.

    Attributes:
        batch: images per run that pay; 1 where batches bring nothing.
        memory_bytes: what it is counted with against the limit.
        load_ms, warm_ms: reading, trying and opening the bundle; warming, golden check and measuring the batch.
    """

    model: str
    version: int
    sha256: str
    predictor: Predictor
    sampler: Sampler
    batch: int
    memory_bytes: int
    load_ms: float
    warm_ms: float

    @property
    def on_cpu(self) -> bool:
        return self.predictor.provider == "CPUExecutionProvider"


class Loader:
    """One background thread; `load` may be called from any other."""

    def __init__(self, context: Context, sampler: Callable[[str], Sampler]) -> None:
        self._context = context
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model-loader", initializer=lowest_priority)
        self._store = _ReadElsewhere(context.store)
        self._lock = threading.Lock()
        self._tried: set[str] = set()
        self._under_way: dict[tuple[str, int], Future[Loaded]] = {}

    def start(self) -> None:
        self._store.start()

    def stop(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    def load(self, slug: str, version: int) -> Future[Loaded]:
        """Begin to load a version; those who ask for the same one share it."""
        with self._lock:
            pending = self._under_way.get((slug, version))
            if pending is None:
                pending = self._thread.submit(self._load, slug, version)
                self._under_way[slug, version] = pending
                pending.add_done_callback(lambda _: self._forget(slug, version))
        return pending

    def _forget(self, slug: str, version: int) -> None:
        with self._lock:
            self._under_way.pop((slug, version), None)

    def _load(self, slug: str, version: int) -> Loaded:
        with self._context.database.read() as session:
            row = registry.get_version(session, slug, version)
        began = time.perf_counter()
        settings = self._context.settings
        try:
            if row.run_id is None:  # not the work of a training run of ours
                self._try_out(slug, version)
            predictor = Predictor.open(self._store, slug, version, providers=settings.provider_names or None, threads=1)
            if predictor.manifest.files["model.onnx"] != row.sha256:
                raise ModelError(f"model.onnx of {slug} version {version} is not the one that was registered")
            opened = time.perf_counter()
            predictor.warm()
            predictor.check_golden()
            batch = best_batch(predictor)
        except (SutdolError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(f"version {version} of {slug}: {type(error).__name__}: {error}") from error
        warmed = time.perf_counter()
        give_memory_back()
        return Loaded(
            slug,
            version,
            row.sha256,
            predictor,
            self._sampler(slug),
            batch,
            _MEMORY_FACTOR * row.size_bytes,
            (opened - began) * 1000,
            (warmed - opened) * 1000,
        )

    def _try_out(self, slug: str, version: int) -> None:
        """In a child with little memory, each file once: it is known by its hash."""
        manifest = registry.read_manifest(self._store, slug, version)
        onnx = registry.read_file(self._store, slug, version, manifest, "model.onnx")
        if manifest.files["model.onnx"] not in self._tried:
            settings = self._context.settings
            # by a thread of normal priority, which the child inherits: at the lowest it would starve on a busy machine and
            # a good model be refused for being slow
            self._store.elsewhere(
                partial(
                    selftest.check_contract,
                    onnx,
                    manifest,
                    memory_bytes=settings.self_test_bytes,
                    timeout_s=settings.self_test_timeout_s,
                )
            )
            self._tried.add(manifest.files["model.onnx"])


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

    def elsewhere(self, work: Callable[[], object]) -> None:
        """Do something else in that thread, and wait for it."""
        self._reader.submit(work).result()

    def close(self) -> None:
        self._reader.shutdown(wait=True)


def best_batch(predictor: Predictor, *, gain: float = _BATCH_GAIN, slow_run_s: float = _SLOW_RUN_S) -> int:
    """The batch size at which an image costs least, the smaller one where it hardly matters; runs a few batches.

    Args:
        gain: a larger batch is taken when an image costs less than this share.
        slow_run_s: on a CPU, a model that takes longer for one image is not tried with more.
    """
    height, width = predictor.manifest.input.size_hw
    on_cpu = predictor.provider == "CPUExecutionProvider"
    clock = time.thread_time if on_cpu else time.perf_counter  # a busy machine must not decide this
    cost: dict[int, float] = {}
    for n in BATCHES:
        images = np.zeros((n, 3, height, width), np.float32)
        times = []
        for _ in range(3):
            began = clock()
            predictor.run(images)
            times.append(clock() - began)
            if times[-1] > 10 * _SLOW_RUN_S:
                break
        cost[n] = min(times) / n
        if n == 1 and cost[1] > slow_run_s and on_cpu:
            return 1
    best = 1
    for n in BATCHES[1:]:
        if cost[n] < gain * cost[best]:
            best = n
    return best


def lowest_priority() -> None:
    """For the calling thread alone; Linux knows a priority per thread. Threads it starts inherit it."""
    if sys.platform == "linux":
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(own + 19, 19))  # below the rest of this process
