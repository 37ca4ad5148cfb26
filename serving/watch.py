"""Is a version that has just begun to answer worse than the one it stands in for? Counted here, judged a few times a second.

    engine: ran, failed | shadow: compared -> sliding window per (model, version) -> judge -> None, or the reason in words

Four causes: the model fails, it answers with what is not finite, it needs much more time for an image than the version it
is compared with, its answers differ from that version's too often. Time is the CPU time of the run itself (wall time on
other devices), so a busy machine does not make a healthy model look slow.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
MIN_ANSWERS = 20
"""Fewer answers, runs or comparisons prove nothing."""
MIN_FAILURES = 3
_KEPT = 2000


@dataclass(frozen=True)
class Limits:
    """What a version may do before it is taken back; 0 means "not watched".

    Attributes:
        errors: share of images on which the model fails; `not_finite` counts with a tenth of it.
        slower: its time for an image over that of the version it is compared with.
        disagreement: share of compared answers that differ.
    """

    errors: float
    slower: float
    disagreement: float


@dataclass
class _Seen:
    ran: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """(moment, seconds for an image)"""
    failed: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """(moment, whether it was for something not finite)"""
    compared: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """(moment, whether the answers differed)"""


Key = tuple[str, int]


class Watch:
    """Fed by the inference threads and the shadow; judged by the thread that follows the registry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[Key, _Seen] = {}

    def ran(self, model: str, version: int, *, seconds_each: float) -> None:
        """A run that went well."""
        with self._lock:
            self._of((model, version)).ran.append((time.monotonic(), seconds_each))

    def failed(self, model: str, version: int, *, not_finite: bool) -> None:
        """The model failed on one image."""
        with self._lock:
            self._of((model, version)).failed.append((time.monotonic(), not_finite))

    def compared(self, model: str, version: int, *, differs: bool) -> None:
        """An answer of `version` was held against the other version's."""
        with self._lock:
            self._of((model, version)).compared.append((time.monotonic(), differs))

    def forget(self, model: str, version: int) -> None:
        """Start anew: what a version did in an earlier life does not count."""
        with self._lock:
            self._seen.pop((model, version), None)

    def judge(self, model: str, version: int, reference: int | None, limits: Limits) -> str | None:
        """Why `version` should not go on, or None."""
        with self._lock:
            since = time.monotonic() - WINDOW_S
            seen = self._seen.get((model, version), _Seen())
            ran = [seconds for at, seconds in seen.ran if at > since]
            failed = [not_finite for at, not_finite in seen.failed if at > since]
            compared = [different for at, different in seen.compared if at > since]
            other = self._seen.get((model, reference), _Seen()) if reference is not None else _Seen()
            usual = [seconds for _, seconds in other.ran]
        answers = len(ran) + len(failed)
        not_finite = sum(failed)
        if limits.errors and not_finite >= MIN_FAILURES and not_finite / answers > limits.errors / 10:
            return f"{not_finite} of {answers} answers were not finite"
        if limits.errors and len(failed) >= MIN_FAILURES and len(failed) / answers > limits.errors:
            return f"the model failed on {len(failed)} of {answers} images"
        if limits.slower and min(len(ran), len(usual)) >= MIN_ANSWERS:
            took, before = statistics.median(ran) * 1000, statistics.median(usual) * 1000
            if took > limits.slower * before and took - before > 0.5:
                return (
                    f"{took:.1f} ms for an image, version {reference} takes {before:.1f} (allowed {limits.slower:g} x)"
                )
        if limits.disagreement and len(compared) >= MIN_ANSWERS and sum(compared) / len(compared) > limits.disagreement:
            share = f"{sum(compared)} of {len(compared)}"
            return f"{share} answers differ from those of version {reference} (allowed {limits.disagreement:.0%})"
        return None

    def numbers(self, model: str, version: int) -> dict[str, float]:
        """What was seen of a version, for people."""
        with self._lock:
            seen = self._seen.get((model, version), _Seen())
            ran, failed, compared = list(seen.ran), list(seen.failed), list(seen.compared)
        return {
            "answers": len(ran),
            "failed": len(failed),
            "not_finite": sum(n for _, n in failed),
            "ms_each": round(statistics.median(s for _, s in ran) * 1000, 3) if ran else 0.0,
            "compared": len(compared),
            "different": sum(d for _, d in compared),
        }

    def _of(self, key: Key) -> _Seen:
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen()
            if len(self._seen) > 256:
                self._seen.pop(next(iter(self._seen)))
        return seen
