"""What the arm `weak` looks for: spots of the last evaluation, and what people asked to have collected."""

from __future__ import annotations

import pytest

from sutdol import registry
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.focus import collect, focus_of, open_collections, read_focus
from sutdol.tables import Collection, Evaluation, LabelTask
from sutdol.types import Box, ClassScore, Prediction

METRICS = {
    "confusion": {"classes": ["3", "8", "9"], "matrix": [[20, 0, 0], [6, 14, 1], [0, 0, 20]]},
    "per_class": {
        "3": {"n": 20, "accuracy": 1.0},
        "8": {"n": 21, "accuracy": 14 / 21},
        "9": {"n": 20, "accuracy": 1.0},
    },
}


def answer(**chances: float) -> Prediction:
    classes = sorted((ClassScore(k[1:], 0, v) for k, v in chances.items()), key=lambda c: -c.confidence)
    return Prediction(classes, [], classes[0].confidence, 0.9, 0.5, 0.0, 8, 8)


def test_a_confusion_of_the_last_evaluation_is_looked_for_from_both_sides() -> None:
    """The truth of a new image is unknown; on the border between two classes it may lie on either side."""
    focus = focus_of(METRICS)
    score, spot = focus.look(answer(_3=0.6, _8=0.4))
    assert spot is not None
    assert (spot.truth, spot.taken_for) == ("8", "3") or spot.taken_for is None
    assert "6 of 21" in next(s.reason for s in focus.spots if s.taken_for == "3")
    other, _ = focus.look(answer(_8=0.6, _3=0.4))
    assert score > 0
    assert other > 0
    assert focus.look(answer(_9=1.0)) == (0.0, None)


def test_one_accident_is_no_weak_spot() -> None:
    """A single wrong item says nothing about where the model is weak."""
    assert all(spot.taken_for != "9" for spot in focus_of(METRICS).spots)


def test_what_people_asked_for_comes_before_what_the_matrix_says() -> None:
    """ "Collect 50 more like this cell" must not wait behind a statistic, and must end."""
    asked = Collection(model="m", truth="9", taken_for="3", wanted=50, who="kim")
    focus = focus_of(METRICS, [(asked, 31)])
    _, spot = focus.look(answer(_3=0.6, _9=0.3, _8=0.1))
    assert spot is not None
    assert spot.collection_id == asked.id
    assert spot.reason == "asked for by kim: '9' read as '3', 31 of 50 collected"
    assert all(s.collection_id is None for s in focus_of(METRICS, [(asked, 50)]).spots)


def test_a_detectors_weak_class_is_found_among_its_boxes() -> None:
    """Average precision per class is the detector's matrix."""
    metrics = {"map50": 0.6, "per_class": {"cat": {"n": 40, "ap50": 0.9}, "dog": {"n": 40, "ap50": 0.3}}}
    boxes = [Box("cat", 0, 0, 4, 4, 0.5), Box("dog", 0, 0, 4, 4, 0.6)]
    score, spot = focus_of(metrics).look(Prediction([], boxes, 0.6, 0.6, 0.2, 0.0, 8, 8))
    assert spot is not None
    assert "'dog' has AP50 0.30" in spot.reason
    assert score > 0.5
    assert focus_of(metrics).look(Prediction([], boxes[:1], 0.6, 0.6, 0.2, 0.0, 8, 8))[1] is None


@pytest.mark.parametrize("metrics", [{}, {"per_class": {}}, {"per_class": {"a": {"n": 2, "accuracy": 0.0}}}])
def test_without_enough_evidence_nothing_is_weak(metrics: dict) -> None:
    """A fresh model and a class of two items have no weak spots yet."""
    assert focus_of(metrics).spots == []


def test_a_collection_ends_when_it_is_full(context: Context) -> None:
    """Samples that bring no label do not fill it."""
    with context.database.begin() as session:
        registry.create_model(session, "m", task="classify", classes=["3", "8"], family="timm")
        wish = collect(session, "m", "8", "3", wanted=2, who="kim")
        for number, state in enumerate(("in_studio", "merged", "withdrawn", "annotated")):
            session.add(
                LabelTask(
                    model="m",
                    sample_id=f"s{number}",
                    prediction_id="p",
                    version=1,
                    arm="weak",
                    reason="",
                    priority=0.5,
                    uncertainty=0.5,
                    answer={},
                    state=state,
                    collection_id=wish.id,
                )
            )
        session.add(Evaluation(model="m", version=1, dataset_version_id="d", split="test", metrics=METRICS))
        session.flush()
        assert [(c.id, n) for c, n in open_collections(session, "m")] == [(wish.id, 2)]
        focus = read_focus(session, "m", 1)
        assert all(spot.collection_id is None for spot in focus.spots)
        assert {spot.taken_for for spot in focus.spots} == {"3", None}


def test_a_collection_that_can_never_be_filled_is_refused(context: Context) -> None:
    """A misspelt class would wait for ever."""
    with context.database.begin() as session:
        registry.create_model(session, "m", task="classify", classes=["3", "8"], family="timm")
        with pytest.raises(NotFoundError, match="'7'"):
            collect(session, "m", "7", wanted=5, who="kim")
        with pytest.raises(InputError, match="itself"):
            collect(session, "m", "8", "8", wanted=5, who="kim")
        with pytest.raises(InputError, match="at least 1"):
            collect(session, "m", "8", wanted=0, who="kim")
