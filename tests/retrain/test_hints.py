"""What curves are said to mean, and when nothing is said."""

from __future__ import annotations

import math

import pytest

from retrain.hints import hints, score_of

CALM = [{"train/loss": 1 / i, "val/loss": 1.1 / i, "val/accuracy": 1 - 0.5 / i} for i in range(1, 21)]
OVER = [{"train/loss": 1 / i, "val/loss": 0.5 + abs(i - 6) / 10, "val/accuracy": 0.8} for i in range(1, 16)]
JUMP = [*CALM[:8], {"train/loss": 9.0, "val/loss": 0.2, "val/accuracy": 0.9}, *CALM[8:12]]
RISING = [{"train/loss": 1.0, "val/loss": 1.0, "val/accuracy": i / 20} for i in range(1, 16)]
NOTHING = [{"train/box_loss": 1.0, "val/box_loss": 1.0, "val/mAP50": 0.0} for _ in range(15)]


@pytest.mark.parametrize(
    ("history", "epochs", "expected"),
    [
        ([], 10, []),
        (CALM[:1], 10, []),
        (CALM, 20, []),
        (OVER, 15, ["over-fitting: the loss on val has risen since epoch 6"]),
        (JUMP, 30, ["unstable: the training loss jumped at epoch 9"]),
        (RISING, 15, ["not finished: the last 5 epochs still gained 25.0 points"]),
        (RISING, 30, []),
        (NOTHING, 30, ["nothing learnt"]),
    ],
)
def test_curves_become_words(history: list[dict[str, float]], epochs: int, expected: list[str]) -> None:
    """Most people who train a model do not read curves for a living."""
    found = hints(history, epochs)
    assert len(found) == len(expected)
    assert all(text.startswith(words) and ";" in text for text, words in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"val/accuracy": 0.9, "val/loss": 3.0}, 0.9),
        ({"val/mAP50": 0.4}, 0.4),
        ({"val/loss": 2.0}, -2.0),
        ({"val/accuracy": math.nan, "val/loss": 2.0}, -2.0),
        ({"val/loss": math.inf}, None),
        ({"train/loss": 1.0}, None),
        ({}, None),
    ],
)
def test_candidates_are_compared_by_one_number(metrics: dict[str, float], expected: float | None) -> None:
    """Larger is better, whatever the family calls it."""
    assert score_of(metrics) == expected
