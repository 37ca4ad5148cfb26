"""How far an image lies from what a model version knows, in numpy alone: the score behind "unfamiliar".

    features (n, d) -> length 1 -> minus the mean -> projected to <= 256 dimensions -> log distance to the nearest class
                                                                                     -> log distance to the nearest image
    each in standard deviations of held-out familiar images -> sum -> score (+ what the picture itself has beyond 2)

The first is Mahalanobis++ (the metric in which a class varies alike in all directions), the second a bank of at most 10,000
training images. They fail on different images: the metric where a class has several shapes, the bank where images are few.

A projection keeps the directions in which images differ most; what it cuts off is not lost, its energy counts with its own
small variance (as in probabilistic PCA), because what never varies among familiar images is what tells strange ones.

Where a model exports them, its last features describe the picture itself: brightness, contrast, grain. They say nothing about
a new kind of object and everything about a blank frame, so they count only beyond two standard deviations.

Sources: Mahalanobis++, Müller & Hein 2025 (arXiv:2505.18032); deep nearest neighbours, Sun et al. 2022 (arXiv:2204.06507);
shrinkage of the covariance, Ledoit & Wolf 2004; probabilistic PCA, Tipping & Bishop 1999.

Errors: InputError for wrong shapes, NaN, or nothing to learn from.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
MAX_DIMENSIONS = 256
"""Features are projected once, at export, to at most so many dimensions: one query costs one small matrix product."""
MAX_BANK = 10_000
MAX_BYTES = 16_000_000
"""Of one model's statistics in memory; a larger bank is thinned at random."""
DUPLICATE_SHARE = 0.01
LOW_FREE = 2.0
"""Standard deviations that the picture itself may be off before it counts."""
_TINY = 1e-12
_FEW = 4
_HEAD = 64
_LARGE = 500_000
"""Numbers in a bank from which on it is searched in its last _HEAD columns first: about what a processor's cache holds."""


