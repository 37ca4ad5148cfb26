"""The numbers that stand in every record, against hand-made tables and a slow reference written straight from COCO."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrain import metrics
from retrain.metrics import Detection, Outcome, Ranking
from sutdol import stats
from sutdol.errors import InputError
from sutdol.types import Box


def right(sample: str, truth: str, predicted: str, confidence: float = 0.9) -> Outcome:
    return Outcome(sample, truth == predicted, [truth], [predicted], confidence)


def test_a_hand_made_confusion_gives_its_numbers() -> None:
    """Every number people see, once by hand: three cats (two right), one 개 (right), one dog that nobody knew."""
    outcomes = [
        right("1", "cat", "cat"),
        right("2", "cat", "cat"),
        right("3", "cat", "개"),
        right("4", "개", "개"),
        right("5", "dog", "cat"),
    ]
    found = metrics.classification(outcomes, ["cat", "개"])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["confusion"] == {"classes": ["cat", "개", "dog"], "matrix": [[2, 1, 0], [0, 1, 0], [1, 0, 0]]}
    assert found["per_class"]["cat"] == {
        "n": 3, "right": 2, "accuracy": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3,
    }  # fmt: skip
    assert found["per_class"]["dog"] == {
        "n": 1,
        "right": 0,
        "accuracy": 0.0,
        "precision": None,
        "recall": 0.0,
        "f1": 0.0,
    }


def test_nothing_measured_is_none_and_not_zero() -> None:
    """A model without test items is unknown, not bad."""
    for found in (metrics.classification([], ["a"]), metrics.multilabel([], ["a"])):
        assert found["accuracy"] is None
        assert found["per_class"]["a"]["f1"] is None
    assert metrics.detection([], ["a"], score_min=0.25)["map50"] is None
    assert metrics.expected_calibration_error([], []) is None


def test_multilabel_counts_sets() -> None:
    """One missing tag makes the item wrong, but the other tags right."""
    outcomes = [
        Outcome("1", True, ["a", "b"], ["a", "b"], 0.9),
        Outcome("2", False, ["a", "b"], ["a"], 0.9),
        Outcome("3", True, [], [], 0.0),
    ]
    found = metrics.multilabel(outcomes, ["a", "b"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["per_class"]["b"]["recall"] == pytest.approx(1 / 2)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("confidences", "correct", "expected"),
    [
        ([1.0], [True], 0.0),
        ([1.0], [False], 1.0),
        ([0.8, 0.8, 0.8, 0.8, 0.8], [True, True, True, True, False], 0.0),
        ([0.9, 0.1], [False, True], 0.9),
        ([0.0, 0.0], [False, False], 0.0),
    ],
)
def test_ece_of_hand_made_cases(confidences: list[float], correct: list[bool], expected: float) -> None:
    """Confidence 0 and 1 lie on the edges of bins, where an off-by-one hides."""
    assert metrics.expected_calibration_error(confidences, correct) == pytest.approx(expected)


@pytest.mark.parametrize(("confidences", "correct"), [([0.5], []), ([math.nan], [True]), ([1.2], [True])])
def test_ece_refuses_what_is_no_confidence(confidences: list[float], correct: list[bool]) -> None:
    """NaN would make every bin NaN in silence."""
    with pytest.raises(InputError):
        metrics.expected_calibration_error(confidences, correct)


def box(x: float, score: float | None = None, *, label: str = "a", size: float = 10, y: float = 0) -> Box:
    return Box(label, x, y, x + size, y + size, score)


def outcome(name: str, predicted: list[Box], truth: list[Box]) -> Outcome:
    found = metrics.match_image(predicted, truth)
    return Outcome(name, False, [b.label for b in truth], [d.label for d in found], 0.0, detections=found)


def ap50(outcomes: list[Outcome]) -> float:
    return float(Ranking(outcomes).mean_average_precision()[0])


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([], [box(0)], 0.0),
        ([box(0, 0.9)], [box(0)], 1.0),
        ([box(0, 0.9), box(0, 0.8)], [box(0)], 1.0),  # the second finding of one object is a mistake after full recall
        ([box(0, 0.8), box(50, 0.9)], [box(0)], 0.5),  # a mistake ranked first
        ([box(0, 0.9)], [box(0), box(50)], 51 / 101),  # recall stops at one half: 51 of 101 recall points
        ([box(0, 0.9), box(70, 0.8), box(50, 0.7)], [box(0), box(50)], (51 + 50 * 2 / 3) / 101),
        ([box(0, 0.9, label="b")], [box(0)], 0.0),  # the right place, the wrong class
        ([box(4, 0.9)], [box(0)], 0.0),  # overlap 60 / 140
        ([Box("a", 0, 0, 10, 5, 0.9)], [box(0)], 1.0),  # overlap one half: the threshold itself counts
    ],
)  # fmt: skip
def test_average_precision_of_hand_made_images(predicted: list[Box], truth: list[Box], expected: float) -> None:
    """Each row is one rule of COCO's, worked out on paper."""
    assert ap50([outcome("1", predicted, truth)]) == pytest.approx(expected, abs=1e-9)


