"""pycocotools as the reference of average precision: the same boxes through it, and nasty boxes to try."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from retrain import metrics
from retrain.metrics import Outcome
from sutdol.types import Box

Image = tuple[list[Box], list[Box]]
"""(predicted, truth)"""


def outcomes(images: Sequence[Image]) -> list[Outcome]:
    """As `evaluate` makes them."""
    found = []
    for i, (predicted, truth) in enumerate(images):
        detections = metrics.match_image(predicted, truth)
        names = [b.label for b in truth]
        found.append(Outcome(str(i), False, names, [d.label for d in detections], 0.0, detections=detections))
    return found


def reference(images: Sequence[Image], classes: Sequence[str]) -> tuple[float, float, list[float]]:
    """(mAP50-95, mAP50, AP50 per class) by pycocotools; -1 where it has nothing to measure."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    index = {name: i + 1 for i, name in enumerate(classes)}
    truth, found = [], []
    for i, (predicted, objects) in enumerate(images):
        for box in objects:
            wh = [box.x2 - box.x1, box.y2 - box.y1]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": i,
                    "category_id": index[box.label],
                    "bbox": [box.x1, box.y1, *wh],
                    "area": wh[0] * wh[1],
                    "iscrowd": 0,
                }
            )
        for box in predicted:
            wh = [box.x2 - box.x1, box.y2 - box.y1]
            found.append(
                {
                    "image_id": i,
                    "category_id": index[box.label],
                    "bbox": [box.x1, box.y1, *wh],
                    "score": box.confidence,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(images))],
            "annotations": truth,
            "categories": [{"id": i, "name": name} for name, i in index.items()],
        }
        coco.createIndex()
        answers = COCO()
        answers.dataset = dict(coco.dataset) | {
            "annotations": [
                a | {"id": k + 1, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} for k, a in enumerate(found)
            ]
        }
        answers.createIndex()
        judge = COCOeval(coco, answers, "bbox")
        judge.evaluate()
        judge.accumulate()
    table = judge.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes; all sizes, 100 boxes

    def mean(part: np.ndarray) -> float:
        known = part[part > -1]
        return float(known.mean()) if known.size else -1.0

    return mean(table), mean(table[0]), [mean(table[0, :, k]) for k in range(len(classes))]


def nasty_case(seed: int) -> tuple[list[Image], list[str]]:
    """A few images with what breaks matchers: no boxes, crowds, ties in score and in overlap, a class without objects,
    boxes on boxes, slivers, an object named wrongly."""
    rng = np.random.default_rng(seed)
    classes = ["a", "b", "c"][: int(rng.integers(1, 4))]
    empty = classes[-1] if len(classes) > 1 and rng.random() < 0.4 else None
    crowded = rng.random() < 0.05
    images: list[Image] = []
    for _ in range(int(rng.integers(1, 6))):
        truth, predicted = [], []
        for _ in range(int(rng.integers(0, 7)) if not crowded else 130):
            label = str(rng.choice(classes))
            if label == empty:
                continue
            truth.append(_box(rng, label))
        for box in truth:
            for _ in range(int(rng.choice([0, 1, 1, 2]))):
                label = str(rng.choice(classes)) if rng.random() < 0.15 else box.label
                shift = rng.integers(-6, 7, 4) * (rng.random() < 0.7)
                x1, y1 = box.x1 + float(shift[0]), box.y1 + float(shift[1])
                x2, y2 = max(box.x2 + float(shift[2]), x1 + 1), max(box.y2 + float(shift[3]), y1 + 1)
                predicted.append(Box(label, x1, y1, x2, y2, _score(rng)))
        for _ in range(int(rng.integers(0, 4)) if not crowded else 60):
            predicted.append(_box(rng, str(rng.choice(classes)), _score(rng)))
        if rng.random() < 0.15:
            predicted = []
        if rng.random() < 0.1:
            truth = []
        order = rng.permutation(len(predicted))
        images.append(([predicted[i] for i in order], truth))
    return images, classes


def _box(rng: np.random.Generator, label: str, score: float | None = None) -> Box:
    x, y = (float(v) for v in rng.integers(0, 80, 2))
    w, h = (float(v) for v in (rng.integers(1, 40, 2) if rng.random() < 0.9 else (1, rng.integers(20, 60))))
    return Box(label, x, y, x + w, y + h, score)


def _score(rng: np.random.Generator) -> float:
    """Half of them from a few values, so that many tie."""
    return float(rng.choice([0.2, 0.5, 0.9])) if rng.random() < 0.5 else float(rng.random())
