"""How sure, and how familiar: calibration and out-of-distribution scores, in numpy alone.

Two questions, kept apart because they have different answers (facts: a small classifier gives 98 % of pure-noise images a
confidence above .9, while feature distance finds all of them):

    "is it probably wrong?"   calibrated confidence and margin, from the scores
    "is it a new kind?"       Mahalanobis++ distance, from the features

One sign rule: larger uncertainty and larger OOD score mean "label it sooner".

Sources: temperature scaling, Guo et al. 2017 (arXiv:1706.04599); Mahalanobis++, Müller & Hein 2025 (arXiv:2505.18032);
shrinkage of the covariance, Ledoit & Wolf 2004.

Errors: InputError for wrong shapes, NaN, or nothing to fit on.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
_GOLDEN_RATIO = (5**0.5 - 1) / 2
MAX_DIMENSIONS = 256
"""Features are projected once, at export, to at most so many dimensions: one query costs one small matrix product."""


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
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        scaled = np.asarray(logits, np.float64) / temperature
        top = scaled.max(axis=1)
        return float(np.mean(np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top - scaled[rows, labels]))

    return _best_temperature(loss, n=len(labels))


def fit_binary_temperature(odds: NDArray[np.floating], hits: NDArray[np.bool_]) -> float:
    """As `fit_temperature`, for boxes: log-odds of each box's score (n,), and whether it is a real object (n,)."""
    if odds.shape != hits.shape or odds.ndim != 1:
        raise InputError(f"temperature: expected log-odds (n,) and hits (n,), found {odds.shape} and {hits.shape}")
    signs = np.where(hits, 1.0, -1.0)

    def loss(temperature: float) -> float:
        return float(np.mean(np.logaddexp(0.0, -signs * odds / temperature)))

    return _best_temperature(loss, n=len(odds))


def entropy(probabilities: NDArray[np.floating]) -> Float:
    """Shannon entropy along the last axis divided by its maximum, so in [0, 1]; larger is less sure.

    >>> float(entropy(np.array([0.5, 0.5])))
    1.0
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-12, 1.0)
    return np.asarray(-(p * np.log(p)).sum(axis=-1) / np.log(max(p.shape[-1], 2)))


@dataclass(frozen=True)
class OodStatistics:
    """What "familiar" means for one model version: a metric and the centres of its classes.

    Attributes:
        projection: (d, d') whitens features: in its image, Mahalanobis distance is Euclidean distance.
        centres: (k, d') projected class means; k = 1 where there are no classes (detectors).
        log_mean, log_std: of the log squared distance of held-out familiar images; scores are given in these units.
        normalise: features are scaled to length 1 first (Mahalanobis++; not for detectors).
    """

    projection: Float32
    centres: Float32
    log_mean: float
    log_std: float
    normalise: bool

    def score(self, features: NDArray[np.floating]) -> Float:
        """OOD scores (n,) of features (n, d); 0 is an average familiar image, larger is stranger."""
        points = _direction(features, self.normalise) @ self.projection - self._middle
        offsets, squares = self._offsets
        nearest = offsets[(squares - 2 * (points @ offsets.T)).argmin(axis=1)]
        squared = ((points - nearest).astype(np.float64) ** 2).sum(axis=1)
        return np.asarray((np.log(squared + 1e-12) - self.log_mean) / self.log_std)

    @cached_property
    def _middle(self) -> Float32:
        return np.asarray(self.centres.mean(axis=0), np.float32)

    @cached_property
    def _offsets(self) -> tuple[Float32, Float32]:
        """Centres seen from their middle, and their squared lengths: the nearest one then costs one matrix product."""
        offsets = np.ascontiguousarray(self.centres - self._middle, np.float32)
        return offsets, np.asarray((offsets**2).sum(axis=1), np.float32)

    def to_bytes(self) -> bytes:
        """The file `scoring.npz`."""
        buffer = io.BytesIO()
        numbers = np.array([self.log_mean, self.log_std, float(self.normalise)])
        np.savez(buffer, projection=self.projection, centres=self.centres, numbers=numbers)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> OodStatistics:
        """Read `scoring.npz`; never unpickles.

        Raises:
            InputError: not such a file.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                log_mean, log_std, normalise = (float(v) for v in arrays["numbers"])
                return OodStatistics(arrays["projection"], arrays["centres"], log_mean, log_std, bool(normalise))
        except (ValueError, KeyError, OSError) as error:
            raise InputError(f"scoring.npz: {error}") from error


def fit_ood(
    features: NDArray[np.floating],
    labels: NDArray[np.integer] | None,
    *,
    held_out: NDArray[np.floating],
    normalise: bool,
) -> OodStatistics:
    """Learn what is familiar from training features; scale by features the model was not trained on.

    Args:
        features: (n, d) of training images, n >= 2.
        labels: class index of each (n,), or None for one common centre.
        held_out: (m, d) of familiar images outside training, m >= 2; they set the units, because training images lie
            closer to their own centres than any other image does.
        normalise: scale features to length 1 first.

    Raises:
        InputError: too few images, wrong shapes, or values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2 or held_out.ndim != 2 or len(held_out) < 2:
        raise InputError(f"OOD statistics: expected at least 2 x 2 images, found {features.shape} and {held_out.shape}")
    if not (np.isfinite(features).all() and np.isfinite(held_out).all()):
        raise InputError("OOD statistics: expected finite features")
    x = _direction(features, normalise).astype(np.float64)
    groups = np.zeros(len(x), np.int64) if labels is None else np.asarray(labels)
    present = np.unique(groups)
    centres = np.stack([x[groups == c].mean(axis=0) for c in present])
    residuals = x - centres[np.searchsorted(present, groups)]
    values, vectors = np.linalg.eigh(_shrunk_covariance(residuals))
    order = np.argsort(values)  # small variances carry the signal: what never varies among familiar images
    keep = order[: min(MAX_DIMENSIONS, len(order))]
    projection = (vectors[:, keep] / np.sqrt(values[keep])).astype(np.float32)
    projected = (centres @ projection).astype(np.float32)
    logs = np.log(_squared_distances(_direction(held_out, normalise) @ projection, projected).min(axis=1) + 1e-12)
    return OodStatistics(projection, projected, float(logs.mean()), float(max(logs.std(), 1e-3)), normalise)


def _direction(features: NDArray[np.floating], normalise: bool) -> Float32:
    x = np.asarray(features, np.float32)
    if not normalise:
        return x
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def _squared_distances(points: NDArray[np.floating], centres: NDArray[np.floating]) -> Float:
    difference = points[:, None, :] - centres[None, :, :]
    return np.asarray(np.einsum("nkd,nkd->nk", difference, difference), np.float64)


def _shrunk_covariance(residuals: Float) -> Float:
    """Ledoit and Wolf's estimate: the sample covariance drawn towards a multiple of the identity, as far as noise demands."""
    n, d = residuals.shape
    sample = residuals.T @ residuals / n
    level = float(np.trace(sample)) / d
    if level <= 0:
        return np.eye(d)
    distance = float(((sample - level * np.eye(d)) ** 2).sum()) / d
    squares = (residuals**2).sum(axis=1)
    noise = (float((squares**2).sum()) / n - float((sample**2).sum())) / (n * d)
    weight = 1.0 if distance <= 0 else min(max(noise / distance, 1e-4), 1.0)
    return np.asarray((1 - weight) * sample + weight * level * np.eye(d))


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