def test_an_image_without_objects_costs_only_false_alarms() -> None:
    """Empty photos are real answers; a box on one must push precision down."""
    clean = [outcome("1", [box(0, 0.5)], [box(0)]), outcome("2", [], [])]
    alarmed = [clean[0], outcome("2", [box(0, 0.9)], [])]
    assert ap50(clean) == pytest.approx(1.0)
    assert ap50(alarmed) == pytest.approx(0.5)
    assert math.isnan(ap50([clean[1]]))


def test_a_better_box_takes_the_object_first() -> None:
    """Greedy by score, not by overlap: a poor box with a high score takes the object from the good one."""
    found = metrics.match_image([box(0, 0.5), box(2, 0.9)], [box(0)])
    assert [(d.score, d.hits) for d in found] == [(0.9, 0b0000001111), (0.5, 0b1111110000)]


def test_a_prediction_without_confidence_is_refused() -> None:
    """A label that slipped in as a prediction would be ranked last and hide the mistake."""
    with pytest.raises(InputError):
        metrics.match_image([box(0)], [box(0)])


def test_only_the_hundred_best_of_a_class_count() -> None:
    """COCO's limit; without it the numbers are not those that other tools print."""
    boxes = [box(20 * i, 0.5) for i in range(1, 120)]
    assert len(metrics.match_image(boxes, [])) == 100
    assert len(metrics.match_image([*boxes, box(0, 0.1, label="b")], [])) == 101


def coco_reference(images: list[tuple[list[Box], list[Box]]], label: str, threshold: float) -> float:
    """COCOeval's evaluateImg and accumulate for one class, area all, no crowds, as plain loops."""
    scores, hits, objects = [], [], 0
    for predicted, truth in images:
        mine = [b for b in predicted if b.label == label]
        order = np.argsort([-(b.confidence or 0) for b in mine], kind="mergesort")[:100]
        gts = [b for b in truth if b.label == label]
        objects += len(gts)
        taken = [False] * len(gts)
        for d in order:
            best, match = min(threshold, 1 - 1e-10), -1
            for g, gt in enumerate(gts):
                if taken[g]:
                    continue
                b = mine[d]
                w = max(0.0, min(b.x2, gt.x2) - max(b.x1, gt.x1))
                h = max(0.0, min(b.y2, gt.y2) - max(b.y1, gt.y1))
                union = (b.x2 - b.x1) * (b.y2 - b.y1) + (gt.x2 - gt.x1) * (gt.y2 - gt.y1) - w * h
                if w * h / union < best:
                    continue
                best, match = w * h / union, g
            scores.append(mine[d].confidence or 0)
            hits.append(match >= 0)
            if match >= 0:
                taken[match] = True
    order = np.argsort([-s for s in scores], kind="mergesort")
    tp = np.cumsum(np.array(hits, float)[order]) if scores else np.zeros(0)
    fp = np.cumsum(1 - np.array(hits, float)[order]) if scores else np.zeros(0)
    recall, precision = tp / objects, (tp / (tp + fp + np.spacing(1))).tolist()
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    places = np.searchsorted(recall, np.linspace(0.0, 1.00, 101), side="left")
    return float(np.mean([precision[p] if p < len(precision) else 0.0 for p in places]))


