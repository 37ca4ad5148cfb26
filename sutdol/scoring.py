"""How sure the model is: calibration, and every score of an answer by name, in numpy alone.

Two questions, kept apart because they have different answers (measured: a small classifier gives 98 % of pure-noise images
a confidence above .9, while feature distance finds all of them):

    "is it probably wrong?"   calibrated confidence and margin, from the scores (here)
    "is it a new kind?"       distance to what is known, from the features (`sutdol.familiarity`)

    Evidence (logits, or boxes; features) -> SCORERS[name].score -> one number per image

One sign rule: *larger means label it sooner*. Scores rank by log-odds and differences of logits, never by probabilities:
those saturate at 1.0 and tie. To add one: a function here and a line in SCORERS.

Sources: temperature scaling, Guo et al. 2017 (arXiv:1706.04599); its prior, Platt 1999; energy, Liu et al. 2020
(arXiv:2010.03759); GEN, Liu et al. 2023 (CVPR); class difficulty in detection, Yang et al. 2024 (arXiv:2211.11612).

Errors: InputError for wrong shapes, NaN, or nothing to fit on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError
from sutdol.familiarity import OodStatistics
from sutdol.types import Task

Float = NDArray[np.float64]
_GOLDEN_RATIO = (5**0.5 - 1) / 2
TOP_BOXES = 20
"""A detector's doubt is that of its most doubtful boxes: a plain sum would favour crowded images."""
GEN_GAMMA, GEN_CLASSES = 0.1, 100


def softmax(logits: NDArray[np.floating], *, temperature: float = 1.0) -> Float:
    """Probabilities along the last axis; computed in float64 so that a small temperature does not tie the best classes."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.floating], *, temperature: float = 1.0) -> Float:
    """Element-wise 1 / (1 + exp(-x / temperature))."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(np.asarray(logits, np.float64) / temperature, -60, 60))))


def log_odds(probabilities: NDArray[np.floating]) -> Float:
    """The inverse of `sigmoid`; 0 and 1 are clipped to 1e-7 from the end."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature in [0.05, 20] that minimises the negative log likelihood of held-out labels.

    A label counts as right with (n + 1) / (n + 2), as in Platt's scaling: with no error among n labels the likelihood alone
    would drive every confidence to 1.0, and n labels cannot know that.

    Args:
        logits: shape (n, classes).
        labels: class indices, shape (n,).

    Returns:
        1.0 when there is nothing to fit on (n < 10), or when no temperature is better than 1.
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(
            f"temperature: expected logits (n, classes) and labels (n,), found {logits.shape}, {labels.shape}"
        )
    n, classes = logits.shape
    z = np.asarray(logits, np.float64)
    doubt = 1 / (n + 2) if classes > 1 else 0.0
    own = z[np.arange(n), labels]
    expected = (1 - doubt) * own + doubt * (z.sum(axis=1) - own) / max(classes - 1, 1)

    def loss(temperature: float) -> float:
        return float(np.mean(_log_sum(z / temperature) - expected / temperature))

    return _best_temperature(loss, n=n)


def fit_binary_temperature(odds: NDArray[np.floating], hits: NDArray[np.bool_]) -> float:
    """As `fit_temperature`, for boxes: log-odds of each box's score (n,), and whether it is a real object (n,)."""
    if odds.shape != hits.shape or odds.ndim != 1:
        raise InputError(f"temperature: expected log-odds (n,) and hits (n,), found {odds.shape} and {hits.shape}")
    doubt = 1 / (len(odds) + 2)
    signs = np.where(hits, 1.0, -1.0)

    def loss(temperature: float) -> float:
        right, wrong = (np.logaddexp(0.0, sign * odds / temperature) for sign in (-signs, signs))
        return float(np.mean((1 - doubt) * right + doubt * wrong))

    return _best_temperature(loss, n=len(odds))


