"""The threshold of auto-labels keeps its promise, and says what it lacks."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol.errors import InputError
from sutdol.monitor.guarantee import labels_needed, learn_then_test, score_of


@pytest.mark.parametrize(("target", "needed"), [(0.05, 45), (0.02, 114), (0.01, 230)])
def test_too_few_labels_are_refused_with_the_number_missing(target: float, needed: int) -> None:
    """The number an operator has to wait for."""
    assert labels_needed(target) == needed
    rule = learn_then_test(np.arange(needed - 3, dtype=float), np.ones(needed - 3), target=target)
    assert (rule.threshold, rule.missing) == (None, 3)
    exact = learn_then_test(np.arange(needed, dtype=float), np.ones(needed), target=target)
    assert (exact.threshold, exact.labels, exact.errors, exact.coverage) == (0.0, needed, 0, 1.0)


@pytest.mark.parametrize("target", [0.05, 0.02])
def test_the_error_is_above_its_target_in_at_most_one_of_ten_calibrations(target: float) -> None:
    """A badly calibrated model, 500 calibrations of 300 labels: confidence means nothing, the promise holds."""
    rng = np.random.default_rng(0)
    violations = 0
    for _ in range(500):
        score = rng.normal(0, 1, 300)
        error = 0.12 / (1 + np.exp(2 * score))
        right = (rng.random(300) > error).astype(float)
        rule = learn_then_test(score, right, target=target)
        if rule.threshold is not None:
            grid = np.random.default_rng(1).normal(0, 1, 100_000)
            above = grid[grid >= rule.threshold]
            violations += float((0.12 / (1 + np.exp(2 * above))).mean()) > target
    assert violations / 500 <= 0.1


def test_a_model_that_is_wrong_where_it_is_sure_labels_nothing() -> None:
    """All the labels in the world do not help it."""
    right = np.ones(400)
    right[-8:] = 0  # the surest
    rule = learn_then_test(np.arange(400, dtype=float), right, target=0.02)
    assert (rule.threshold, rule.missing) == (None, 0)


def test_ties_are_taken_or_left_together() -> None:
    """A saturated model gives many answers the same score; half of a tie cannot be chosen."""
    score = np.r_[np.full(200, 5.0), np.full(200, 1.0)]
    right = np.r_[np.ones(200), np.zeros(200)]
    rule = learn_then_test(score, right, target=0.02)
    assert (rule.threshold, rule.labels) == (5.0, 200)


@pytest.mark.parametrize(
    ("score", "right", "target"),
    [
        ([1.0], [1.0], 0.0),
        ([1.0], [1.0], 0.6),
        ([1.0, 2.0], [1.0], 0.05),
        ([np.nan], [1.0], 0.05),
        ([1.0], [np.inf], 0.05),
    ],
)
def test_impossible_requests_are_refused(score: list[float], right: list[float], target: float) -> None:
    """An error of 0 cannot be promised by any number of labels."""
    with pytest.raises(InputError, match="auto-labels"):
        learn_then_test(np.array(score), np.array(right), target=target)


def test_no_labels_at_all_is_a_number_missing() -> None:
    """The first request of a new installation."""
    assert learn_then_test(np.array([]), np.array([]), target=0.05).missing == 45


def test_a_strange_image_is_less_sure_and_certainty_stays_finite() -> None:
    """Confidences of exactly 1 happen; an OOD score that is missing says nothing."""
    scores = score_of(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 3.0, np.nan, 0.0]))
    assert np.isfinite(scores).all()
    assert scores[1] < scores[0] == scores[2]
