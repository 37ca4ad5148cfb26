"""What a model's answers are worth: per-item outcomes in, one dict of numbers out. Pure numpy.

classify:  outcomes (truth, predicted, confidence) -> accuracy, per class, confusion, ECE
detect:    boxes of one image -> `match_image` (greedy by score, ten IoU thresholds) -> outcomes of all images -> `Ranking`
           -> average precision with any multiplicity per image, so a paired bootstrap needs no second matching

Average precision follows COCO: thresholds .50 to .95, 101 recall points, at most 100 boxes per image and class, the
objects of all sizes, none of them a crowd. Shares are in [0, 1]; what cannot be measured (no objects) is None or NaN,
never 0. Errors: InputError for arrays that do not belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError
from sutdol.types import Box

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_BOXES_PER_CLASS = 100
ECE_BINS = 15
BACKGROUND = ""
"""Stands for "nothing" in a pair of object and box; no class is called so."""
_CELLS = 4_000_000
"""Resamples are worked on in blocks of so many (resample, box) cells: 32 MB at a time."""

Float = NDArray[np.float64]


class Detection(msgspec.Struct, frozen=True, array_like=True):
    """One reported box after matching: bit i of `hits` is set when it found an object at IOU_THRESHOLDS[i]."""

    label: str
    score: float
    hits: int


class Outcome(msgspec.Struct, frozen=True):
    """How one version did on one item.

    Attributes:
        correct: the class (all classes for `multilabel`) is right; for `detect`, at the working threshold every object
            was found at IoU .5 and nothing else was reported.
        truth, predicted: class names (one for `classify`); for `detect` one name per object and per reported box.
        confidence: calibrated confidence of the best answer; 0 when there was none.
        detections: for `detect`, every box of the full ranking, best first.
        scores: for classes, (name, calibrated confidence) of those that the predictor tells, best first.
        boxes: for `detect`, the boxes reported at the working threshold.
        pairs: for `detect`, (object, box) by name at the working threshold; BACKGROUND where one has no partner.
        found: for `detect`, per object whether it was found under its own name.
        brightness: of the image as the model sees it, in [0, 1].
        width_px, height_px: size of the image.
    """

    sample_id: str
    correct: bool
    truth: list[str]
    predicted: list[str]
    confidence: float
    ood_score: float | None = None
    detections: list[Detection] = []
    scores: list[tuple[str, float]] = []
    boxes: list[Box] = []
    pairs: list[tuple[str, str]] = []
    found: list[bool] = []
    brightness: float | None = None
    width_px: int = 0
    height_px: int = 0


def classification(outcomes: Sequence[Outcome], classes: Sequence[str]) -> dict[str, Any]:
    """Numbers of a classifier. `classes` fixes the order of the confusion matrix; names outside it are appended.

    Returns:
        n, accuracy, ece (15 bins), mean_confidence (None without items); per_class: n, right, accuracy (share of its items
        that are right), precision, recall, f1 (None where nothing counts); confusion: classes, and matrix with one row
        per truth and one column per prediction.
    """
    names = _names(classes, outcomes)
    index = {name: i for i, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), np.int64)
    for o in outcomes:
        if o.truth and o.predicted:
            matrix[index[o.truth[0]], index[o.predicted[0]]] += 1
    right, of_truth, of_predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return {
        "n": len(outcomes),
        "accuracy": _share(sum(o.correct for o in outcomes), len(outcomes)),
        "ece": expected_calibration_error([o.confidence for o in outcomes], [o.correct for o in outcomes]),
        "mean_confidence": float(np.mean([o.confidence for o in outcomes])) if outcomes else None,
        "per_class": {
            name: {"n": int(of_truth[i]), "right": int(right[i]), "accuracy": _share(right[i], of_truth[i])}
            | _f1(int(right[i]), int(of_predicted[i]), int(of_truth[i]))
            for name, i in index.items()
        },
        "confusion": {"classes": names, "matrix": matrix.tolist()},
    }


def multilabel(outcomes: Sequence[Outcome], classes: Sequence[str]) -> dict[str, Any]:
    """Numbers of a multi-label model: accuracy is the share of items with exactly the right set of classes."""
    names = _names(classes, outcomes)
    per_class = {}
    for name in names:
        hits = sum(name in o.truth and name in o.predicted for o in outcomes)
        reported, present = sum(name in o.predicted for o in outcomes), sum(name in o.truth for o in outcomes)
        per_class[name] = {"n": present, "right": hits, "accuracy": _share(hits, present)} | _f1(
            hits, reported, present
        )
    scores = [v["f1"] for v in per_class.values() if v["f1"] is not None]
    return {
        "n": len(outcomes),
        "accuracy": _share(sum(o.correct for o in outcomes), len(outcomes)),
        "macro_f1": float(np.mean(scores)) if scores else None,
        "per_class": per_class,
    }


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], *, bins: int = ECE_BINS
) -> float | None:
    """Mean distance between confidence and accuracy over equal-width bins, weighted by their items; None without items.

    Raises:
        InputError: lengths differ, or a confidence outside [0, 1].
    """
    scores, hits = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    if scores.shape != hits.shape:
        raise InputError(f"ECE: expected as many confidences as outcomes, found {scores.size} and {hits.size}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("ECE: expected confidences in [0, 1], found one outside or NaN")
    if scores.size == 0:
        return None
    places = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.abs(np.bincount(places, hits, bins) - np.bincount(places, scores, bins))
    return float(gaps.sum() / scores.size)


def iou(a: Float, b: Float) -> Float:
    """Overlap of boxes a (n, 4) with boxes b (m, 4), corners x1 y1 x2 y2: intersection over union, (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None, :] - inner
    return np.asarray(np.divide(inner, union, out=np.zeros_like(inner), where=union > 0))


