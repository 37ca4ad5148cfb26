"""Which of the waiting candidates people see first, one function per arm. Pure.

A strategy gets all candidates of its arm and returns one score for each, in the same order; *larger = sooner*. The random
arm `drawn` has no strategy: it is never ranked. To add one: a function here and a line in STRATEGIES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """What a strategy may know about a waiting sample; `priority` and `uncertainty` in [0, 1], `created_at` epoch seconds."""

    task_id: str
    arm: str
    priority: float
    uncertainty: float
    ood_score: float | None
    created_at: float


Strategy = Callable[[list[Candidate], np.random.Generator], list[float]]


def unfamiliar(candidates: list[Candidate], rng: np.random.Generator) -> list[float]:
    """The strangest first; a candidate without a score comes last."""
    return [-np.inf if c.ood_score is None else c.ood_score for c in candidates]


def empty(candidates: list[Candidate], rng: np.random.Generator) -> list[float]:
    """Nothing was found on any of them, so no score can tell them apart: at random."""
    return [float(v) for v in rng.random(len(candidates))]


def by_priority(candidates: list[Candidate], rng: np.random.Generator) -> list[float]:
    """The order in which the labeler will see them anyway."""
    return [c.priority for c in candidates]


STRATEGIES: dict[str, Strategy] = {
    "unfamiliar": unfamiliar,
    "empty": empty,
    "disagree": by_priority,
    "weak": by_priority,
    "diverse": by_priority,
    "gold": by_priority,
}


def choose(candidates: list[Candidate], room: int, rng: np.random.Generator) -> list[str]:
    """Ids of at most `room` candidates: the arms take turns, each in the order of its strategy.

    Raises:
        KeyError: an arm without a strategy.
    """
    ranked: list[list[str]] = []
    for arm in sorted({c.arm for c in candidates}):
        mine = [c for c in candidates if c.arm == arm]
        scores = STRATEGIES[arm](mine, rng)
        order = sorted(range(len(mine)), key=lambda i: (-scores[i], mine[i].task_id))
        ranked.append([mine[i].task_id for i in order])
    chosen: list[str] = []
    for turn in range(max((len(r) for r in ranked), default=0)):
        chosen += [r[turn] for r in ranked if turn < len(r)]
    return chosen[: max(room, 0)]
