"""Our answers and labels, and Label Studio's results, there and back."""

from __future__ import annotations

import math

import pytest

from labeling_bridge.convert import box_result, label_of, label_results, results_of
from sutdol.agreement import iou, same
from sutdol.errors import InputError
from sutdol.types import Box, Label

CLASSES = ["cat", "dog", "숫"]


def choice(*names: str, **more: object) -> dict[str, object]:
    return {
        "id": "x",
        "from_name": "cls",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(names)},
    } | more


def rectangle(x: float, y: float, w: float, h: float, label: str = "cat", **more: object) -> dict[str, object]:
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [label]}
    return {"id": "b", "from_name": "bbox", "to_name": "image", "type": "rectanglelabels", "value": value} | more


def back(results, task="classify", width_px=200, height_px=100):
    return label_of(results, task, CLASSES, width_px=width_px, height_px=height_px)


@pytest.mark.parametrize(
    ("task", "results", "expected"),
    [
        ("classify", [choice("cat")], Label(classes=["cat"])),
        ("classify", [choice("숫")], Label(classes=["숫"])),
        ("multilabel", [choice("cat", "dog")], Label(classes=["cat", "dog"])),
        ("multilabel", [choice("cat"), choice("cat", "dog")], Label(classes=["cat", "dog"])),
        ("detect", [], Label()),
        ("detect", [rectangle(10, 20, 30, 40)], Label(boxes=[Box("cat", 20, 20, 80, 60)])),
        ("detect", [rectangle(-10, -10, 20, 20)], Label(boxes=[Box("cat", 0, 0, 20, 10)])),
        ("detect", [rectangle(90, 90, 50, 50)], Label(boxes=[Box("cat", 180, 90, 200, 100)])),
        (
            "detect",
            [rectangle(0, 0, 100, 100, original_width=200, original_height=100)],
            Label(boxes=[Box("cat", 0, 0, 200, 100)]),
        ),
    ],
)
def test_what_people_may_answer(task, results, expected):
    """An empty detection is a real answer (background), and a box drawn over the edge means the edge."""
    assert back(results, task) == expected


@pytest.mark.parametrize(
    ("task", "results", "words"),
    [
        ("classify", [], "exactly one"),
        ("classify", [choice()], "exactly one"),
        ("classify", [choice("cat", "dog")], "exactly one"),
        ("classify", [choice("cow")], "unknown class 'cow'"),
        ("classify", [choice("cat", from_name="other")], "other"),
        ("classify", [rectangle(1, 1, 2, 2)], "bbox"),
        ("classify", [choice("cat", type="rating")], "rating"),
        ("classify", [choice("cat", value=None)], "expected a value"),
        ("classify", [choice("cat", value={"choices": "cat"})], "list of classes"),
        ("classify", ["cat"], "cat"),
        ("multilabel", [choice()], "at least one"),
        ("detect", [rectangle(1, 1, 2, 2, label="cow")], "unknown class"),
        ("detect", [rectangle(1, 1, 0, 2)], "no area"),
        ("detect", [rectangle(1, 1, -5, 2)], "no area"),
        ("detect", [rectangle(101, 1, 5, 2)], "inside"),
        ("detect", [rectangle(math.nan, 1, 5, 2)], "finite"),
        ("detect", [rectangle(1, 1, 5, 2, value={"x": 1, "rectanglelabels": ["cat"]})], "numbers"),
        (
            "detect",
            [rectangle(1, 1, 5, 2) | {"value": rectangle(1, 1, 5, 2)["value"] | {"rotation": 30}}],
            "30 degrees",
        ),
        (
            "detect",
            [rectangle(1, 1, 5, 2) | {"value": rectangle(1, 1, 5, 2)["value"] | {"rectanglelabels": []}}],
            "one class",
        ),
        ("detect", [rectangle(1, 1, 5, 2, original_width=100, original_height=200)], "200 x 100"),
        ("detect", [choice("cat")], "cls"),
    ],
)
def test_what_must_not_become_a_label_is_refused_with_words(task, results, words):
    """Label Studio's API accepts all of these without a word; a wrong label is worse than none."""
    with pytest.raises(InputError, match=words):
        back(results, task)