def match_image(predicted: Sequence[Box], truth: Sequence[Box]) -> list[Detection]:
    """Match the boxes of one image by class: best score first, each takes the free object with the largest overlap.

    Returns:
        One entry per box, best first; boxes beyond the 100 best of a class are dropped, as COCO does.

    Raises:
        InputError: a predicted box without a confidence.
    """
    found: list[Detection] = []
    for label in dict.fromkeys(box.label for box in predicted):
        mine = [box for box in predicted if box.label == label]
        if any(box.confidence is None or not 0 <= box.confidence <= 1 for box in mine):
            raise InputError(f"box of {label!r}: expected a confidence in [0, 1] on every prediction")
        mine = sorted(mine, key=lambda box: -(box.confidence or 0.0))[
            :MAX_BOXES_PER_CLASS
        ]  # stable, as COCO's mergesort
        objects = [box for box in truth if box.label == label]
        hits = _greedy(_corners(mine), _corners(objects))
        found += [Detection(label, float(box.confidence or 0.0), hit) for box, hit in zip(mine, hits, strict=True)]
    return sorted(found, key=lambda d: -d.score)


def pair_boxes(reported: Sequence[Box], truth: Sequence[Box]) -> tuple[list[tuple[str, str]], list[bool]]:
    """Which object each reported box means, whatever it calls it, at an overlap of one half.

    First as `match_image` does, within each class; what is left is paired across classes by overlap, so that a confusion
    counts once as a confusion and not as a missed object and an invented one.

    Returns:
        (object, box) names of all pairs and of what has no partner (BACKGROUND), and per object whether it was found.
    """
    overlaps = iou(_corners(reported), _corners(truth))
    mine, theirs = [box.label for box in reported], [box.label for box in truth]
    partner: dict[int, int] = {}
    for i in sorted(range(len(reported)), key=lambda k: -(reported[k].confidence or 0.0)):
        free = [j for j in range(len(truth)) if theirs[j] == mine[i] and j not in partner.values()]
        best = max(free, key=lambda j: (overlaps[i, j], j), default=None)
        if best is not None and overlaps[i, best] >= IOU_THRESHOLDS[0]:
            partner[i] = best
    found = [j in partner.values() for j in range(len(truth))]
    left = [(i, j) for i in range(len(reported)) for j in range(len(truth)) if overlaps[i, j] >= IOU_THRESHOLDS[0]]
    for i, j in sorted(left, key=lambda ij: -overlaps[ij]):
        if i not in partner and j not in partner.values():
            partner[i] = j
    pairs = [(theirs[partner[i]] if i in partner else BACKGROUND, mine[i]) for i in range(len(reported))]
    return pairs + [(theirs[j], BACKGROUND) for j in range(len(truth)) if j not in partner.values()], found


