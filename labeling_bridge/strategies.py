"""Which of the waiting candidates people see first, one function per arm. Pure.

A strategy gets all candidates of its arm and the room there is, and returns one score for each, in the same order; *larger =
sooner*. The random arm `drawn` has no strategy: it is never ranked. To add one: a function here and a line in STRATEGIES.

`diverse` is uncertainty x k-means: of the BEFORE_CLUSTERS times as many most doubtful candidates as there is room, clusters in
feature space weighted by doubt, one from each. With hardly any labels yet doubt means nothing; then `typical` takes the middle
of each cluster instead.

Sources: weighted k-means over uncertain candidates, Zhdanov 2019 (arXiv:1901.05954); typical first, Hacohen et al. 2022
(arXiv:2202.02794).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sutdol.grouping import clusters, distances

Float = NDArray[np.float64]
BEFORE_CLUSTERS = 10
NEIGHBOURS = 20


@dataclass(frozen=True)
class Candidate:
    """What a strategy may know about a waiting sample; `priority` and `uncertainty` in [0, 1], `created_at` epoch seconds.

    `features` are those that the log kept of it, projected (m,), or None; all candidates of one call are of one version.
    `scores` are its scores by name (`sutdol.scoring.SCORERS`).
    """

    task_id: str
    arm: str
    priority: float
    uncertainty: float
    ood_score: float | None
    created_at: float
    features: NDArray[np.float32] | None = None
    scores: dict[str, float] | None = None

    @property
    def doubt(self) -> float:
        """Of a detector the sum over its boxes, else the uncertainty."""
        return (self.scores or {}).get("box_doubts", self.uncertainty)


Strategy = Callable[[list[Candidate], int, np.random.Generator], list[float]]


def unfamiliar(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[float]:
    """The strangest first; a candidate without a score comes last."""
    return [-np.inf if c.ood_score is None else c.ood_score for c in candidates]


def empty(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[float]:
    """The nearest miss first; where nothing tells them apart, at random."""
    noise = rng.random(len(candidates)) * 1e-6
    return [(c.scores or {}).get("nothing_found", 0.0) + float(n) for c, n in zip(candidates, noise, strict=True)]


def by_priority(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[float]:
    """The order in which the labeler will see them anyway."""
    return [c.priority for c in candidates]


def margin(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[float]:
    """The most doubtful first, however alike they are."""
    return [c.doubt for c in candidates]


def diverse(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[float]:
    """Doubtful and unlike each other: those chosen from their clusters come before all others."""
    doubt = np.array([c.doubt for c in candidates], np.float64)
    top = np.argsort(-doubt, kind="stable")[: BEFORE_CLUSTERS * max(room, 0)]
    x = _features([candidates[i] for i in top])
    if x is None or room < 1 or len(top) <= room:
        return [float(d) for d in doubt]
    weights = doubt[top] - doubt[top].min() + 1e-3
    group = clusters(x, room, rng, weights=weights)
    chosen = [int(top[members[np.argmax(doubt[top[members]])]]) for members in _members(group)]
    return _first(chosen, doubt)


def typical(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[float]:
    """The middle of each cluster, largest cluster first: what to label when next to nothing is labelled yet."""
    x = _features(candidates)
    if x is None or room < 1 or len(candidates) <= room:
        return [float(v) for v in rng.random(len(candidates))]
    typicality = np.empty(len(candidates))
    chosen = []
    for members in sorted(_members(clusters(x, room, rng)), key=len, reverse=True):
        near = distances(x[members], x[members])
        k = min(NEIGHBOURS, len(members) - 1)
        mean = np.sort(near, axis=1)[:, 1 : k + 1].mean(axis=1) if k else np.zeros(1)
        typicality[members] = 1 / (1 + mean)
        chosen.append(int(members[np.argmax(typicality[members])]))
    scores = np.array(_first(chosen, typicality))
    scores[chosen] += np.linspace(1, 0, len(chosen))
    return [float(s) for s in scores]


STRATEGIES: dict[str, Strategy] = {
    "unfamiliar": unfamiliar,
    "empty": empty,
    "disagree": by_priority,
    "weak": by_priority,
    "diverse": diverse,
    "margin": margin,
    "gold": by_priority,
}


BY_DOUBT = ("diverse", "margin")
"""Arms that a cold start makes blind."""


def choose(candidates: list[Candidate], room: int, rng: np.random.Generator, *, cold: bool = False) -> list[str]:
    """Ids of at most `room` candidates: the arms take turns, each in the order of its strategy.

    Args:
        cold: hardly anything is labelled yet, so arms that go by doubt take what is typical instead.

    Raises:
        KeyError: an arm without a strategy.
    """
    ranked: list[list[str]] = []
    arms = sorted({c.arm for c in candidates})
    for arm in arms:
        mine = [c for c in candidates if c.arm == arm]
        others = sum(c.arm != arm for c in candidates)
        share = max(-(-room // len(arms)), room - others)  # what the turns below will give it
        strategy = typical if cold and arm in BY_DOUBT else STRATEGIES[arm]
        scores = strategy(mine, share, rng)
        order = sorted(range(len(mine)), key=lambda i: (-scores[i], mine[i].task_id))
        ranked.append([mine[i].task_id for i in order])
    chosen: list[str] = []
    for turn in range(max((len(r) for r in ranked), default=0)):
        chosen += [r[turn] for r in ranked if turn < len(r)]
    return chosen[: max(room, 0)]


def _members(group: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(group == c) for c in np.unique(group)]


def _features(candidates: Sequence[Candidate]) -> Float | None:
    """(n, m), or None when one has none or they are not of one kind."""
    found = [c.features for c in candidates if c.features is not None]
    if not found or len(found) < len(candidates) or len({f.shape for f in found}) > 1:
        return None
    return np.stack(found).astype(np.float64)


def _first(chosen: list[int], rest: Float) -> list[float]:
    """Scores in which the chosen ones stand above all others, both in the order of `rest`."""
    above = float(rest.max(initial=0.0) - rest.min(initial=0.0)) + 1.0
    scores = rest.astype(np.float64).copy()
    scores[chosen] += above
    return [float(s) for s in scores]
