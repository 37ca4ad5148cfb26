"""A version is judged by the predictor that serves it: real ONNX sessions, real bytes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from retrain.evaluate import Evaluated, evaluate, outcome_of, summarise
from sutdol.errors import ImageError, InputError, NotFoundError
from sutdol.images import encode_png
from sutdol.predictor import Predictor
from sutdol.tables import DatasetItem
from sutdol.types import Box, ClassScore, InputSpec, Label, Manifest, Prediction
from tests.tiny_models import CLASSES, classifier_onnx, coloured_png

STORE = {name: coloured_png(name) for name in CLASSES} | {"broken": b"\x89PNG\r\n\x1a\nxx"}


def classifier(classes: tuple[str, ...] = CLASSES) -> Predictor:
    manifest = Manifest(task="classify", classes=list(classes), input=InputSpec((32, 32)), family="tiny")
    return Predictor.from_parts(classifier_onnx(), manifest)


def item(sample: str, label: Label) -> DatasetItem:
    boxes = [{"label": b.label, "x1": b.x1, "y1": b.y1, "x2": b.x2, "y2": b.y2} for b in label.boxes]
    value = {"classes": label.classes, "boxes": boxes}
    return DatasetItem(dataset_version_id="d", sample_id=sample, split="test", value=value, source="imported")


def read(sample: str) -> bytes:
    if sample not in STORE:
        raise NotFoundError(f"no {sample}")
    return STORE[sample]


def test_a_classifier_is_counted_item_by_item() -> None:
    """Two right, one labelled with a class that this version never heard of."""
    items = [item("red", Label(["red"])), item("green", Label(["green"])), item("blue", Label(["new"]))]
    seen: list[tuple[int, int]] = []
    found = evaluate(classifier(), items, read, progress=lambda done, total: seen.append((done, total)))
    assert [(o.sample_id, o.correct, o.predicted) for o in found.items] == [
        ("red", True, ["red"]), ("green", True, ["green"]), ("blue", False, ["blue"]),
    ]  # fmt: skip
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["per_class"]["new"]["n"] == 1
    assert found.metrics["latency_ms_p50"] > 0
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_items_give_an_empty_evaluation() -> None:
    """The gate decides about that, with a text; nothing crashes before."""
    found = evaluate(classifier(), [], read)
    assert found.items == []
    assert found.metrics["accuracy"] is None
    assert Evaluated.from_bytes(found.to_bytes()) == found


@pytest.mark.parametrize(("sample", "error"), [("gone", NotFoundError), ("broken", ImageError)])
def test_an_evaluation_with_holes_is_none(sample: str, error: type[Exception]) -> None:
    """Leaving out what cannot be read would flatter one of the two versions."""
    with pytest.raises(error):
        evaluate(classifier(), [item("red", Label(["red"])), item(sample, Label(["red"]))], read)


def detector(*, score_min: float) -> Predictor:
    """Answers the same three boxes for every image: cells at .9, .4 and .05, centre (8, 8), (24, 24), (8, 24)."""
    rows = np.array([[8, 24, 8], [8, 24, 24], [8, 8, 8], [8, 8, 8], [0.9, 0.4, 0.05], [0.01, 0.01, 0.01]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("ReduceSum", ["features", "axis"], ["sums"], keepdims=1),
            helper.make_node("Mul", ["sums", "zero"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "axis"], ["grown"]),
            helper.make_node("Add", ["grown", "boxes"], ["scores"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 6, 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            numpy_helper.from_array(rows[None], "boxes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    spec = InputSpec((32, 32), resize="letterbox")
    manifest = Manifest(task="detect", classes=["cell", "other"], input=spec, family="tiny", score_min=score_min)
    return Predictor.from_parts(bytes(model.SerializeToString()), manifest)


def test_a_detector_is_judged_on_its_whole_ranking_and_reported_at_its_threshold() -> None:
    """mAP of the boxes above .25 alone would punish a careful threshold instead of a poor model."""
    STORE["cells"] = encode_png(np.full((32, 32, 3), 90, np.uint8))
    truth = Label(boxes=[Box("cell", 4, 4, 12, 12), Box("cell", 4, 20, 12, 28)])
    found = evaluate(detector(score_min=0.25), [item("cells", truth)], read)
    assert [d.label for d in found.items[0].detections][:3] == ["cell", "cell", "cell"]
    assert [round(d.score, 2) for d in found.items[0].detections][:3] == [0.9, 0.4, 0.05]
    assert [d.hits & 1 for d in found.items[0].detections][:3] == [1, 0, 1]
    assert found.items[0].predicted == ["cell", "cell"]
    assert found.items[0].confidence == pytest.approx(0.9, abs=1e-3)
    assert not found.items[0].correct
    assert found.metrics["map50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert (found.metrics["precision"], found.metrics["recall"]) == (0.5, 0.5)
    assert found.score_min == 0.25
    again = Evaluated.from_bytes(found.to_bytes())
    assert again == found
    assert summarise("detect", again.items, again.classes, score_min=0.25)["map50"] == found.metrics["map50"]


def prediction(names: list[str], boxes: list[Box] | None = None) -> Prediction:
    scores = [ClassScore(name, i, 0.9 - i / 10) for i, name in enumerate(names)]
    return Prediction(scores, boxes or [], 0.9 if names else 0.0, 0.9, 0.5, 1.25, 32, 32)


@pytest.mark.parametrize(
    ("task", "truth", "answer", "correct"),
    [
        ("classify", Label(["a"]), prediction(["a", "b"]), True),
        ("classify", Label(["b"]), prediction(["a", "b"]), False),
        ("multilabel", Label(["b", "a"]), prediction(["a", "b"]), True),
        ("multilabel", Label(["a"]), prediction(["a", "b"]), False),
        ("multilabel", Label([]), prediction([]), True),
        ("detect", Label(), prediction([]), True),
        ("detect", Label(), prediction([], [Box("a", 0, 0, 5, 5, 0.1)]), True),
        ("detect", Label(), prediction([], [Box("a", 0, 0, 5, 5, 0.5)]), False),
        ("detect", Label(boxes=[Box("a", 0, 0, 5, 5)]), prediction([], [Box("a", 0, 0, 5, 5, 0.5)]), True),
        ("detect", Label(boxes=[Box("개", 0, 0, 5, 5)]), prediction([], [Box("a", 0, 0, 5, 5, 0.5)]), False),
        ("detect", Label(boxes=[Box("a", 0, 0, 5, 5)] * 2), prediction([], [Box("a", 0, 0, 5, 5, 0.5)]), False),
    ],
)
def test_when_an_item_counts_as_right(task: str, truth: Label, answer: Prediction, correct: bool) -> None:
    """The viewer of right and wrong, and every paired test, stand on this."""
    found = outcome_of(task, "1", truth, answer, 0.25)  # type: ignore[arg-type]
    assert found.correct is correct
    assert found.ood_score == 1.25
    assert math.isfinite(found.confidence)


@pytest.mark.parametrize("data", [b"", b"{}", b"not json\n"])
def test_a_file_that_is_no_evaluation_is_refused(data: bytes) -> None:
    """Somebody else's JSON must not become numbers."""
    with pytest.raises(InputError, match="evaluation file"):
        Evaluated.from_bytes(data)
