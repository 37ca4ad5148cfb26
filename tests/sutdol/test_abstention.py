"""A model says that it is unsure exactly when its calibrated chance of being wrong is above what the caller accepts."""

from __future__ import annotations

import pytest

from sutdol.abstention import abide
from sutdol.errors import InputError
from sutdol.types import Box, ClassScore, InputSpec, Manifest, Prediction

CLASSES = Manifest(task="classify", classes=["cat", "dog"], input=InputSpec((8, 8)), family="x")
BOXES = Manifest(task="detect", classes=["cat", "dog"], input=InputSpec((8, 8)), family="x")


def one_class(confidence: float) -> Prediction:
    return Prediction([ClassScore("cat", 0, confidence)], [], confidence, confidence, 0.5, None, 8, 8)


def boxes(*confidences: float) -> Prediction:
    found = [Box("cat", 0, 0, 2 + i, 2, confidence) for i, confidence in enumerate(confidences)]
    return Prediction([], found, max(confidences, default=0.0), 0.0, 0.0, None, 8, 8)


@pytest.mark.parametrize(
    ("confidence", "max_risk", "unsure"),
    [
        (0.9, 0.2, False),
        (0.9, 0.05, True),
        (0.75, 0.25, False),
        (1.0, 0.0, False),
        (0.99, 0.0, True),
        (0.0, 1.0, False),
    ],
)
def test_a_classifier_answers_or_does_not(confidence: float, max_risk: float, unsure: bool) -> None:
    """Half an answer would be acted upon; the numbers stay for whoever wants to know how unsure it was."""
    said, found = abide(one_class(confidence), CLASSES, max_risk=max_risk)
    assert found is unsure
    assert bool(said.classes) is not unsure
    assert said.confidence == confidence


@pytest.mark.parametrize(
    ("confidences", "max_risk", "kept", "unsure"),
    [((0.9, 0.5), 0.2, 1, False), ((0.9, 0.5), 0.5, 2, False), ((0.5,), 0.1, 0, True), ((), 0.5, 0, True)],
)
def test_a_detector_leaves_out_what_is_too_risky(
    confidences: tuple[float, ...], max_risk: float, kept: int, unsure: bool
) -> None:
    """And an image without a finding is not a sure answer: a missed object looks the same."""
    said, found = abide(boxes(*confidences), BOXES, max_risk=max_risk)
    assert (len(said.boxes), found) == (kept, unsure)


@pytest.mark.parametrize("max_risk", [-0.1, 1.1, float("nan")])
def test_a_risk_is_a_probability(max_risk: float) -> None:
    """5 for five percent would switch the caution off without a word."""
    with pytest.raises(InputError, match="max_risk"):
        abide(one_class(0.5), CLASSES, max_risk=max_risk)