def random_scene(rng: np.random.Generator, *, digits: int = 1) -> tuple[list[Box], list[Box]]:
    """Crowded, with equal scores (ties), equal overlaps, several classes, false alarms and empty images."""
    truth, predicted = [], []
    for _ in range(int(rng.integers(0, 9))):
        label, x, y = str(rng.choice(["a", "나", "c"])), float(rng.integers(0, 60)), float(rng.integers(0, 60))
        truth.append(box(x, label=label, y=y, size=float(rng.integers(5, 20))))
    for t in truth * 2:
        if rng.random() < 0.7:
            dx, dy = rng.integers(-3, 4, 2)
            label = t.label if rng.random() < 0.9 else "a"
            predicted.append(
                Box(label, t.x1 + dx, t.y1 + dy, t.x2 + dx, t.y2 + dy + 1, float(np.round(rng.random(), digits)))
            )
    predicted += [
        box(float(rng.integers(0, 80)), float(np.round(rng.random(), digits))) for _ in range(int(rng.integers(0, 4)))
    ]
    return predicted, truth


def test_average_precision_equals_coco_on_random_scenes() -> None:
    """Parity with the field's own code, ties included, at every threshold."""
    rng = np.random.default_rng(3)
    images = [random_scene(rng) for _ in range(40)]
    outcomes = [outcome(str(i), p, t) for i, (p, t) in enumerate(images)]
    ranking = Ranking(outcomes)
    for bit, threshold in enumerate(metrics.IOU_THRESHOLDS):
        expected = [coco_reference(images, name, threshold) for name in ranking.classes]
        assert ranking.average_precision(threshold=bit)[0] == pytest.approx(expected, abs=1e-9)
    found = metrics.detection(outcomes, ["a", "나", "c", "never seen"], score_min=0.3)
    assert found["map50"] == pytest.approx(ranking.mean_average_precision()[0])
    assert found["per_class"]["never seen"]["ap50"] is None
    assert 0 < found["map50_95"] < found["map50"]


def test_a_resample_with_multiplicities_is_the_same_as_copying_the_images() -> None:
    """The fast bootstrap must measure what a slow one would."""
    rng = np.random.default_rng(4)
    images = [random_scene(rng, digits=9) for _ in range(12)]  # copies of tied boxes have no order of their own
    outcomes = [outcome(str(i), p, t) for i, (p, t) in enumerate(images)]
    ranking = Ranking(outcomes)
    counts = stats.resample_counts(len(outcomes), 30, rng)
    fast = ranking.average_precision(counts)
    for row, weights in enumerate(counts):
        copied = [o for o, w in zip(outcomes, weights, strict=True) for _ in range(w)]
        assert Ranking(copied, ranking.classes).average_precision()[0] == pytest.approx(
            fast[row], abs=1e-12, nan_ok=True
        )


def test_resamples_of_the_wrong_shape_are_refused() -> None:
    """Counts of other images would be multiplied in silence."""
    with pytest.raises(InputError):
        Ranking([]).average_precision(np.ones((2, 3), np.int32))


def test_detection_precision_and_recall_are_those_at_the_working_threshold() -> None:
    """mAP wants every faint box; what people will see is the part above score_min."""
    outcomes = [outcome("1", [box(0, 0.9), box(50, 0.1), box(80, 0.05)], [box(0), box(50)])]
    found = metrics.detection(outcomes, ["a"], score_min=0.25)
    assert (found["precision"], found["recall"]) == (1.0, 0.5)
    assert found["objects"] == 2
    assert outcomes[0].detections[0] == Detection("a", 0.9, 1023)
