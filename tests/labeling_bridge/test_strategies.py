"""Conformance of every strategy, and how arms share the room."""

from __future__ import annotations

import numpy as np
import pytest

from labeling_bridge.strategies import STRATEGIES, Candidate, choose, typical
from sutdol.grouping import clusters


def candidates(n: int, arm: str = "unfamiliar") -> list[Candidate]:
    rng = np.random.default_rng(n)
    return [
        Candidate(
            f"t{i:03d}",
            arm,
            float(rng.random()),
            float(rng.random()),
            float(rng.normal()),
            1000.0 + i,
            rng.normal(0, 1, 8).astype(np.float32),
            {"nothing_found": 1.0 + float(rng.random())},
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_strategy_gives_one_comparable_score_each(name, n):
    """A missing score or NaN would drop a candidate or shuffle the order silently."""
    scores = STRATEGIES[name](candidates(n, name), 3, np.random.default_rng(0))
    assert len(scores) == n
    assert not any(np.isnan(scores))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_repeats_itself_under_one_seed(name):
    """A choice that cannot be repeated cannot be explained."""
    found = candidates(20, name)
    assert STRATEGIES[name](found, 5, np.random.default_rng(3)) == STRATEGIES[name](found, 5, np.random.default_rng(3))


def test_the_strangest_come_first_and_those_without_a_score_last():
    """Larger means sooner, in every strategy."""
    found = [
        Candidate("plain", "unfamiliar", 0, 0, 1.0, 0),
        Candidate("none", "unfamiliar", 1, 1, None, 0),
        Candidate("strange", "unfamiliar", 0, 0, 9.0, 0),
    ]
    assert choose(found, 3, np.random.default_rng(0)) == ["strange", "plain", "none"]


def test_the_arms_take_turns():
    """A burst of one arm must not starve the others."""
    found = candidates(10, "unfamiliar") + candidates(3, "empty")
    found = [Candidate(c.arm + c.task_id, c.arm, c.priority, c.uncertainty, c.ood_score, c.created_at) for c in found]
    chosen = choose(found, 6, np.random.default_rng(0))
    assert sum(c.startswith("empty") for c in chosen) == 3
    assert len(set(chosen)) == 6


@pytest.mark.parametrize("room", [-1, 0])
def test_no_room_means_nobody(room):
    """A negative remainder of the budget must not count from the end."""
    assert choose(candidates(5), room, np.random.default_rng(0)) == []


def test_an_arm_nobody_ranks_is_an_error():
    """A new arm without a strategy must not be left waiting in silence."""
    with pytest.raises(KeyError):
        choose(candidates(1, "unheard-of"), 1, np.random.default_rng(0))


def crowd(spots: list[tuple[float, int]], arm: str = "diverse") -> list[Candidate]:
    """Groups of candidates at a place each, all about as doubtful; a group's size is the second number."""
    rng = np.random.default_rng(8)
    found = []
    for group, (place, size) in enumerate(spots):
        for i in range(size):
            x = rng.normal(place, 0.05, 4).astype(np.float32)
            found.append(Candidate(f"g{group}-{i}", arm, 0.5, 0.5 + 0.01 * rng.random(), None, 0.0, x))
    return found


def test_diverse_takes_one_of_each_kind():
    """Twenty pictures of the same doubt teach what one of them teaches."""
    chosen = choose(crowd([(0, 40), (5, 3), (-5, 3)]), 3, np.random.default_rng(0))
    assert {c.split("-")[0] for c in chosen} == {"g0", "g1", "g2"}


def test_margin_takes_the_most_doubtful_however_alike():
    """Whoever wants only that gets only that."""
    found = candidates(30, "margin")
    best = sorted(found, key=lambda c: -c.uncertainty)[:5]
    assert choose(found, 5, np.random.default_rng(0)) == [c.task_id for c in best]


def test_a_cold_start_begins_in_the_middle_of_the_crowds():
    """Before anything is labelled doubt means nothing, and outliers teach least."""
    found = [
        *crowd([(0, 20), (5, 20)]),
        Candidate("lonely", "diverse", 0.5, 1.0, None, 0.0, np.full(4, 99, np.float32)),
    ]
    chosen = choose(found, 2, np.random.default_rng(1), cold=True)
    assert len({c.split("-")[0] for c in chosen}) == 2
    assert "lonely" not in choose([f for f in found if f.task_id != "g0-0"], 1, np.random.default_rng(1), cold=True)


@pytest.mark.parametrize("strategy", [typical, STRATEGIES["diverse"]])
def test_without_features_there_is_still_an_order(strategy):
    """Samples of a model that carries no statistics have none."""
    plain = [Candidate(str(i), "diverse", 0.5, i / 9, None, 0.0) for i in range(9)]
    assert len(strategy(plain, 3, np.random.default_rng(0))) == 9


@pytest.mark.parametrize("x", [np.zeros((5, 2)), np.eye(5)])
def test_clusters_survive_points_that_coincide(x):
    """A still camera gives a hundred equal features."""
    assert len(clusters(x, 3, np.random.default_rng(0))) == 5


def test_of_empty_images_the_nearest_miss_comes_first():
    """An object just under the threshold is the likeliest one that was missed."""
    found = [
        Candidate(str(i), "empty", 0.5, 1.0, None, 0.0, None, {"nothing_found": 1 + v})
        for i, v in enumerate((0.0, 0.2, 0.1))
    ]
    assert choose(found, 3, np.random.default_rng(0)) == ["1", "2", "0"]
