"""How much faster one version is than another: the whole predictor, on all cores, in turns within one run.

    images -> [champion, candidate, champion, candidate, ...] blocks of a second -> ratio of each pair -> median, interval

Turns, because a machine's speed drifts by more than what is to be measured; the interval is that of the median of the pairs,
so a noisy machine says so instead of being lucky.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sutdol.predictor import Predictor

BLOCK_S = 1.0
PAIRS = 12


@dataclass(frozen=True)
class SpeedUp:
    """Champion's time over candidate's; above 1 the candidate is faster.

    Attributes:
        low, high: 95 % interval of the median of the pairs (binomial, no assumption about the noise).
        champion_ms, candidate_ms: wall milliseconds per image with all threads busy, median.
    """

    ratio: float
    low: float
    high: float
    champion_ms: float
    candidate_ms: float
    threads: int


def measure(
    champion: Predictor,
    candidate: Predictor,
    images: Sequence[bytes],
    *,
    pairs: int | None = None,
    block_s: float | None = None,
    threads: int = 0,
    check: Callable[[], None] = lambda: None,
) -> SpeedUp:
    """Run both in turns over the same encoded images.

    Args:
        pairs, block_s: PAIRS and BLOCK_S where nothing is said.
        threads: 0 means one per core.
        check: called between blocks; may raise Cancelled.
    """
    pairs, block_s = pairs or PAIRS, block_s or BLOCK_S
    threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    times: list[tuple[float, float]] = []
    with ThreadPoolExecutor(threads) as pool:
        for predictor in (champion, candidate):
            _block(pool, predictor, images, threads, block_s / 4)
        for i in range(pairs):
            check()
            first, second = (champion, candidate) if i % 2 == 0 else (candidate, champion)
            a = _block(pool, first, images, threads, block_s)
            b = _block(pool, second, images, threads, block_s)
            times.append((a, b) if i % 2 == 0 else (b, a))
    ratios = np.sort([a / b for a, b in times])
    rank = max(int(np.floor(pairs / 2 - 0.98 * np.sqrt(pairs))), 0)
    return SpeedUp(
        float(np.median(ratios)),
        float(ratios[rank]),
        float(ratios[pairs - 1 - rank]),
        float(np.median([a for a, _ in times]) * 1000),
        float(np.median([b for _, b in times]) * 1000),
        threads,
    )


def _block(
    pool: ThreadPoolExecutor, predictor: Predictor, images: Sequence[bytes], threads: int, seconds: float
) -> float:
    """Seconds per image with all threads busy for about `seconds`."""
    end = time.perf_counter() + seconds

    def work(offset: int) -> int:
        count = 0
        for data in itertools.islice(itertools.cycle(images), offset, None):
            predictor.predict_bytes(data)
            count += 1
            if time.perf_counter() >= end:
                return count
        return count

    began = time.perf_counter()
    done = sum(pool.map(work, [i * len(images) // threads for i in range(threads)]))
    return (time.perf_counter() - began) / done
