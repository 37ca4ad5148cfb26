"""Conformance of every strategy, and how arms share the room."""

from __future__ import annotations

import numpy as np
import pytest

from labeling_bridge.strategies import STRATEGIES, Candidate, choose


def candidates(n: int, arm: str = "unfamiliar") -> list[Candidate]:
    rng = np.random.default_rng(n)
    return [
        Candidate(f"t{i:03d}", arm, float(rng.random()), float(rng.random()), float(rng.normal()), 1000.0 + i)
        for i in range(n)
    ]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_strategy_gives_one_comparable_score_each(name, n):
    """A missing score or NaN would drop a candidate or shuffle the order silently."""
    scores = STRATEGIES[name](candidates(n, name), np.random.default_rng(0))
    assert len(scores) == n
    assert not any(np.isnan(scores))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_repeats_itself_under_one_seed(name):
    """A choice that cannot be repeated cannot be explained."""
    found = candidates(20, name)
    assert STRATEGIES[name](found, np.random.default_rng(3)) == STRATEGIES[name](found, np.random.default_rng(3))


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