class Ranking:
    """All boxes of one version on n images, ranked per class, ready for any multiplicities of the images.

    Args:
        outcomes: one per image, in the order in which multiplicities will come.
        classes: the classes to measure; None takes those that have objects, as COCO does.
    """

    def __init__(self, outcomes: Sequence[Outcome], classes: Sequence[str] | None = None) -> None:
        self.n = len(outcomes)
        self.classes = list(classes) if classes is not None else sorted({name for o in outcomes for name in o.truth})
        self._ranked: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._objects: dict[str, NDArray[np.int64]] = {}
        by_class: dict[str, list[tuple[int, Detection]]] = {name: [] for name in self.classes}
        for image, outcome in enumerate(outcomes):
            for detection in outcome.detections:
                if detection.label in by_class:
                    by_class[detection.label].append((image, detection))
        for name, found in by_class.items():
            order = np.argsort([-d.score for _, d in found], kind="stable").astype(np.int64)
            images = np.array([image for image, _ in found], np.int64)[order]
            self._ranked[name] = images, np.array([d.hits for _, d in found], np.int64)[order]
            self._objects[name] = np.array([o.truth.count(name) for o in outcomes], np.int64)

    def average_precision(self, counts: NDArray[np.int32] | None = None, *, threshold: int = 0) -> Float:
        """Average precision per resample and class, (r, classes); NaN where the resample holds no object of the class.

        Args:
            counts: (r, n) multiplicities of the images; None means every image once.
            threshold: index into IOU_THRESHOLDS; 0 is IoU .5.
        """
        if counts is None:
            counts = np.ones((1, self.n), np.int32)
        if counts.ndim != 2 or counts.shape[1] != self.n:
            raise InputError(f"resamples: expected shape (r, {self.n}), found {counts.shape}")
        columns = [self._one_class(name, counts, threshold) for name in self.classes]
        return np.stack(columns, axis=1) if columns else np.full((len(counts), 0), np.nan)

    def mean_average_precision(self, counts: NDArray[np.int32] | None = None, *, threshold: int = 0) -> Float:
        """The mean over the classes that have objects, (r,); NaN where none has."""
        return nan_mean(self.average_precision(counts, threshold=threshold))

    def _one_class(self, name: str, counts: NDArray[np.int32], threshold: int) -> Float:
        images, hits = self._ranked[name]
        hit = (hits >> threshold & 1).astype(bool)
        objects = (counts @ self._objects[name]).astype(np.float64)
        result = np.where(objects > 0, 0.0, np.nan)
        if not hit.any():
            return result
        last = int(np.flatnonzero(hit)[-1]) + 1  # boxes after the last hit change nothing
        images, hit = images[:last], hit[:last]
        block = max(1, _CELLS // last)
        for start in range(0, len(counts), block):
            weights = counts[start : start + block][:, images]
            seen = np.cumsum(weights, axis=1, dtype=np.int64)[:, hit]
            found = np.cumsum(weights[:, hit], axis=1, dtype=np.int64).astype(np.float64)
            precision = found / (seen + np.spacing(1))
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for row in range(len(weights)):
                total = objects[start + row]
                if total > 0:
                    places = np.searchsorted(found[row] / total, RECALL_POINTS, side="left")
                    reached = places[places < found.shape[1]]
                    result[start + row] = envelope[row, reached].sum() / RECALL_POINTS.size
        return result


def detection(outcomes: Sequence[Outcome], classes: Sequence[str], *, score_min: float) -> dict[str, Any]:
    """Numbers of a detector.

    Args:
        score_min: the working threshold; precision and recall (IoU .5) count boxes from this confidence on.

    Returns:
        n, objects, map50, map50_95, precision, recall, f1; per_class: n (objects), images, ap50, ap50_95, precision,
        recall, f1. None where there is nothing to measure.
    """
    names = _names(classes, outcomes)
    ranking = Ranking(outcomes, names)
    table = np.stack([ranking.average_precision(threshold=t)[0] for t in range(IOU_THRESHOLDS.size)])
    per_class: dict[str, Any] = {}
    sums = np.zeros(3, np.int64)
    for column, name in enumerate(names):
        kept = [d for o in outcomes for d in o.detections if d.label == name and d.score >= score_min]
        objects = sum(o.truth.count(name) for o in outcomes)
        numbers = np.array([sum(d.hits & 1 for d in kept), len(kept), objects])
        sums += numbers
        per_class[name] = {
            "n": objects,
            "images": sum(name in o.truth for o in outcomes),
            "ap50": _or_none(table[0, column]),
            "ap50_95": _or_none(table[:, column].mean()),
        } | _f1(*numbers.tolist())
    return {
        "n": len(outcomes),
        "objects": int(sums[2]),
        "map50": _or_none(nan_mean(table[:1])[0]),
        "map50_95": _or_none(nan_mean(table).mean()),
        "per_class": per_class,
    } | _f1(*sums.tolist())


def nan_mean(table: Float) -> Float:
    """Mean over the columns that are not NaN, (r, k) -> (r,); NaN where all are, or k is 0."""
    valid = ~np.isnan(table)
    counted = valid.sum(axis=1)
    total = np.where(valid, table, 0.0).sum(axis=1)
    return np.asarray(np.divide(total, counted, out=np.full(len(table), np.nan), where=counted > 0))


def _greedy(predicted: Float, objects: Float) -> list[int]:
    """Bit masks of the thresholds at which each box, in order of score, takes an object (COCO's evaluateImg)."""
    hits = [0] * len(predicted)
    if not len(predicted) or not len(objects):
        return hits
    overlaps = iou(predicted, objects)
    possible = np.flatnonzero(overlaps.max(axis=1) >= IOU_THRESHOLDS[0] - 1e-10)
    for bit, threshold in enumerate(IOU_THRESHOLDS):
        taken = np.zeros(len(objects), bool)
        for box in possible:
            row = np.where(taken, -1.0, overlaps[box])
            best = len(row) - 1 - int(np.argmax(row[::-1]))  # of equal overlaps COCO takes the last
            if row[best] >= min(threshold, 1 - 1e-10):
                taken[best] = True
                hits[box] |= 1 << bit
    return hits


def _corners(boxes: Sequence[Box]) -> Float:
    return np.array([(b.x1, b.y1, b.x2, b.y2) for b in boxes], np.float64).reshape(-1, 4)


def _names(classes: Sequence[str], outcomes: Sequence[Outcome]) -> list[str]:
    extra = sorted({name for o in outcomes for name in (*o.truth, *o.predicted)} - set(classes))
    return [*classes, *extra]


def _f1(hits: int, reported: int, present: int) -> dict[str, float | None]:
    return {
        "precision": _share(hits, reported),
        "recall": _share(hits, present),
        "f1": 2 * hits / (reported + present) if reported + present else None,
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
