"""What a model version needs beside its weights: temperature, familiarity, thresholds and a golden record. No torch.

    ONNX file + train and val items -> features and scores by `sutdol.predictor` -> temperature (val)
        -> OOD statistics and their threshold (train; val or cross-fitted) -> score_min (val, detection)
        -> manifest and files of the bundle

Everything is fitted on train and val; the test split is never read here. With a val split too small for a quantile the
OOD threshold is cross-fitted: folds of the training images take turns as the images that were held out.

Errors: ModelError from the model; NotFoundError or ImageError for a sample that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrain import metrics
from sutdol import familiarity, scoring, thresholds
from sutdol.difference import differs
from sutdol.familiarity import MAX_BANK, OodStatistics
from sutdol.images import Rgb, jpeg_size_hw
from sutdol.predictor import Predictor, Raw, cover, decode_for, fit_input, to_tensor
from sutdol.tables import DatasetItem
from sutdol.types import InputSpec, Label, Manifest, Task

FAMILIAR_SHARE = 0.95
"""Share of familiar images that stay below `unfamiliar_at`."""
NORMAL_QUANTILE = 1.645
"""The same share of a normal distribution, in standard deviations; log distances are nearly normal."""
MIN_VAL = 40
FOLDS = 5
MIN_FAMILIAR = 8
"""Fewer images in all, and there is no "familiar" to speak of: the version gets no OOD statistics."""
MAX_TRAIN = 5_000
"""Training images that are run for their statistics; more change nothing."""
CANDIDATE_MIN = 0.05
"""Boxes below this raw confidence say nothing about calibration: there are thousands of them and all are wrong."""
SCORE_MIN_RANGE = (0.05, 0.5)
DEFAULT_SCORE_MIN = 0.25
MIN_BOXES = 50
"""Detections on val that a detector's temperature and threshold need; with fewer the defaults stay."""
MAX_CHANGED = 0.005
MAX_COMPARED = 400
"""Images on which scaled decoding is tried; 400 images cost a few seconds."""
GOLDEN_IMAGES = 4
BATCH = 64

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Calibrated:
    """A manifest without file hashes, and the files of the bundle (`model.onnx` and what was fitted)."""

    manifest: Manifest
    files: dict[str, bytes]
    predictor: Predictor
    """The candidate as it will be served, for judging it."""


def calibrate(
    onnx: bytes,
    shape: InputSpec,
    *,
    task: Task,
    classes: list[str],
    family: str,
    items: Sequence[DatasetItem],
    read: Callable[[str], bytes],
    provenance: dict[str, str],
    check: Callable[[], None] = lambda: None,
    threads: int = 1,
    low_level: int = 0,
) -> Calibrated:
    """Fit everything that is fitted after training.

    Args:
        items: of the dataset version; those of the test split are left alone.
        read: a sample's bytes by its id.
        check: called between batches; may raise Cancelled.
        low_level: the last so many features describe the picture itself (`families.Export`).
    """
    manifest = Manifest(
        task=task, classes=classes, input=shape, family=family, provenance=provenance, low_level=low_level
    )
    predictor = Predictor.from_parts(onnx, manifest, threads=threads)
    if not _same_answers_when_scaled(predictor, [item for item in items if item.split != "test"], read, check):
        shape = msgspec.structs.replace(shape, scaled_decode=False)
        manifest = msgspec.structs.replace(manifest, input=shape)
        predictor = Predictor(predictor.runtime, manifest, None, None, "", 0)
    train = [item for item in items if item.split == "train"]
    val = [item for item in items if item.split == "val"]
    if len(train) > MAX_TRAIN:
        train = [train[i] for i in np.random.default_rng(0).choice(len(train), MAX_TRAIN, replace=False)]
    _, train_features = _run(predictor, train, read, check)
    val_scores, val_features = _run(predictor, val, read, check, keep_scores=task != "detect")

    truth: NDArray[np.generic]
    if task == "detect":
        fitted_boxes, scores, truth = _fit_boxes(predictor, val, read, check)
        manifest = msgspec.structs.replace(manifest, **fitted_boxes)
    else:
        scores, truth = val_scores.astype(np.float64), _truth(task, classes, val)
        temperature = _fit_temperature(task, scores, truth)
        manifest = msgspec.structs.replace(manifest, temperature=temperature)
        doubts = _doubts(Predictor(predictor.runtime, manifest, None, None, "", 0), val_scores)
        uncertain_at = float(np.quantile(doubts, FAMILIAR_SHARE)) if len(doubts) >= MIN_VAL else None
        manifest = msgspec.structs.replace(manifest, uncertain_at=uncertain_at)
    files = {"model.onnx": onnx}
    if len(scores):
        study = thresholds.study(task, scores, truth, temperature=manifest.temperature, split="val")
        manifest = msgspec.structs.replace(manifest, accept_at=thresholds.pairs(study))
        files[thresholds.FILE] = msgspec.json.encode(study)
    labels = _class_indices(train, classes) if task == "classify" else None
    fitted = fit_familiarity(train_features, labels, val_features, normalise=task != "detect", low_level=low_level)
    ood = None
    if fitted is not None:
        ood, unfamiliar_at = fitted
        manifest = msgspec.structs.replace(manifest, unfamiliar_at=unfamiliar_at)
        files["scoring.npz"] = ood.to_bytes()
    golden = [_fitted(item, read, shape) for item in (val or train)[:GOLDEN_IMAGES]]
    if golden:
        files["golden.npz"] = predictor.make_golden(np.stack(golden))
    return Calibrated(manifest, files, Predictor(predictor.runtime, manifest, ood, None, "", 0))


