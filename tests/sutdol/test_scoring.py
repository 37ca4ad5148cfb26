"""Calibration and familiarity: they move the numbers they should and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol import scoring
from sutdol.errors import InputError


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


@pytest.mark.parametrize("normalise", [True, False])
def test_strange_features_score_higher_than_familiar_ones(normalise: bool) -> None:
    """The whole point of the second output."""
    rng = np.random.default_rng(2)
    centres = rng.normal(0, 3, (4, 32))
    labels = rng.integers(0, 4, 600)
    train = centres[labels] + rng.normal(0, 0.5, (600, 32))
    held_out = centres[rng.integers(0, 4, 200)] + rng.normal(0, 0.5, (200, 32))
    strange = rng.normal(0, 3, (200, 32))
    statistics = scoring.fit_ood(train, labels, held_out=held_out, normalise=normalise)
    familiar_scores, strange_scores = statistics.score(held_out), statistics.score(strange)
    assert abs(familiar_scores.mean()) < 1e-6
    assert np.median(strange_scores) > np.quantile(familiar_scores, 0.99)


def test_statistics_survive_their_file() -> None:
    """They travel beside the model."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (50, 8))
    statistics = scoring.fit_ood(x, None, held_out=x[:20], normalise=False)
    again = scoring.OodStatistics.from_bytes(statistics.to_bytes())
    assert np.allclose(again.score(x), statistics.score(x))
    with pytest.raises(InputError):
        scoring.OodStatistics.from_bytes(b"not a file")


@pytest.mark.parametrize(
    ("features", "held_out"),
    [
        (np.zeros((1, 4)), np.zeros((5, 4))),
        (np.zeros((5, 4)), np.zeros((0, 4))),
        (np.full((5, 4), np.nan), np.zeros((5, 4))),
    ],
)
def test_nothing_to_learn_from_is_said(features: np.ndarray, held_out: np.ndarray) -> None:
    """A silent NaN would make every image familiar."""
    with pytest.raises(InputError):
        scoring.fit_ood(features, None, held_out=held_out, normalise=True)


def test_features_that_never_vary_are_survived() -> None:
    """Dead channels are common in small nets."""
    x = np.zeros((20, 4))
    assert np.isfinite(scoring.fit_ood(x, None, held_out=x, normalise=True).score(x)).all()