def entropy(probabilities: NDArray[np.floating]) -> Float:
    """Shannon entropy along the last axis divided by its maximum, so in [0, 1]; larger is less sure.

    >>> float(entropy(np.array([0.5, 0.5])))
    1.0
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-300, 1.0)
    return np.asarray(-(p * np.log(p)).sum(axis=-1) / np.log(max(p.shape[-1], 2)))


def binary_entropy(chances: NDArray[np.floating]) -> Float:
    """Entropy of yes or no at these chances, in [0, 1]: 1 at a half, 0 at both ends; element-wise."""
    p = np.asarray(chances, np.float64)
    return entropy(np.stack([p, 1 - p], axis=-1))


@dataclass(frozen=True)
class Evidence:
    """What scorers may know about n answered images of one model version; every part may be missing.

    Attributes:
        temperature: of the version's manifest; logits are divided by it.
        logits: (n, classes) of a classifier.
        boxes: of a detector, per image an array (m, 2) of calibrated confidence and class index; m may be 0.
        missed: of a detector, per image the highest calibrated confidence among what it did not report (n,).
        difficulty: of a detector, weight of each class (classes,): 1 - its average precision, or None for equal ones.
        features, statistics: (n, d), and what they are compared with.
        strangeness: what `statistics.strangeness` says about the features, where that is known already.
    """

    temperature: float = 1.0
    logits: NDArray[np.floating] | None = None
    boxes: Sequence[NDArray[np.floating]] | None = None
    missed: NDArray[np.floating] | None = None
    difficulty: NDArray[np.floating] | None = None
    features: NDArray[np.floating] | None = None
    statistics: OodStatistics | None = None
    strangeness: tuple[Float, Float] | None = None

    def __post_init__(self) -> None:
        for name, array in (("logits", self.logits), ("features", self.features)):
            if array is not None and (array.ndim != 2 or not np.isfinite(array).all()):
                raise InputError(f"{name}: expected finite numbers (n, k), found shape {array.shape} or NaN")
        for box in self.boxes or []:
            if box.ndim != 2 or box.shape[1] != 2 or not ((box[:, 0] >= 0) & (box[:, 0] <= 1)).all():
                raise InputError(f"boxes: expected confidence in [0, 1] and class (m, 2), found {box.shape} or outside")

    @cached_property
    def distances(self) -> tuple[Float, Float]:
        """Of the features, in standard deviations of familiar images: each (n, c), and the score that sums them up (n,)."""
        if self.strangeness is not None:
            return self.strangeness
        if self.features is None or self.statistics is None:
            raise InputError("score: expected features and statistics, found none")
        return self.statistics.strangeness(self.features)


@dataclass(frozen=True)
class Scorer:
    """A line of SCORERS: what kind of evidence a score is made of, and how; larger means label it sooner.

    `kind` is logits, boxes or features; the score needs `statistics` too when it is features.
    """

    kind: str
    score: Callable[[Evidence], Float]


def max_probability(evidence: Evidence) -> Float:
    """Log-odds against the best class: as 1 - confidence, without its ties."""
    z = np.sort(_logits(evidence), axis=1)
    return np.asarray(-z[:, -1] if z.shape[1] < 2 else _log_sum(z[:, :-1]) - z[:, -1])


def margin(evidence: Evidence) -> Float:
    """Log of the second class's probability over the best one's; 0 is a tie. One class alone is never in doubt."""
    z = _logits(evidence)
    if z.shape[1] < 2:
        return np.full(len(z), -np.inf)
    top = np.partition(z, -2, axis=1)
    return np.asarray(top[:, -2] - top[:, -1])


def class_entropy(evidence: Evidence) -> Float:
    """Entropy of the calibrated probabilities, in [0, 1]."""
    return entropy(softmax(_logits(evidence)))


def energy(evidence: Evidence) -> Float:
    """Minus the log of the sum of exponentials: low where no class responds."""
    return -_log_sum(_logits(evidence))


def generalised_entropy(evidence: Evidence) -> Float:
    """GEN: sum over the 100 best classes of p^.1 (1 - p)^.1, which sees small doubts that entropy rounds away."""
    p = np.sort(softmax(_logits(evidence)), axis=1)[:, -GEN_CLASSES:]
    return np.asarray((p**GEN_GAMMA * (1 - p).clip(0) ** GEN_GAMMA).sum(axis=1))


def box_doubt(evidence: Evidence) -> Float:
    """Entropy of the most doubtful box, in [0, 1]; 0 without boxes."""
    return np.array([binary_entropy(box[:, 0]).max(initial=0.0) for box in evidence.boxes or []], np.float64)


def box_doubts(evidence: Evidence) -> Float:
    """Sum of the TOP_BOXES largest box entropies, each times the difficulty of its class; 0 without boxes."""
    sums = []
    for box in evidence.boxes or []:
        weight = 1.0 if evidence.difficulty is None else evidence.difficulty[box[:, 1].astype(int)]
        sums.append(float(np.sort(binary_entropy(box[:, 0]) * weight)[-TOP_BOXES:].sum()))
    return np.array(sums, np.float64)


def nothing_found(evidence: Evidence) -> Float:
    """For an image without boxes, 1 + the confidence of the best one that was not reported; 0 for any other image.

    A missed object looks exactly like an empty image, so every empty image stands above every other, and among them the
    one that nearly had an object stands first.
    """
    boxes = evidence.boxes or []
    missed = np.zeros(len(boxes)) if evidence.missed is None else evidence.missed
    return np.array([0.0 if len(box) else 1.0 + float(m) for box, m in zip(boxes, missed, strict=True)], np.float64)


def mahalanobis(evidence: Evidence) -> Float:
    """Distance to the nearest class, in standard deviations of familiar images."""
    return np.asarray(evidence.distances[0][:, 0])


def nearest(evidence: Evidence) -> Float:
    """Distance to the nearest training image, in standard deviations of familiar images; needs a bank."""
    if evidence.statistics is not None and not len(evidence.statistics.bank):
        raise InputError("score `nearest`: the statistics hold no bank of images")
    return np.asarray(evidence.distances[0][:, 1])


def low_level(evidence: Evidence) -> Float:
    """Brightness, contrast and grain of the picture, in standard deviations of familiar ones."""
    if evidence.statistics is not None and evidence.statistics.low is None:
        raise InputError("score `low_level`: the features say nothing about the picture itself")
    return np.asarray(evidence.distances[0][:, -1])


def unfamiliar(evidence: Evidence) -> Float:
    """The sum of both, or the one there is: the `ood_score` of a prediction."""
    return evidence.distances[1]


SCORERS: dict[str, Scorer] = {
    "max_probability": Scorer("logits", max_probability),
    "margin": Scorer("logits", margin),
    "entropy": Scorer("logits", class_entropy),
    "energy": Scorer("logits", energy),
    "gen": Scorer("logits", generalised_entropy),
    "box_doubt": Scorer("boxes", box_doubt),
    "box_doubts": Scorer("boxes", box_doubts),
    "nothing_found": Scorer("boxes", nothing_found),
    "mahalanobis": Scorer("features", mahalanobis),
    "nearest": Scorer("features", nearest),
    "low_level": Scorer("features", low_level),
    "unfamiliar": Scorer("features", unfamiliar),
}


def scorers_for(task: Task, statistics: OodStatistics | None) -> list[str]:
    """Names of the scores that a version of this task can give: those of its answers, and with `statistics` of features."""
    kinds = {"boxes" if task == "detect" else "logits"} | ({"features"} if statistics is not None else set())
    bank, low = (
        (statistics is not None and len(statistics.bank) > 0),
        statistics is not None and statistics.low is not None,
    )
    missing = {name for name, there in (("nearest", bank), ("low_level", low)) if not there}
    return [name for name, scorer in SCORERS.items() if scorer.kind in kinds and name not in missing]


def _logits(evidence: Evidence) -> Float:
    if evidence.logits is None:
        raise InputError("score: expected logits, found none")
    return np.asarray(evidence.logits, np.float64) / evidence.temperature


def _log_sum(z: Float) -> Float:
    top = z.max(axis=1)
    return np.asarray(top + np.log(np.exp(z - top[:, None]).sum(axis=1)))


def _best_temperature(loss: object, *, n: int) -> float:
    assert callable(loss)
    if n < 10:
        return 1.0
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(60):  # golden section: the loss has one minimum in 1 / T, so in log T
        a = high - _GOLDEN_RATIO * (high - low)
        b = low + _GOLDEN_RATIO * (high - low)
        low, high = (low, b) if loss(float(np.exp(a))) < loss(float(np.exp(b))) else (a, high)
    best = float(np.exp((low + high) / 2))
    return best if loss(best) < loss(1.0) else 1.0
