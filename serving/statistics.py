"""How often and how long each model version worked since this process started: what `/v2/models/.../stats` tells.

    engine: took (queue, prepare) -> ran (inference, reply) or failed -> Times per (model, version)

Seconds are sums over images, as Triton counts them, so that (sum / count) is a mean. Bounded: the versions of a model that
answered least recently are forgotten first.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

MAX_VERSIONS = 256


@dataclass(slots=True)
class Times:
    """Sums since the start of this process.

    Attributes:
        images: answered images (or raw tensors); `runs` is how many times the model was run for them.
        refused: images that could not be read, and failures of the model.
        last_at: epoch seconds of the last answer, 0 when there was none.
    """

    images: int = 0
    runs: int = 0
    refused: int = 0
    last_at: float = 0.0
    queued_s: float = 0.0
    prepared_s: float = 0.0
    ran_s: float = 0.0
    finished_s: float = 0.0


class Statistics:
    """Fed by the inference threads, read by requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: OrderedDict[tuple[str, int], Times] = OrderedDict()

    def took(self, model: str, version: int, *, refused: int, queued_s: float, prepared_s: float) -> None:
        """Images left the queue and were decoded; `refused` of them could not be."""
        with self._lock:
            times = self._of(model, version)
            times.refused += refused
            times.queued_s += queued_s
            times.prepared_s += prepared_s

    def ran(self, model: str, version: int, *, items: int, ran_s: float, finished_s: float) -> None:
        """One run of the model answered `items` images; each of them waited for the whole run."""
        with self._lock:
            times = self._of(model, version)
            times.images += items
            times.runs += 1
            times.ran_s += ran_s * items
            times.finished_s += finished_s
            times.last_at = time.time()

    def failed(self, model: str, version: int) -> None:
        """The model failed on one image."""
        with self._lock:
            self._of(model, version).refused += 1

    def of(self, model: str) -> dict[int, Times]:
        """A copy of what is known of each version of `model`."""
        with self._lock:
            return {v: replace(times) for (slug, v), times in self._times.items() if slug == model}

    def _of(self, model: str, version: int) -> Times:
        key = (model, version)
        if key not in self._times:
            self._times[key] = Times()
            if len(self._times) > MAX_VERSIONS:
                self._times.popitem(last=False)
        self._times.move_to_end(key)
        return self._times[key]
