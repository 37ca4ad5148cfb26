"""Calibration moves the numbers it should and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol import scoring


def test_temperature_mends_overconfidence_and_keeps_the_ranking() -> None:
    """A confidence of .9 should be right nine times in ten, and the best class must stay the best."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (4000, 5))
    labels = np.array([rng.choice(5, p=p) for p in scoring.softmax(logits)])
    found = scoring.fit_temperature(logits * 3, labels)
    assert found == pytest.approx(3, rel=0.1)
    assert (scoring.softmax(logits * 3, temperature=found).argmax(1) == logits.argmax(1)).all()


def test_a_temperature_is_never_worse_than_none() -> None:
    """Too few labels, or none that help: leave the model as it is."""
    assert scoring.fit_temperature(np.zeros((3, 2)), np.array([0, 1, 0])) == 1.0
    assert scoring.fit_temperature(np.zeros((50, 2)), np.tile([0, 1], 25)) == 1.0


def test_a_small_temperature_does_not_tie_the_best_classes() -> None:
    """Saturated float32 would make 1.0 of both and ruin the order."""
    p = scoring.softmax(np.array([20.0, 19.0, 0.0]), temperature=0.05)
    assert p[0] > p[1]


def test_box_scores_are_calibrated_by_their_log_odds() -> None:
    """A detector's .9 that is right half of the time becomes about .5."""
    rng = np.random.default_rng(1)
    true_odds = rng.normal(0, 1.5, 5000)
    hits = rng.random(5000) < scoring.sigmoid(true_odds)
    assert scoring.fit_binary_temperature(true_odds * 2, hits) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("chances", "expected"), [([0.0, 1.0], [0, 0]), ([0.5], [1]), ([], [])])
def test_the_entropy_of_yes_or_no_is_whole_at_both_ends(chances: list[float], expected: list[float]) -> None:
    """0 * log 0 is 0, not NaN."""
    assert scoring.binary_entropy(np.array(chances)) == pytest.approx(expected)