def fit_familiarity(
    train: Float32, labels: NDArray[np.integer] | None, val: Float32, *, normalise: bool, low_level: int = 0
) -> tuple[OodStatistics, float] | None:
    """OOD statistics and the score from which an image counts as unfamiliar; None with fewer than MIN_FAMILIAR images.

    The threshold is the larger of the empirical quantile and that of the fitted normal distribution: with a hundred
    images either alone is too low every few runs, and then people are sent familiar images for nothing.
    """
    if len(train) < MIN_FAMILIAR:
        return None
    most = MAX_BANK if normalise else 0

    def learn(features: Float32, classes: NDArray[np.integer] | None) -> OodStatistics:
        return familiarity.learn(features, classes, normalise=normalise, most=most, low_level=low_level)

    statistics = learn(train, labels)
    if len(val) >= MIN_VAL:
        distances = statistics.distances(val)
    else:
        distances = _out_of_fold(train, labels, learn)
        if len(val):
            distances = np.concatenate([distances, statistics.distances(val)])
    statistics = statistics.scaled_by(distances)
    scores = statistics.standardised(distances)[1]
    normal = float(scores.mean() + NORMAL_QUANTILE * scores.std())
    return statistics, max(float(np.quantile(scores, FAMILIAR_SHARE)), normal)


def held_out_scores(
    predictor: Predictor,
    items: Sequence[DatasetItem],
    read: Callable[[str], bytes],
    *,
    check: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float64], NDArray[np.generic]]:
    """(scores, what is right) of a version on items it was not trained on, as `thresholds.study` takes them."""
    manifest = predictor.manifest
    if manifest.task == "detect":
        plain = msgspec.structs.replace(manifest, temperature=1.0)
        found = _fit_boxes(Predictor(predictor.runtime, plain, None, None, "", 0), items, read, check)
        return found[1], found[2]
    scores, _ = _run(predictor, items, read, check, keep_scores=True)
    return scores.astype(np.float64), _truth(manifest.task, manifest.classes, items)


def best_score_min(scores: NDArray[np.floating], hits: NDArray[np.bool_], objects: int) -> float:
    """The confidence threshold with the best F1 over all boxes, kept inside SCORE_MIN_RANGE.

    Args:
        scores: calibrated confidences (n,).
        hits: whether each box is a real object (n,).
        objects: real objects in all, found or not.

    >>> best_score_min(np.array([0.9, 0.4, 0.3]), np.array([True, True, False]), 2)
    0.4
    """
    if not len(scores) or objects == 0:
        return DEFAULT_SCORE_MIN
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(order) + 1) + objects)
    best = float(scores[order][int(np.argmax(f1))])
    return min(max(best, SCORE_MIN_RANGE[0]), SCORE_MIN_RANGE[1])


