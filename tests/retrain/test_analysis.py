"""What an evaluation says, worked out by hand on a handful of items."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from retrain import analysis, metrics
from retrain.evaluate import Evaluated, outcome_of
from retrain.metrics import BACKGROUND, Outcome
from sutdol.errors import InputError
from sutdol.tables import DatasetItem
from sutdol.types import Box, Label, Prediction


def item(sample: str, value: Label, **fields: Any) -> DatasetItem:
    import msgspec

    return DatasetItem(
        dataset_version_id="v", sample_id=sample, split="test", value=msgspec.to_builtins(value),
        **{"source": "imported", **fields},
    )  # fmt: skip


def box(label: str, x: float, score: float | None = None, *, size: float = 20) -> Box:
    return Box(label, x, 0, x + size, size, score)


def detected(sample: str, predicted: list[Box], truth: list[Box], **fields: Any) -> tuple[Outcome, DatasetItem]:
    answer = Prediction([], predicted, 0, 0, 0, None, 200, 100)
    return outcome_of("detect", sample, Label(boxes=truth), answer, 0.5), item(sample, Label(boxes=truth), **fields)


PAIRS: list[tuple[str, list[Box], list[Box], list[tuple[str, str]], list[bool]]] = [
    ("nothing at all", [], [], [], []),
    ("found", [box("cat", 0, 0.9)], [box("cat", 0)], [("cat", "cat")], [True]),
    ("missed", [], [box("cat", 0)], [("cat", BACKGROUND)], [False]),
    ("invented", [box("cat", 0, 0.9)], [], [(BACKGROUND, "cat")], []),
    ("confused counts once", [box("dog", 0, 0.9)], [box("cat", 0)], [("cat", "dog")], [False]),
    (
        "its own class first, whatever overlaps more",
        [box("dog", 0, 0.9), box("cat", 3, 0.6)],
        [box("cat", 0)],
        [(BACKGROUND, "dog"), ("cat", "cat")],
        [True],
    ),
    (
        "found twice is found and invented",
        [box("cat", 0, 0.9), box("cat", 1, 0.8)],
        [box("cat", 0)],
        [("cat", "cat"), (BACKGROUND, "cat")],
        [True],
    ),
    (
        "elsewhere",
        [box("cat", 50, 0.9)],
        [box("cat", 0)],
        [(BACKGROUND, "cat"), ("cat", BACKGROUND)],
        [False],
    ),
]


@pytest.mark.parametrize(("name", "predicted", "truth", "pairs", "found"), PAIRS, ids=[p[0] for p in PAIRS])
def test_boxes_are_paired_as_people_would(
    name: str, predicted: list[Box], truth: list[Box], pairs: list[tuple[str, str]], found: list[bool]
) -> None:
    """The confusion matrix is only as good as its pairs."""
    assert metrics.pair_boxes(predicted, truth) == (pairs, found)


def test_a_detectors_analysis_by_hand() -> None:
    """Every part once: counts, background, most confused pair, sizes, slices, curves."""
    rows = [
        detected("1", [box("cat", 0, 0.9), box("dog", 60, 0.4)], [box("cat", 0)]),
        detected("2", [box("dog", 0, 0.8)], [box("cat", 0)], source="annotation", arm="drawn"),
        detected("3", [], [box("dog", 0, size=100)], source="annotation", arm="drawn"),
        detected("4", [], []),
    ]
    found, items = [r[0] for r in rows], [r[1] for r in rows]
    numbers = metrics.detection(found, ["cat", "dog"], score_min=0.5)
    said = analysis.analyse(Evaluated("detect", ["cat", "dog"], 0.5, found, numbers), items)
    assert said["confusion"] == {"labels": ["cat", "dog", BACKGROUND], "matrix": [[1, 1, 0], [0, 0, 1], [0, 0, 0]]}
    assert [(p["truth"], p["predicted"], p["samples"]) for p in said["most_confused"]] == [
        ("cat", "dog", ["2"]),
        ("dog", BACKGROUND, ["3"]),
    ]
    assert said["headline"]["precision"] == analysis.share(1, 2)
    assert said["headline"]["recall"] == analysis.share(1, 3)
    assert said["headline"]["accuracy"]["value"] == 0.5, "the first and the empty one"
    assert said["headline"]["map50"]["value"] == numbers["map50"]
    low, high = said["headline"]["map50"]["interval"]
    assert low <= numbers["map50"] <= high
    assert [(s["name"], s["recall"]["k"], s["recall"]["n"]) for s in said["slices"]["object_size"]] == [
        ("small", 1, 2),
        ("middle", 0, 0),
        ("large", 0, 1),
    ]
    assert [(s["name"], s["n"]) for s in said["slices"]["source"]] == [("annotation", 2), ("imported", 2)]
    assert [(s["name"], s["n"]) for s in said["slices"]["arm"]] == [("drawn", 2), ("none", 2)]
    assert said["per_class"][0]["recall"]["interval"] == pytest.approx(analysis.share(1, 2)["interval"])
    assert said["mistakes"] == 2
    assert json.loads(json.dumps(said, allow_nan=False))["n"] == 4


@pytest.mark.parametrize("task", ["classify", "multilabel", "detect"])
def test_an_evaluation_of_nothing_says_so(task: Any) -> None:
    """None, never 0 and never NaN."""
    summary = {"classify": metrics.classification, "multilabel": metrics.multilabel}
    numbers = metrics.detection([], ["a"], score_min=0.5) if task == "detect" else summary[task]([], ["a"])
    said = analysis.analyse(Evaluated(task, ["a"], 0.5, [], numbers), [])
    assert said["headline"]["accuracy"]["value"] is None
    json.dumps(said, allow_nan=False)


def classified(right: list[bool]) -> Evaluated:
    found = [
        Outcome(str(i), ok, ["a"], ["a" if ok else "b"], 0.9, scores=[("a", 0.9)], brightness=i / 10)
        for i, ok in enumerate(right)
    ]
    return Evaluated("classify", ["a", "b"], 0.0, found, metrics.classification(found, ["a", "b"]))


def test_two_versions_are_compared_item_by_item() -> None:
    """Two fixed, one broken: the sum hides it, the list shows it."""
    items = [item(str(i), Label(classes=["a"])) for i in range(5)]
    theirs, ours = classified([True, True, False, False, False]), classified([True, False, True, True, False])
    said = analysis.compare(ours, theirs, items)
    assert [r["change"] for r in said["items"]] == ["both_right", "broken", "fixed", "fixed", "both_wrong"]
    assert (said["fixed"], said["broken"], said["difference"]) == (2, 1, pytest.approx(0.2))
    assert said["interval"][0] < 0.2 < said["interval"][1]
    assert said["items"][1]["candidate"] == {"predicted": ["b"], "confidence": 0.9, "correct": False}
    json.dumps(said, allow_nan=False)
    with pytest.raises(InputError, match="exactly these 4"):
        analysis.compare(ours, theirs, items[:4])


def test_slices_by_brightness_have_names_that_can_be_read() -> None:
    """Thirds of what there is; items without a value stand apart."""
    evaluated = classified([True] * 9)
    said = analysis.analyse(evaluated, [item(str(i), Label(classes=["a"])) for i in range(9)])
    names = [s["name"] for s in said["slices"]["brightness"]]
    assert [n.split()[0] for n in names] == ["bright", "dark", "middle"]
    assert sum(s["n"] for s in said["slices"]["brightness"]) == 9


def test_a_curve_treats_ties_as_one_threshold_and_stays_short() -> None:
    """A threshold cannot tell equal scores apart; a page cannot show ten thousand points."""
    tied = analysis.precision_recall(np.array([0.5, 0.5, 0.5]), np.array([True, False, True]), 2)
    assert (tied["precision"], tied["recall"], tied["ap"]) == ([2 / 3], [1.0], pytest.approx(2 / 3))
    rng = np.random.default_rng(0)
    long = analysis.precision_recall(rng.random(10_000), rng.random(10_000) < 0.5, 5_000)
    assert len(long["recall"]) <= analysis.CURVE_POINTS
    assert analysis.precision_recall(np.array([]), np.array([], bool), 3)["ap"] == 0.0
    assert analysis.precision_recall(np.array([]), np.array([], bool), 0)["ap"] is None