@dataclass(frozen=True)
class OodStatistics:
    """What "familiar" means for one model version.

    Attributes:
        mean: (d,) of training features.
        basis: (d, m) orthonormal columns, or None where d <= MAX_DIMENSIONS and nothing is cut off.
        whitening: (m, m) makes Mahalanobis distance Euclidean.
        centres: (k, m) whitened class means; k = 1 where there are no classes (detectors).
        tail: variance of each direction that `basis` cuts off; 0 when nothing is.
        bank: (b, m) projected training features; b = 0 for none.
        scale: (c + 1, 2) mean and standard deviation, over held-out familiar images, of each log distance, and of the sum of
            those that are not `low`.
        duplicate_at: distance of two projected features from which on they show another picture.
        normalise: features are scaled to length 1 first (not for detectors).
        low: the same for the last features, those of the picture itself, without bank and basis; None where there are none.
    """

    mean: Float32
    basis: Float32 | None
    whitening: Float32
    centres: Float32
    tail: float
    bank: Float32
    scale: Float
    duplicate_at: float
    normalise: bool
    low: OodStatistics | None = None

    @property
    def dimensions(self) -> int:
        """Of the features that are expected, `low` ones included."""
        return len(self.mean) + (len(self.low.mean) if self.low else 0)

    def project(self, features: NDArray[np.floating]) -> Float32:
        """(n, d) -> (n, m): what is compared with the bank, kept for picked samples and clustered."""
        return self._split(features)[0]

    def distances(self, features: NDArray[np.floating]) -> Float:
        """Log squared distances (n, c): to the nearest class; to the nearest image of the bank; of the picture itself.

        The last two only where there is such a thing.
        """
        projected, rest = self._split(features)
        to_class = _nearest(projected @ self.whitening, self.centres, self._centre_squares)
        if self.tail > 0:
            to_class = to_class + rest / self.tail
        columns = [to_class]
        if len(self.bank):
            columns.append(self._to_bank(projected) + rest)
        logs = np.log(np.stack(columns, axis=1) + _TINY)
        if self.low is not None:
            logs = np.concatenate([logs, self.low.distances(features[:, len(self.mean) :])], axis=1)
        return np.asarray(logs, np.float64)

    def standardised(self, distances: Float) -> tuple[Float, Float]:
        """(each distance (n, c), the score (n,)) in standard deviations of familiar images."""
        each = (distances - self.scale[:-1, 0]) / self.scale[:-1, 1]
        score = (self._sum(each) - self.scale[-1, 0]) / self.scale[-1, 1]
        if self.low is not None:
            score = score + np.maximum(each[:, -1] - LOW_FREE, 0.0)
        return each, np.asarray(score)

    def strangeness(self, features: NDArray[np.floating]) -> tuple[Float, Float]:
        """(each distance (n, c), the score (n,)) of features (n, d), as `standardised`."""
        return self.standardised(self.distances(features))

    def score(self, features: NDArray[np.floating]) -> Float:
        """OOD scores (n,) of features (n, d); 0 is an average familiar image, larger is stranger."""
        return self.strangeness(features)[1]

    def scaled_by(self, familiar: Float) -> OodStatistics:
        """The same statistics in the units of these log distances (n, c) of held-out familiar images, n >= 2."""
        each = np.stack([familiar.mean(axis=0), np.maximum(familiar.std(axis=0), 1e-3)], axis=1)
        total = self._sum((familiar - each[:, 0]) / each[:, 1])
        both = [float(total.mean()), float(max(total.std(), 1e-3))]
        return dataclasses.replace(self, scale=np.concatenate([each, [both]]))

    def to_bytes(self) -> bytes:
        """The file `scoring.npz`."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        if self.low is not None:
            arrays |= {f"low_{name}": getattr(self.low, name) for name in _ARRAYS if name not in ("basis", "bank")}
        arrays["numbers"] = np.array([self.tail, self.duplicate_at, float(self.normalise)])
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> OodStatistics:
        """Read `scoring.npz`; never unpickles.

        Raises:
            InputError: not such a file.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                tail, duplicate_at, normalise = (float(v) for v in arrays["numbers"])
                given = {name: arrays[name] for name in _ARRAYS if name in arrays}
                basis = given.get("basis")  # the directions one after the other: so it lies best in memory
                given["basis"] = None if basis is None else np.ascontiguousarray(basis.T).T
                low = None
                if "low_mean" in arrays:
                    parts = {name: arrays[f"low_{name}"] for name in _ARRAYS if f"low_{name}" in arrays}
                    bank = np.zeros((0, len(parts["mean"])), np.float32)
                    low = OodStatistics(basis=None, tail=0.0, bank=bank, duplicate_at=0.0, normalise=False, **parts)
                return OodStatistics(tail=tail, duplicate_at=duplicate_at, normalise=bool(normalise), low=low, **given)
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise InputError(f"scoring.npz: {error}") from error

    @cached_property
    def _centre_squares(self) -> Float32:
        return _squared_length(self.centres)

    @cached_property
    def _bank_squares(self) -> Float32:
        return _squared_length(self.bank)

    @cached_property
    def _head(self) -> tuple[Float32, Float32] | None:
        """The last _HEAD columns of a large bank, where a projection has most of the variance, and their squared lengths."""
        if self.bank.size < _LARGE or self.bank.shape[1] <= 2 * _HEAD:
            return None
        head = np.ascontiguousarray(self.bank[:, -_HEAD:])
        return head, _squared_length(head)

    def _to_bank(self, points: Float32) -> Float32:
        """Squared distance of each point (n, m) to the nearest image of the bank.

        A large bank does not fit a processor's cache, so one point costs what reading the bank costs. A few points are
        compared in some columns first: no image can be nearer than it is there.
        """
        if self._head is None or len(points) >= _FEW:
            return _nearest(points, self.bank, self._bank_squares)
        return np.concatenate([self._to_bank_by_head(point[None], *self._head) for point in points])

    def _to_bank_by_head(self, point: Float32, head: Float32, squares: Float32) -> Float32:
        own = point[0, -_HEAD:]
        at_least = squares + own @ own - 2 * (head @ own)
        found = _squared_length(self.bank[at_least.argmin()] - point)
        rounding = 1e-5 * (found + own @ own + squares.max())
        left = np.flatnonzero(at_least <= found + rounding)
        if len(left) > len(head) // 20:  # a strange image is equally far from many
            return _nearest(point, self.bank, self._bank_squares)
        return np.asarray(_squared_length(self.bank[left] - point).min(keepdims=True))

    def _sum(self, each: Float) -> Float:
        return np.asarray((each[:, :-1] if self.low is not None else each).sum(axis=1))

    def _split(self, features: NDArray[np.floating]) -> tuple[Float32, Float32]:
        """(projected (n, m), squared length of what the projection cuts off (n,))."""
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise InputError(f"OOD score: expected features (n, {self.dimensions}), found {features.shape}")
        x = _direction(features[:, : len(self.mean)], self.normalise) - self.mean
        if self.basis is None:
            return x, np.zeros(len(x), np.float32)
        projected = np.ascontiguousarray(_products(self.basis.T, x).T)
        return projected, np.maximum(_squared_length(x) - _squared_length(projected), 0.0)


_ARRAYS = ("mean", "basis", "whitening", "centres", "bank", "scale")


def fit_ood(
    features: NDArray[np.floating],
    labels: NDArray[np.integer] | None,
    *,
    held_out: NDArray[np.floating],
    normalise: bool,
    most: int = MAX_BANK,
    low_level: int = 0,
) -> OodStatistics:
    """Learn what is familiar from training features; scale by features the model was not trained on.

    Args:
        held_out: (m, d) of familiar images outside training, m >= 2; they set the units, because training images lie
            closer to their own centres than any other image does.

    For the others see `learn`.
    """
    if held_out.ndim != 2 or len(held_out) < 2 or not np.isfinite(held_out).all():
        raise InputError(f"OOD statistics: expected at least 2 finite held-out features, found {held_out.shape}")
    statistics = learn(features, labels, normalise=normalise, most=most, low_level=low_level)
    return statistics.scaled_by(statistics.distances(held_out))


