"""From annotations to one label, and the split it may enter."""

from __future__ import annotations

from collections import Counter

import pytest

from labeling_bridge.labels import Answer, resolve, split_for
from sutdol.types import Box, Label

A, B, C = Label(classes=["a"]), Label(classes=["b"]), Label(classes=["c"])


def said(number: int, who: int | None, label: Label | None, state: str = "valid", *, truth: bool = False) -> Answer:
    return Answer(number, f"2026-01-01T00:00:{number:02d}.0Z", who, state, truth, label)


@pytest.mark.parametrize(
    ("answers", "state", "label"),
    [
        ([], "in_studio", None),
        ([said(1, 1, A)], "annotated", A),
        ([said(1, 1, A), said(2, 1, B)], "annotated", B),
        ([said(2, 1, B), said(1, 1, A)], "annotated", B),
        ([said(1, 1, A), said(2, 2, A)], "annotated", A),
        ([said(1, 1, A), said(2, 2, B)], "conflict", None),
        ([said(1, 1, A), said(2, 2, B), said(3, 3, A)], "annotated", A),
        ([said(1, 1, A), said(2, 2, B), said(3, 3, C)], "conflict", None),
        ([said(1, 1, A), said(2, 2, B), said(3, 3, A), said(4, 4, B)], "conflict", None),
        ([said(1, 1, A, truth=True), said(2, 2, B), said(3, 3, B)], "annotated", A),
        ([said(1, 1, A, truth=True), said(2, 2, B, truth=True)], "annotated", B),
        ([said(1, 1, None, "skipped")], "skipped", None),
        ([said(1, 1, None, "skipped"), said(2, 1, None, "skipped")], "skipped", None),
        ([said(1, 1, None, "skipped"), said(2, 2, None, "skipped")], "unlabelable", None),
        ([said(1, 1, None, "skipped"), said(2, 2, None, "skipped"), said(3, 3, A)], "annotated", A),
        ([said(1, 1, None, "skipped"), said(2, 2, A)], "annotated", A),
        ([said(1, 1, None, "invalid")], "conflict", None),
        ([said(1, 1, None, "empty")], "in_studio", None),
        ([said(1, 1, None, "empty"), said(2, 1, A)], "annotated", A),
        ([said(1, 1, None, "invalid"), said(2, 2, A)], "annotated", A),
        ([said(1, 1, None, "deleted")], "in_studio", None),
        ([said(1, 1, A), said(2, 2, None, "deleted")], "annotated", A),
        ([said(1, None, A)], "annotated", A),
        ([said(1, 1, Label())], "annotated", Label()),
        ([said(1, 1, Label(boxes=[Box("a", 0, 0, 9, 9)])), said(2, 2, Label())], "conflict", None),
    ],
)
def test_what_a_set_of_answers_amounts_to(answers, state, label):
    """Skipped, conflicting and deleted answers must never reach a training set."""
    resolution = resolve(answers)
    assert (resolution.state, resolution.label) == (state, label)


@pytest.mark.parametrize(
    ("answers", "state", "label"),
    [
        ([said(1, 1, A)], "in_studio", None),
        ([said(1, 1, A), said(2, 1, A)], "in_studio", None),
        ([said(1, 1, A), said(2, 2, A)], "annotated", A),
        ([said(1, 1, A), said(2, 2, B)], "conflict", None),
        ([said(1, 1, A), said(2, 2, B), said(3, 3, B)], "annotated", B),
        ([said(1, 1, A, truth=True)], "annotated", A),
        ([said(1, 1, None, "skipped"), said(2, 2, None, "skipped")], "skipped", None),
        ([said(n, n, None, "skipped") for n in (1, 2, 3)], "unlabelable", None),
    ],
)
def test_where_two_people_are_asked_one_is_not_enough(answers, state, label):
    """A label that was meant to be checked must not be trained on before it was."""
    resolution = resolve(answers, wanted=2, unlabelable_after=3)
    assert (resolution.state, resolution.label) == (state, label)


def test_exactly_a_third_of_the_drawn_is_for_test_and_a_sixth_for_val():
    """The test split must grow at a known rate, or the gate never has enough to decide on."""
    splits = Counter(split_for("drawn", i) for i in range(60))
    assert splits == {"test": 20, "val": 10, "train": 30}


@pytest.mark.parametrize("arm", ["unfamiliar", "empty", "disagree", "diverse", "weak", "gold"])
def test_only_the_drawn_arm_may_enter_val_or_test(arm):
    """A sample picked because it is hard is no fair picture of the traffic."""
    assert {split_for(arm, i) for i in range(12)} == {"train"}