def test_a_full_turn_is_upright():
    """People turn a box round and back."""
    result = rectangle(10, 20, 30, 40)
    result["value"]["rotation"] = 360
    assert len(back([result], "detect").boxes) == 1


@pytest.mark.parametrize(("width_px", "height_px"), [(640, 480), (333, 77), (1, 1), (4000, 3)])
def test_boxes_come_back_within_a_hundredth_of_a_pixel(width_px, height_px):
    """Percent there, pixels here: a drift at every round trip would shrink the boxes of every retraining."""
    corners = [(0, 0, width_px, height_px), (0.1 * width_px, 0.2 * height_px, 0.85 * width_px, 0.93 * height_px)]
    boxes = [Box("cat", *c) for c in corners if min(c[2] - c[0], c[3] - c[1]) >= 0.5]
    results = label_results(Label(boxes=boxes), "detect", width_px=width_px, height_px=height_px)
    found = back(results, "detect", width_px, height_px).boxes
    for box, expected in zip(found, boxes, strict=True):
        for a, b in zip(
            (box.x1, box.y1, box.x2, box.y2), (expected.x1, expected.y1, expected.x2, expected.y2), strict=True
        ):
            assert abs(a - b) < 0.01


def test_pre_annotations_say_what_the_model_said():
    """The labeler's time is saved only by a pre-annotation in the right control."""
    answer = {
        "classes": [{"label": "dog", "index": 1, "confidence": 0.7}, {"label": "cat", "index": 0, "confidence": 0.2}],
        "boxes": [{"label": "cat", "x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0, "confidence": 0.5}],
    }
    (one,) = results_of(answer, "classify", width_px=10, height_px=10)
    assert (one["value"]["choices"], one["score"]) == (["dog"], 0.7)
    (many,) = results_of(answer, "multilabel", width_px=10, height_px=10)
    assert (many["value"]["choices"], many["score"]) == (["dog", "cat"], 0.2)
    (box,) = results_of(answer, "detect", width_px=10, height_px=10)
    assert box["score"] == 0.5
    assert [box["value"][k] for k in ("x", "y", "width", "height")] == pytest.approx([10, 20, 20, 20])
    nothing = {"classes": [], "boxes": []}
    assert [results_of(nothing, t, width_px=1, height_px=1) for t in ("classify", "multilabel", "detect")] == [
        [],
        [],
        [],
    ]


def test_a_box_result_belongs_to_the_detection_control():
    """Label Studio drops regions of a control that is not in the config."""
    result = box_result("r", "cat", (0, 0, 5, 5), 10, 10, None)
    assert result["from_name"] == "bbox"
    assert "score" not in result


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Label(classes=["a"]), Label(classes=["a"]), True),
        (Label(classes=["a", "b"]), Label(classes=["b", "a"]), True),
        (Label(classes=["a"]), Label(classes=["b"]), False),
        (Label(), Label(), True),
        (Label(boxes=[Box("a", 0, 0, 10, 10)]), Label(), False),
        (Label(boxes=[Box("a", 0, 0, 10, 10)]), Label(boxes=[Box("a", 1, 0, 11, 10)]), True),
        (Label(boxes=[Box("a", 0, 0, 10, 10)]), Label(boxes=[Box("b", 0, 0, 10, 10)]), False),
        (Label(boxes=[Box("a", 0, 0, 10, 10)]), Label(boxes=[Box("a", 6, 0, 16, 10)]), False),
        (
            Label(boxes=[Box("a", 0, 0, 10, 10), Box("a", 20, 0, 30, 10)]),
            Label(boxes=[Box("a", 20, 0, 30, 10), Box("a", 0, 0, 10, 10)]),
            True,
        ),
        (
            Label(boxes=[Box("a", 0, 0, 10, 10), Box("a", 0, 0, 10, 10)]),
            Label(boxes=[Box("a", 0, 0, 10, 10), Box("a", 50, 0, 60, 10)]),
            False,
        ),
    ],
)
def test_two_people_say_the_same(one, other, expected):
    """Disagreement must never be trained on, and agreement must not be lost to a shaky hand."""
    assert same(one, other) is expected
    assert same(other, one) is expected


def test_boxes_that_only_touch_do_not_overlap():
    """A division by zero or a negative area would hide here."""
    assert iou(Box("a", 0, 0, 1, 1), Box("a", 1, 1, 2, 2)) == 0.0