def learn(
    features: NDArray[np.floating],
    labels: NDArray[np.integer] | None,
    *,
    normalise: bool,
    most: int = MAX_BANK,
    low_level: int = 0,
) -> OodStatistics:
    """As `fit_ood`, in units of 1: the caller knows better what they should be, and calls `scaled_by`.

    Args:
        features: (n, d) of training images, n >= 2.
        labels: class index of each (n,), or None for one common centre.
        normalise: scale features to length 1 first.
        most: images in the bank; 0 for none.
        low_level: the last so many features describe the picture itself.

    Raises:
        InputError: too few images, wrong shapes, or values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2 or features.shape[1] <= low_level:
        raise InputError(f"OOD statistics: expected at least 2 images (n, d), found {features.shape}")
    if labels is not None and labels.shape != (len(features),):
        raise InputError(f"OOD statistics: expected {len(features)} labels, found {labels.shape}")
    if not np.isfinite(features).all():
        raise InputError("OOD statistics: expected finite features")
    deep = features[:, : features.shape[1] - low_level]
    low = learn(features[:, deep.shape[1] :], None, normalise=False, most=0) if low_level else None
    x = _direction(deep, normalise).astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    groups = np.zeros(len(x), np.int64) if labels is None else np.asarray(labels)
    present, member = np.unique(groups, return_inverse=True)
    centres = np.stack([x[member == c].mean(axis=0) for c in range(len(present))])
    covariance = _shrunk_covariance(x - centres[member])
    basis, tail = None, 0.0
    if x.shape[1] > MAX_DIMENSIONS:
        _, vectors = np.linalg.eigh(x.T @ x)
        basis = vectors[:, -MAX_DIMENSIONS:]
        kept = basis.T @ covariance @ basis
        tail = float((np.trace(covariance) - np.trace(kept)) / (x.shape[1] - MAX_DIMENSIONS))
        x, centres, covariance = x @ basis, centres @ basis, kept
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, _TINY))
    bank = _thinned(x, most)
    return OodStatistics(
        mean=mean.astype(np.float32),
        basis=None if basis is None else np.ascontiguousarray(basis.T, np.float32).T,
        whitening=whitening.astype(np.float32),
        centres=(centres @ whitening).astype(np.float32),
        tail=tail,
        bank=bank.astype(np.float32),
        scale=np.array([[0.0, 1.0]] * (2 + bool(len(bank)) + bool(low))),
        duplicate_at=_duplicate_distance(x),
        normalise=normalise,
        low=low,
    )


def pack(statistics: OodStatistics | None, features: NDArray[np.floating]) -> bytes | None:
    """Features (d,) of one image as the log keeps them: projected, float16; None without a projection to compare them in."""
    if statistics is None:
        return None
    return bytes(statistics.project(features[None])[0].astype(np.float16).tobytes())


def unpack(data: bytes | None) -> Float32 | None:
    """The inverse of `pack`: (m,), or None."""
    return None if data is None else np.frombuffer(data, np.float16).astype(np.float32)


def _direction(features: NDArray[np.floating], normalise: bool) -> Float32:
    x = np.asarray(features, np.float32)
    if not normalise:
        return x
    return np.asarray(x / np.maximum(np.sqrt(_squared_length(x)), _TINY)[:, None])


def _nearest(points: Float32, others: Float32, squares: Float32) -> Float32:
    """Squared distance of each point (n, m) to the nearest of `others` (k, m), whose squared lengths are `squares`.

    The nearest is found by one matrix product; its distance is then computed from the difference, which does not cancel.
    """
    best = (squares[:, None] - 2 * _products(others, points)).argmin(axis=0)
    return _squared_length(points - others[best])


def _products(matrix: Float32, points: Float32) -> Float32:
    """`matrix` (k, m) times each point (n, m): (k, n). A few points cost least one by one, eight together cost three."""
    if 0 < len(points) < _FEW:
        return np.stack([matrix @ point for point in points], axis=1)
    return np.asarray(matrix @ points.T)


def _squared_length(rows: Float32) -> Float32:
    return np.asarray(np.einsum("nd,nd->n", rows, rows))


def _thinned(x: Float, most: int) -> Float:
    room = min(most, MAX_BANK, int((MAX_BYTES / 4 - 8 * MAX_DIMENSIONS**2) // (x.shape[1] + _HEAD)))
    if len(x) <= room:
        return x
    return x[np.random.default_rng(0).choice(len(x), room, replace=False)]


def _duplicate_distance(x: Float) -> float:
    """Half the distance that all but one in a hundred images keep from their nearest neighbour."""
    some = _thinned(x, 1000).astype(np.float32)
    squared = (some**2).sum(axis=1)
    distances = squared[:, None] + squared[None, :] - 2 * some @ some.T
    np.fill_diagonal(distances, np.inf)
    return float(0.5 * np.sqrt(np.quantile(np.maximum(distances.min(axis=1), 0.0), DUPLICATE_SHARE)))


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
