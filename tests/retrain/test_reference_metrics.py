"""Our numbers against those that everybody knows: pycocotools for boxes, scikit-learn for classes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from retrain import analysis, metrics
from retrain.evaluate import Evaluated
from retrain.formats import read
from retrain.metrics import Outcome
from sutdol.tables import DatasetItem
from sutdol.types import Box
from tests.coco_reference import Image, nasty_case, outcomes, reference
from tests.real_data import blood_cells

CLOSE = 1e-6


def assert_same(images: list[Image], classes: list[str]) -> None:
    found = metrics.detection(outcomes(images), classes, score_min=0.0)
    whole, half, each = reference(images, classes)
    assert (found["map50_95"] if found["map50_95"] is not None else -1) == pytest.approx(whole, abs=CLOSE)
    assert (found["map50"] if found["map50"] is not None else -1) == pytest.approx(half, abs=CLOSE)
    for name, expected in zip(classes, each, strict=True):
        ap = found["per_class"][name]["ap50"]
        assert (ap if ap is not None else -1) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("block", range(10))
def test_average_precision_is_pycocotools_on_a_thousand_nasty_cases(block: int) -> None:
    """Somebody will compare, and a third decimal that differs costs all trust."""
    for seed in range(100 * block, 100 * (block + 1)):
        assert_same(*nasty_case(seed))


def test_average_precision_is_pycocotools_on_the_blood_cells() -> None:
    """364 photos with all their boxes; answers are the truth moved, doubled, dropped and invented."""
    rng = np.random.default_rng(0)
    images: list[Image] = []
    for record in read(blood_cells()).records:
        predicted = []
        for box in record.label.boxes:
            for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
                dx, dy, dw, dh = (float(v) for v in rng.normal(0, 0.08, 4))
                w, h = box.x2 - box.x1, box.y2 - box.y1
                x, y = box.x1 + dx * w, box.y1 + dy * h
                moved = (x, y, x + w * (1 + dw), y + h * (1 + dh))
                predicted.append(Box(box.label, *moved, round(float(rng.beta(4, 2)), 2)))
        for _ in range(int(rng.integers(0, 4))):
            x, y = (float(v) for v in rng.integers(0, 300, 2))
            predicted.append(Box("RBC", x, y, x + 80, y + 80, float(rng.random())))
        images.append((predicted, record.label.boxes))
    assert len(images) > 300
    assert_same(images, ["Platelets", "RBC", "WBC"])


def classified(seed: int) -> tuple[list[Outcome], list[str]]:
    """Answers of a mediocre classifier; one class is never reported in some cases, one has no items."""
    rng = np.random.default_rng(seed)
    classes = [f"c{i}" for i in range(int(rng.integers(2, 7)))]
    found = []
    for i in range(int(rng.integers(20, 200))):
        truth = int(rng.integers(0, len(classes) - (seed % 3 == 0)))
        logits = rng.normal(0, 1, len(classes))
        logits[truth] += 1.5
        if seed % 4 == 0:
            logits[0] = -9
        chances = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-chances)
        best, names = int(order[0]), [(classes[k], float(chances[k])) for k in order]
        found.append(
            Outcome(str(i), best == truth, [classes[truth]], [classes[best]], float(chances[best]), scores=names)
        )
    return found, classes


def evaluated(found: list[Outcome], classes: list[str]) -> tuple[Evaluated, list[DatasetItem]]:
    items = [
        DatasetItem(
            dataset_version_id="v",
            sample_id=o.sample_id,
            split="test",
            value={"classes": o.truth, "boxes": []},
            source="imported",
        )
        for o in found
    ]
    return Evaluated("classify", classes, 0.0, found, metrics.classification(found, classes)), items


@pytest.mark.parametrize("seed", range(24))
def test_classification_figures_are_scikit_learns(seed: int) -> None:
    """Accuracy, precision, recall, F1 (each and macro), confusion, average precision, reliability."""
    found, classes = classified(seed)
    said = analysis.analyse(*evaluated(found, classes))
    truth, predicted = [o.truth[0] for o in found], [o.predicted[0] for o in found]
    assert said["headline"]["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, predicted))
    matrix = sk.confusion_matrix(truth, predicted, labels=classes)
    assert said["confusion"]["matrix"] == matrix.tolist()
    each = sk.precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    for k, row in enumerate(said["per_class"]):
        for name, expected in zip(("precision", "recall"), each, strict=False):
            assert (row[name]["value"] or 0.0) == pytest.approx(expected[k])
        assert (row["f1"] or 0.0) == pytest.approx(each[2][k])
        assert row["n"] == each[3][k]
    present = [c for c in classes if c in truth]
    macro = sk.precision_recall_fscore_support(truth, predicted, labels=present, average="macro", zero_division=0)
    for name, expected in zip(("precision", "recall", "f1"), macro, strict=False):
        assert said["headline"][name]["value"] == pytest.approx(expected)
    for name in present:
        scores = [dict(o.scores)[name] for o in found]
        expected = sk.average_precision_score([t == name for t in truth], scores)
        assert said["curves"][name]["ap"] == pytest.approx(expected)
    correct = np.array([o.correct for o in found])
    accuracy, confidence = calibration_curve(correct, [o.confidence for o in found], n_bins=metrics.ECE_BINS)
    bins = [b for b in said["reliability"]["bins"] if b["accuracy"]["n"]]
    np.testing.assert_allclose([b["accuracy"]["value"] for b in bins], accuracy, atol=1e-9)
    np.testing.assert_allclose([b["confidence"] for b in bins], confidence, atol=1e-9)
