"""Threshold studies: how many answers must be withheld for how much accuracy, at which temperature. Pure but for `read`.

    held-out confidences and outcomes, for each temperature -> Study: accuracy of what is answered and share of what is not
                                                            -> per risk the least confidence that keeps it (`accept_at`)

The sweep is for people, who see what they would trade; `accept_at` is for the abstain mode. It is not the lowest threshold that
looks good on held-out data (which breaks its promise every second or third time) but the loosest that is shown to keep the
risk, with nine tenths confidence, by `monitor.guarantee.learn_then_test`.

Calibrating a version makes its study from the val split and stores it in the bundle as `thresholds.json`.

Errors: InputError for shapes that do not fit or confidences outside [0, 1]; NotFoundError for a version without a study.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from sutdol import registry, scoring
from sutdol.errors import InputError, NotFoundError
from sutdol.monitor.guarantee import learn_then_test
from sutdol.stores import Store
from sutdol.types import Task

Float = NDArray[np.float64]
FILE = "thresholds.json"
"""Name in a version's bundle."""
FACTORS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
"""Temperatures of the sweep, in units of the one in force."""
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
RISKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
BINS = 15


class Kept(msgspec.Struct, frozen=True):
    """What one risk costs: from this confidence on, at most that share of the answers is wrong.

    `confidence` is None when the held-out data cannot show it; `missing` says how many items are too few, 0 when there are
    enough and the model is too often wrong.
    """

    risk: float
    confidence: float | None
    answered: float
    missing: int


class Study(msgspec.Struct, frozen=True):
    """The sweep of one version over one split.

    Attributes:
        n: items; for a detector the boxes it considers.
        temperature: the one in force; `temperatures` those of the sweep.
        accuracy: [temperature][threshold], of what is answered; None where nothing is.
        rejected: [temperature][threshold], share that is not answered.
        ece: [temperature], expected calibration error over 15 bins.
        accept_at: per risk, at the temperature in force; empty for a detector, whose boxes are not independent.
    """

    split: str
    n: int
    temperature: float
    temperatures: list[float]
    thresholds: list[float]
    accuracy: list[list[float | None]]
    rejected: list[list[float]]
    ece: list[float]
    accept_at: list[Kept]


def read(store: Store, model: str, version: int) -> Study:
    """The study that was stored with a version.

    Raises:
        NotFoundError: the version has none: it was made without val images, or before studies were made.
    """
    manifest = registry.read_manifest(store, model, version)
    if FILE not in manifest.files:
        raise NotFoundError(
            f"version {version} of {model} has no threshold study", hint=f"sutdol thresholds {model} {version}"
        )
    return msgspec.json.decode(registry.read_file(store, model, version, manifest, FILE), type=Study)


def study(task: Task, scores: Float, truth: NDArray[np.generic], *, temperature: float, split: str) -> Study:
    """Sweep one version.

    Args:
        scores: logits (n, classes), or for `detect` the log-odds of boxes (n,).
        truth: class indices (n,); presence (n, classes) for `multilabel`; whether a box is real (n,) for `detect`.
    """
    if len(scores) != len(truth):
        raise InputError(f"threshold study: expected as many outcomes as scores, found {len(truth)} and {len(scores)}")
    sure = _SURE[task]
    rows = [sweep(*sure(scores, truth, temperature * factor)) for factor in FACTORS]
    confidence, right = sure(scores, truth, temperature)
    return Study(
        split=split,
        n=len(scores),
        temperature=temperature,
        temperatures=[round(temperature * factor, 4) for factor in FACTORS],
        thresholds=list(THRESHOLDS),
        accuracy=[accuracy for accuracy, _, _ in rows],
        rejected=[rejected for _, rejected, _ in rows],
        ece=[ece for _, _, ece in rows],
        accept_at=[] if task == "detect" else keep(confidence, right),
    )


def sweep(confidence: Float, right: NDArray[np.bool_]) -> tuple[list[float | None], list[float], float]:
    """(accuracy of what is answered, share that is not) per threshold, and the calibration error."""
    if confidence.shape != right.shape or not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError("threshold study: expected confidences in [0, 1] with one outcome each")
    accuracy: list[float | None] = []
    rejected: list[float] = []
    for threshold in THRESHOLDS:
        answered = confidence >= threshold
        accuracy.append(float(right[answered].mean()) if answered.any() else None)
        rejected.append(float(1 - answered.mean()) if len(answered) else 0.0)
    return accuracy, rejected, _calibration_error(confidence, right)


def keep(confidence: Float, right: NDArray[np.bool_]) -> list[Kept]:
    """For each of RISKS the least confidence that is shown to keep it."""
    found = []
    for risk in RISKS:
        rule = learn_then_test(scoring.log_odds(confidence), right.astype(np.float64), target=risk)
        least = None if rule.threshold is None else float(scoring.sigmoid(np.array(rule.threshold)))
        found.append(Kept(risk, least, rule.coverage, rule.missing))
    return found


def pairs(study: Study) -> list[tuple[float, float]]:
    """(risk, least confidence) of every risk that can be kept, for the manifest."""
    return [(kept.risk, kept.confidence) for kept in study.accept_at if kept.confidence is not None]


def _of_classes(logits: Float, labels: NDArray[np.generic], temperature: float) -> tuple[Float, NDArray[np.bool_]]:
    return scoring.softmax(logits, temperature=temperature).max(axis=1, initial=0.0), logits.argmax(axis=1) == labels


def _of_labels(logits: Float, present: NDArray[np.generic], temperature: float) -> tuple[Float, NDArray[np.bool_]]:
    chances = scoring.sigmoid(logits, temperature=temperature)
    return np.maximum(chances, 1 - chances).min(axis=1), ((logits > 0) == present.astype(bool)).all(axis=1)


def _of_boxes(odds: Float, real: NDArray[np.generic], temperature: float) -> tuple[Float, NDArray[np.bool_]]:
    return scoring.sigmoid(odds, temperature=temperature), real.astype(bool)


_SURE: dict[str, Callable[[Float, NDArray[np.generic], float], tuple[Float, NDArray[np.bool_]]]] = {
    "classify": _of_classes,
    "multilabel": _of_labels,
    "detect": _of_boxes,
}


def _calibration_error(confidence: Float, right: NDArray[np.bool_]) -> float:
    if not len(confidence):
        return 0.0
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.abs(np.bincount(places, right, BINS) - np.bincount(places, confidence, BINS))
    return float(gaps.sum() / len(confidence))
