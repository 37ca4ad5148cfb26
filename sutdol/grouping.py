"""Which of many images belong together, by their features alone. Pure.

    features (n, m) -> clusters: weighted k-means with k groups
                    -> groups: halved as long as the halves stand apart, by the silhouette

Sources: seeding, Arthur & Vassilvitskii 2007; silhouette, Rousseeuw 1987.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Groups = NDArray[np.int64]
_ROUNDS = 20
LEAST_SILHOUETTE = 0.25
"""Mean silhouette of two halves below which they are one group."""


def clusters(x: Float, k: int, rng: np.random.Generator, *, weights: Float | None = None) -> Groups:
    """Cluster number of each row of x (n, m) by weighted k-means, k <= n; every cluster has a member.

    >>> clusters(np.array([[0.0], [0.1], [9.0]]), 2, np.random.default_rng(0)).tolist() in ([0, 0, 1], [1, 1, 0])
    True
    """
    w = np.ones(len(x)) if weights is None else weights
    centres = x[[int(rng.choice(len(x), p=w / w.sum()))]]
    for _ in range(k - 1):
        far = distances(x, centres).min(axis=1) ** 2 * w
        pick = int(rng.choice(len(x), p=far / far.sum())) if far.sum() > 0 else int(rng.integers(len(x)))
        centres = np.concatenate([centres, x[[pick]]])
    group = np.full(len(x), -1, np.int64)
    for _ in range(_ROUNDS):
        found = distances(x, centres).argmin(axis=1)
        if (found == group).all():
            break
        group = found
        for c in range(k):
            mine = group == c
            if mine.any():
                centres[c] = np.average(x[mine], axis=0, weights=w[mine])
    return group


def groups(x: Float, *, most: int = 8) -> Groups:
    """Group number of each row of x (n, m), the largest group first; one group where the rows do not fall apart.

    The largest group is halved as long as the halves stand apart, so a far group does not hide the gap between two near ones.
    The same rows always give the same groups. Memory grows with n squared: at most a few hundred rows.

    >>> groups(np.array([[0.0], [0.1], [0.2], [9.0], [9.1]])).tolist()
    [0, 0, 0, 1, 1]
    """
    whole: list[Groups] = []
    parts: list[Groups] = [np.arange(len(x))]
    while parts:
        part = max(parts, key=len)
        parts = [p for p in parts if p is not part]
        half = clusters(x[part], 2, np.random.default_rng(0)) if len(part) >= 4 else np.zeros(len(part), np.int64)
        room = len(whole) + len(parts) + 2 <= most
        if room and silhouette(distances(x[part], x[part]), half) > LEAST_SILHOUETTE:
            parts += [part[half == 0], part[half == 1]]
        else:
            whole.append(part)
    found: Groups = np.zeros(len(x), np.int64)
    for place, part in enumerate(sorted(whole, key=len, reverse=True)):
        found[part] = place
    return found


def silhouette(apart: Float, group: Groups) -> float:
    """Mean silhouette in [-1, 1] of a grouping, from the distances (n, n); 0 for a row alone in its group."""
    names = np.unique(group)
    if len(names) < 2:
        return 0.0
    sums = np.stack([apart[:, group == name].sum(axis=1) for name in names], axis=1)
    counts = np.array([(group == name).sum() for name in names])
    own = np.searchsorted(names, group)
    rows = np.arange(len(group))
    within = sums[rows, own] / np.maximum(counts[own] - 1, 1)
    means = sums / counts
    means[rows, own] = np.inf
    nearest = means.min(axis=1)
    values = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-12)
    return float(np.where(counts[own] > 1, values, 0.0).mean())


def distances(a: Float, b: Float) -> Float:
    """(n, k) between the rows of a and those of b."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))
