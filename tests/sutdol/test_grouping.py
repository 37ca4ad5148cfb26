"""Groups by features alone: what belongs together is found together, and nothing falls apart that is one."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol.grouping import groups, silhouette


@pytest.mark.parametrize("sizes", [(30, 20, 10), (40,), (5, 5), (1, 12), (60, 4, 3, 3)])
def test_groups_that_stand_apart_are_found_the_largest_first(sizes: tuple[int, ...]) -> None:
    """Whatever the order of the rows; one blob stays one."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 0.1, (n, 32)) + np.eye(32)[i] * 6 for i, n in enumerate(sizes)])
    truth = np.repeat(np.arange(len(sizes)), sizes)
    order = rng.permutation(len(x))
    found = groups(x[order])
    for name in range(len(sizes)):
        assert len(set(found[truth[order] == name])) == 1
    assert len(set(found)) == len(sizes)
    assert sorted(np.bincount(found), reverse=True) == list(np.bincount(found))


def test_a_far_group_does_not_hide_the_gap_between_two_near_ones() -> None:
    """Noise and inverted digits are two things, however red a third one is."""
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [rng.normal(0, 0.1, (20, 16)), rng.normal(0, 0.3, (20, 16)) + 1.0, rng.normal(0, 0.1, (9, 16)) + 30]
    )
    assert len(set(groups(x))) == 3


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_few_rows_are_one_group(n: int) -> None:
    """Nothing to tell apart."""
    assert groups(np.zeros((n, 4))).tolist() == [0] * n


def test_equal_rows_are_one_group_and_have_no_silhouette() -> None:
    """Repeats of one picture."""
    x = np.ones((9, 3))
    assert groups(x).tolist() == [0] * 9
    assert silhouette(np.zeros((9, 9)), np.zeros(9, np.int64)) == 0.0
