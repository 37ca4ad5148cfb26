"""Candidates that show the same picture as another task are merged into it: nobody labels one picture twice.

    waiting candidates, tasks that people have or will get -> merges (candidate -> the task it is merged into)

Two pictures are the same when their fingerprints are equal but for a bit or two and nothing in their features contradicts
(the same file encoded again), or when their features lie nearer than different pictures ever do (a still camera, a video).
Fingerprints alone are not enough: of photos from one desk, one in ten has a neighbour that close.

Nothing is dropped: a merged task names its keeper, is counted, and comes back when the keeper brings no label. `drawn`
samples are never merged, but others may be merged into them.

Pure: rows come in, pairs go out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAME_FILE_BITS = 2
"""Of 64; encoded again, resized or a little brighter, a picture stays within it."""
CONTRADICTION = 2.0
"""Features that lie so many times `duplicate_at` apart show two pictures, whatever their fingerprints say."""


@dataclass(frozen=True)
class Picture:
    """What is compared: a fingerprint in hex, and projected features of one model version; either may be missing."""

    task_id: str
    version: int
    fingerprint: str | None
    features: NDArray[np.float32] | None


def merges(
    candidates: Sequence[Picture], keepers: Sequence[Picture], *, duplicate_at: dict[int, float]
) -> dict[str, str]:
    """Which candidates show what another task shows already: task id -> id of the task that is kept.

    Args:
        candidates: best first; a worse one is merged into a better one.
        keepers: tasks that stay, whatever happens.
        duplicate_at: per version, see `familiarity.OodStatistics`; features of a version that has none are not compared.
    """
    kept = [*keepers]
    found: dict[str, str] = {}
    for candidate in candidates:
        same = _same(candidate, kept, duplicate_at)
        if same is None:
            kept.append(candidate)
        else:
            found[candidate.task_id] = same.task_id
    return found


def _same(picture: Picture, others: Sequence[Picture], duplicate_at: dict[int, float]) -> Picture | None:
    """The nearest of `others` that shows the same picture."""
    if not others:
        return None
    limit = duplicate_at.get(picture.version, 0.0)
    distance = np.full(len(others), np.nan)
    comparable = [i for i, o in enumerate(others) if _comparable(picture, o) and limit > 0]
    if comparable:
        stacked = np.stack([f for i in comparable if (f := others[i].features) is not None])
        distance[comparable] = np.linalg.norm(stacked - picture.features, axis=1)  # type: ignore[operator]
    bits = np.array([_bits(picture.fingerprint, o.fingerprint) for o in others])
    near = (bits <= SAME_FILE_BITS) & ~(distance > CONTRADICTION * limit)
    near |= distance < limit
    if not near.any():
        return None
    order = np.where(near, np.where(np.isnan(distance), 0.0, distance), np.inf)
    return others[int(order.argmin())]


def _comparable(one: Picture, other: Picture) -> bool:
    return (
        one.features is not None
        and other.features is not None
        and one.version == other.version
        and one.features.shape == other.features.shape
    )


def _bits(one: str | None, other: str | None) -> int:
    """Hamming distance of two fingerprints; 64 when one is missing."""
    return 64 if one is None or other is None else (int(one, 16) ^ int(other, 16)).bit_count()
