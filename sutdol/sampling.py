"""Which answered images are worth a human look: the arms, and the probability of the random one.

    prediction -> Sampler.pick -> Picked(arms, inclusion probability, reason in words, priority)

`drawn` picks at random with a probability that is logged whether it picks or not; only that makes an honest estimate of
live accuracy possible later, and it cannot be reconstructed (facts: accuracy from uncertain-only labels is off by 29 to 51
points). Half of its probability is uniform, half goes with (1 - margin)^2. The draw depends on the content alone: a client
that retries draws the same. `unfamiliar` (OOD score over its threshold) and `empty` (a detector found nothing) pick at a target
rate that an online quantile holds through drift, so that a changed world does not flood the labelers.

The budget acts on `drawn` through its rate *before* the draw and never afterwards.

Source of the online quantile: Robbins & Monro 1951.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass

from sutdol.settings import Settings
from sutdol.types import Manifest, Prediction

UNIFORM_SHARE = 0.5
_MEMORY = 500
"""Answers over which the mean of (1 - margin)^2 is remembered."""
_STEP = 0.02


@dataclass(frozen=True)
class Picked:
    """What the arms say about one answer.

    Attributes:
        arms: those that picked it, `drawn` first; empty for nearly all answers.
        inclusion_probability: with which `drawn` picks such an answer, in [0, 1]; logged for every answer.
        reason: in words for the labeler; empty when nothing picked it.
        priority: in [0, 1], larger is labelled sooner; of `drawn` samples it depends on time alone.
    """

    arms: list[str]
    inclusion_probability: float
    reason: str
    priority: float


class OnlineQuantile:
    """Holds the share of picked scores at `target`, whatever their distribution does. Not thread-safe by itself.

    Counts how far the picks of the past are from the target and moves the threshold by a step in units of the scores'
    own spread, so a burst of strange images raises the threshold within a few dozen answers.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.threshold = -math.inf
        self._spread = 1.0

    def exceeds(self, score: float) -> bool:
        """Whether `score` is among the top `target` share, learning from it."""
        if self.threshold == -math.inf:
            self.threshold = score
        self._spread += _STEP * (abs(score - self.threshold) - self._spread)
        over = score > self.threshold
        step = max(self._spread, 1e-6) * _STEP / max(self.target, 0.01)
        self.threshold += step * ((1.0 if over else 0.0) - self.target)
        return over


class Sampler:
    """The arms of one model in one serving process; thread-safe."""

    def __init__(self, model: str, *, drawn_rate: float, other_rate: float) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._mean_square = 0.05
        self._drawn_rate = drawn_rate
        self._unfamiliar = OnlineQuantile(other_rate)
        self._empty = OnlineQuantile(other_rate)
        self._disagree = OnlineQuantile(other_rate)

    def set_rates(self, drawn_rate: float, other_rate: float) -> None:
        """Follow the budget; takes effect with the next answer."""
        with self._lock:
            self._drawn_rate = drawn_rate
            self._unfamiliar.target = self._empty.target = self._disagree.target = other_rate

    def pick(self, sample_id: str, prediction: Prediction, manifest: Manifest, *, at: float) -> Picked:
        """Ask every arm about one answer, given at `at` (epoch seconds)."""
        doubt = (1.0 - prediction.margin) ** 2
        with self._lock:
            probability = drawn_probability(doubt, rate=self._drawn_rate, mean_doubt=self._mean_square)
            self._mean_square += (doubt - self._mean_square) / _MEMORY
            arms, reasons = [], []
            if uniform(self._model, sample_id) < probability:
                arms.append("drawn")
                reasons.append(f"drawn at random (1 in {1 / probability:.0f})")
            if self._chosen(self._unfamiliar, sample_id, is_unfamiliar(prediction, manifest)):
                arms.append("unfamiliar")
                reasons.append(f"unfamiliar: {prediction.ood_score:.1f} standard deviations from what the model knows")
            if self._chosen(self._empty, sample_id, manifest.task == "detect" and not prediction.boxes):
                arms.append("empty")
                reasons.append("the detector found nothing here")
            urgent = freshness(at) if "drawn" in arms else priority(prediction, manifest)
        return Picked(arms, probability, "; ".join(reasons), urgent)

    def disagreed(self, sample_id: str) -> bool:
        """Whether this one, on which two versions differ, is among those that the budget allows to ask people about."""
        with self._lock:
            return self._chosen(self._disagree, sample_id, True)

    @staticmethod
    def _chosen(quantile: OnlineQuantile, sample_id: str, candidate: bool) -> bool:
        """Candidates first, at random among themselves: the strangest of all are mostly junk (noise, lens caps)."""
        return quantile.exceeds(uniform("arm", sample_id) + candidate) and candidate and quantile.target > 0


def drawn_probability(doubt: float, *, rate: float, mean_doubt: float) -> float:
    """Inclusion probability: `rate` on average, half of it uniform, half proportional to (1 - margin)^2.

    Args:
        doubt: (1 - margin)^2 of this answer, in [0, 1].
        rate: wanted share of answers, in [0, 1].
        mean_doubt: its mean over recent answers.

    >>> drawn_probability(0.2, rate=0.1, mean_doubt=0.2)
    0.1
    """
    relative = doubt / max(mean_doubt, 1e-3)
    return min(rate * (UNIFORM_SHARE + (1 - UNIFORM_SHARE) * relative), 1.0)


def uniform(salt: str, sample_id: str) -> float:
    """A number in [0, 1) that depends on the content alone: a retry draws the same."""
    digest = hashlib.blake2b(f"{salt}:{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def is_unfamiliar(prediction: Prediction, manifest: Manifest) -> bool:
    """Whether the image counts as a new kind of input; False where the model carries no statistics."""
    if prediction.ood_score is None or manifest.unfamiliar_at is None:
        return False
    return prediction.ood_score >= manifest.unfamiliar_at


def priority(prediction: Prediction, manifest: Manifest) -> float:
    """How valuable a label is, in [0, 1]: the doubt about the answer, or how strange the image is, whichever is more."""
    doubt = 1.0 - prediction.margin
    if not is_unfamiliar(prediction, manifest):
        return min(max(doubt, 0.0), 1.0)
    excess = (prediction.ood_score or 0.0) - (manifest.unfamiliar_at or 0.0)
    return min(max(doubt, 1.0 - 0.5 * math.exp(-excess / 4.0)), 1.0)


def freshness(at: float) -> float:
    """Priority of a `drawn` sample, in [0, 0.5): the newest first, whatever the model thinks of it.

    People rarely answer everything. If they took the doubtful ones first, those left over would be the easy ones, and the
    answers would no longer stand for the traffic, whatever probability was logged. Time is a fair order: what is left over
    is left over at random within its hour. The newest first, because a changed world is what has to be learned.

    Args:
        at: epoch seconds, below 5e9 (the year 2128).
    """
    return at / 1e10


def rates(settings: Settings, *, open_tasks: int, queued_today: int) -> tuple[float, float]:
    """(rate of `drawn`, target rate of each other arm) under the budget.

    Args:
        open_tasks: tasks that nobody has answered yet, of this model.
        queued_today: tasks queued in the last 24 hours, of this model.

    Both fall linearly to zero over the last fifth of the daily budget or of the open backlog.
    """
    left = min(1 - queued_today / max(settings.labels_per_day, 1), 1 - open_tasks / settings.max_open_tasks)
    factor = min(max(left / 0.2, 0.0), 1.0) if settings.labels_per_day else 0.0
    rate = settings.label_rate * factor
    return rate * settings.drawn_share, rate * (1 - settings.drawn_share)