def _out_of_fold(
    train: Float32,
    labels: NDArray[np.integer] | None,
    learn: Callable[[Float32, NDArray[np.integer] | None], OodStatistics],
) -> NDArray[np.float64]:
    """Log distances of every training image to what the other folds know."""
    fold = np.random.default_rng(0).permutation(len(train)) % min(FOLDS, len(train) // 2)
    parts = []
    for k in np.unique(fold):
        inside = fold != k
        parts.append(learn(train[inside], None if labels is None else labels[inside]).distances(train[~inside]))
    return np.concatenate(parts)


def _doubts(predictor: Predictor, scores: Float32) -> NDArray[np.float64]:
    """1 - margin of each row of logits (n, classes)."""
    raw = Raw(scores, np.zeros((len(scores), 1), np.float32))
    return np.array([1.0 - predictor.interpret(raw, i, (1, 1)).margin for i in range(len(scores))])


def _truth(task: Task, classes: list[str], val: Sequence[DatasetItem]) -> NDArray[np.generic]:
    """What is right: class indices (n,), for `multilabel` presence (n, classes)."""
    if task == "classify":
        return _class_indices(val, classes)
    index = {name: i for i, name in enumerate(classes)}
    present = np.zeros((len(val), len(classes)), bool)
    for row, item in enumerate(val):
        present[row, [index[name] for name in item.value["classes"]]] = True
    return present


def _fit_temperature(task: Task, scores: NDArray[np.float64], truth: NDArray[np.generic]) -> float:
    if not len(scores):
        return 1.0
    if task == "classify":
        return scoring.fit_temperature(scores, truth.astype(np.int64))
    return scoring.fit_binary_temperature(scores.ravel(), truth.astype(bool).ravel())


def _fit_boxes(
    predictor: Predictor, val: Sequence[DatasetItem], read: Callable[[str], bytes], check: Callable[[], None]
) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.bool_]]:
    """What the detector finds on val, matched to the truth at an overlap of one half.

    Returns:
        temperature, score_min and difficulty, nothing where val holds too few detections; log-odds of the boxes that were
        looked at, and whether each is a real object.
    """
    judged, outcomes = predictor.evaluating(), []
    for item in val:
        check()
        truth = msgspec.convert(item.value, Label).boxes
        found = metrics.match_image(judged.predict_bytes(read(item.sample_id)).boxes, truth)
        names = [box.label for box in truth]
        outcomes.append(metrics.Outcome(item.sample_id, False, names, [], 0.0, detections=found))
    candidates = [d for o in outcomes for d in o.detections if d.score >= CANDIDATE_MIN]
    real = np.asarray([bool(d.hits & 1) for d in candidates], bool)
    odds = scoring.log_odds(np.asarray([d.score for d in candidates], np.float64))
    if len(candidates) < MIN_BOXES or not real.any():
        return {}, odds, real
    temperature = scoring.fit_binary_temperature(odds, real)
    objects = sum(len(o.truth) for o in outcomes)
    ranking = metrics.Ranking(outcomes)
    precision = ranking.average_precision()[0]
    fitted = {
        "temperature": temperature,
        "score_min": best_score_min(scoring.sigmoid(odds, temperature=temperature), real, objects),
        "difficulty": {name: 1.0 - float(ap) for name, ap in zip(ranking.classes, precision, strict=True)},
    }
    return fitted, odds, real


def _same_answers_when_scaled(
    predictor: Predictor, items: Sequence[DatasetItem], read: Callable[[str], bytes], check: Callable[[], None]
) -> bool:
    """Whether decoding JPEGs at a half, a quarter or an eighth changes at most MAX_CHANGED of the answers.

    Looked at on at most MAX_COMPARED images to which it makes a difference; where there are none it cannot do harm.
    """
    whole = msgspec.structs.replace(predictor.manifest, input=_unscaled(predictor.manifest.input))
    plain = Predictor(predictor.runtime, whole, None, None, "", 0)
    compared = changed = 0
    for item in items[: 10 * MAX_COMPARED]:
        data = read(item.sample_id)
        size_hw = jpeg_size_hw(data)
        needed = cover(predictor.manifest.input, size_hw) if size_hw else (0, 0)
        if size_hw is None or size_hw[0] < 2 * needed[0] or size_hw[1] < 2 * needed[1]:
            continue
        check()
        compared += 1
        changed += differs(predictor.predict_bytes(data), plain.predict_bytes(data), predictor.manifest.task)
        if compared == MAX_COMPARED:
            break
    return changed <= MAX_CHANGED * compared


def _unscaled(shape: InputSpec) -> InputSpec:
    return msgspec.structs.replace(shape, scaled_decode=False)


def _run(
    predictor: Predictor,
    items: Sequence[DatasetItem],
    read: Callable[[str], bytes],
    check: Callable[[], None],
    *,
    keep_scores: bool = False,
) -> tuple[Float32, Float32]:
    """Scores (n, classes) if wanted, and features (n, d)."""
    scores, features, shape = [], [], predictor.manifest.input
    for start in range(0, len(items), BATCH):
        check()
        part = items[start : start + BATCH]
        raw = predictor.run(np.stack([to_tensor(_fitted(item, read, shape), shape) for item in part]))
        features.append(raw.features)
        if keep_scores:
            scores.append(raw.scores)
    empty = np.zeros((0, 0), np.float32)
    return np.concatenate(scores) if scores else empty, np.concatenate(features) if features else empty


def _fitted(item: DatasetItem, read: Callable[[str], bytes], shape: InputSpec) -> Rgb:
    return fit_input(decode_for(read(item.sample_id), shape), shape)


def _class_indices(items: Sequence[DatasetItem], classes: list[str]) -> NDArray[np.int64]:
    index = {name: i for i, name in enumerate(classes)}
    return np.asarray([index[item.value["classes"][0]] for item in items], np.int64)
