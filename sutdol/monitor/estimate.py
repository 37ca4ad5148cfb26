"""How often the live model is right, from a few labels drawn by chance: an estimate with an honest interval. Pure.

    all answers of a window (belief, familiarity, inclusion probability, multiplicity) + outcomes of the drawn and labelled
       -> outcome model (ridge logistic on belief, its rank, and familiarity; fitted on the labels)
       -> AIPW: mean of the model over all answers + weighted mean of its errors on the labelled ones
       -> variance = the largest of: sample, outcome model's own, belief's own -> Wilson-shaped interval

The model's own confidence may be wrong by any amount: the second term removes what is wrong on average, because every
labelled answer stands for 1 / probability others. It only decides how wide the interval is. Familiarity is in it because a
changed world shows there, not in the confidence. The sample variance alone is too small whenever the few labels happen to
hold no error; the two others say what labels that were not drawn may still hide (a belief closer to certainty than one in n
labels counts as one in n).

Sources: Robins, Rotnitzky & Zhao 1994 (AIPW); Wilson 1927; effective size as in Korn & Graubard 1998.

Errors: InputError for shapes that do not fit, NaN, probabilities outside (0, 1], outcomes outside [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError
from sutdol.scoring import log_odds, sigmoid

Float = NDArray[np.float64]
ENOUGH = 30
"""Labels without which no estimate is shown."""
Z = 1.959963984540054
"""Of a 95 % interval."""
_PRIOR = np.array([0.25, 1.0, 0.25, 0.5])
"""Ridge weights, in labels, that hold the outcome model at "the confidence is right" until labels say otherwise."""
_SURE = 1e-4
_UNFAMILIAR_RANGE = (-2.0, 8.0)


@dataclass(frozen=True)
class Answers:
    """All answers of a window, one entry per content.

    Attributes:
        belief: the model's calibrated chance that the answer is right (n,), in [0, 1].
        ood: OOD scores (n,); NaN where the model carries no statistics.
        probability: with which each was drawn and answered (n,), in (0, 1].
        weight: how often the content came (n,), > 0.
    """

    belief: Float
    ood: Float
    probability: Float
    weight: Float

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.belief, self.ood, self.probability, self.weight)}
        if len(shapes) != 1 or self.belief.ndim != 1:
            raise InputError(f"live accuracy: expected four arrays of one length, found shapes {sorted(shapes)}")
        if not (np.isfinite(self.belief).all() and np.isfinite(self.weight).all() and (self.weight > 0).all()):
            raise InputError("live accuracy: expected finite beliefs and weights above 0")
        if self.belief.size and not (self.belief.min() >= 0 and self.belief.max() <= 1):
            raise InputError("live accuracy: expected beliefs in [0, 1]")
        if not ((self.probability > 0) & (self.probability <= 1)).all():
            raise InputError("live accuracy: expected inclusion probabilities in (0, 1]")

    def __len__(self) -> int:
        return len(self.belief)


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its 95 % interval; `accuracy`, `low` and `high` are None when there are too few labels.

    Attributes:
        labels: how many it rests on.
        needed: how many more labels are needed before anything is shown; 0 when it is shown.
        missing_width: the part of the interval that comes from drawn samples nobody could label.
        worth: how many plain random labels would be as good as these.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    labels: int
    needed: int
    answers: int
    missing_width: float = 0.0
    worth: float | None = None


def live_accuracy(
    answers: Answers,
    labelled: NDArray[np.integer],
    right: NDArray[np.floating],
    *,
    missing: NDArray[np.integer] | None = None,
    enough: int = ENOUGH,
    domain: NDArray[np.bool_] | None = None,
) -> Estimate:
    """The share of right answers among all of them, or among those of `domain`.

    Args:
        labelled: places (m,) in `answers` that were drawn and labelled.
        right: whether each of these is right (m,), 0 or 1.
        missing: places that were drawn but that nobody could label: once all of them wrong, once all right.
        enough: labels (inside the domain) below which the estimate is refused.
        domain: (n,) which answers are meant; the outcome model is fitted on all labels anyway.

    Raises:
        InputError: see the top of this file.
    """
    places, outcomes = np.asarray(labelled, np.int64), np.asarray(right, np.float64)
    lost = np.asarray([] if missing is None else missing, np.int64)
    if places.shape != outcomes.shape or places.ndim != 1:
        raise InputError(f"live accuracy: expected places and outcomes (m,), found {places.shape}, {outcomes.shape}")
    if outcomes.size and not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise InputError("live accuracy: expected outcomes in [0, 1]")
    inside = np.ones(len(answers), bool) if domain is None else np.asarray(domain, bool)
    counted = int(inside[places].sum())
    if counted < max(enough, 1):
        return Estimate(None, None, None, counted, max(enough, 1) - counted, int(inside.sum()))
    lost = lost[inside[lost]]
    low, high, middle, worth = _interval(answers, places, outcomes, inside)
    if not len(lost):
        return Estimate(middle, low, high, counted, 0, int(inside.sum()), worth=worth)
    everything = np.concatenate([places, lost])
    worst = _interval(answers, everything, np.concatenate([outcomes, np.zeros(len(lost))]), inside)
    best = _interval(answers, everything, np.concatenate([outcomes, np.ones(len(lost))]), inside)
    lowest, highest = min(worst[0], low), max(best[1], high)
    widened = (highest - lowest) - (high - low)
    return Estimate(middle, lowest, highest, counted, 0, int(inside.sum()), widened, worth)


def outcome_model(answers: Answers, labelled: NDArray[np.int64], right: Float) -> Float:
    """The chance that each answer is right (n,), as the labels correct the model's own belief."""
    columns = _columns(answers)
    x, weight = columns[labelled], (answers.weight / answers.probability)[labelled]
    coefficients = _ridge_logistic(x, right, weight / weight.mean())
    return sigmoid(columns @ coefficients)


def wilson_shaped(share: float, variance: float, labels: int) -> tuple[float, float]:
    """Wilson's interval for an estimate with this variance, by the size that plain random labels of it would need.

    >>> low, high = wilson_shaped(0.9, 0.9 * 0.1 / 100, 100)
    >>> round(low, 3), round(high, 3)
    (0.831, 0.943)
    """
    centre = min(max(share, 0.0), 1.0)
    shrunk = (centre * labels + 2) / (labels + 4)
    n = shrunk * (1 - shrunk) / max(variance, 1e-12)
    middle = (centre + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(centre * (1 - centre) / n + Z * Z / (4 * n * n))
    return max(0.0, min(middle - half, centre)), min(1.0, max(middle + half, centre))


def _interval(
    answers: Answers, labelled: NDArray[np.int64], right: Float, inside: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    """(low, high, estimate, worth in plain random labels)."""
    chances = outcome_model(answers, labelled, right)
    weight = np.where(inside, answers.weight, 0.0)
    total = float(weight.sum())
    rest = (1 - answers.probability) / answers.probability
    errors = weight[labelled] * (right - chances[labelled]) / answers.probability[labelled]
    share = float((weight * chances).sum() + errors.sum()) / total
    n = int(inside[labelled].sum())
    believed = np.clip(answers.belief, min(1 / n, 0.5), max(1 - 1 / n, 0.5))
    variance = max(
        float(((1 - answers.probability[labelled]) * errors**2).sum()),
        float((rest * weight**2 * chances * (1 - chances)).sum()),
        float((rest * weight**2 * believed * (1 - believed)).sum()),
    ) / (total * total)
    low, high = wilson_shaped(share, variance, n)
    centre = min(max(share, 0.0), 1.0)
    worth = max(centre * (1 - centre), 0.25 / n) / variance if variance > 0 else math.inf
    return low, high, centre, worth


def _columns(answers: Answers) -> Float:
    """(n, 4): one, log-odds of the belief, familiarity, rank of the belief.

    A missing OOD score says nothing. The rank is there for models that are certain of everything: where all log-odds are
    at their limit, the order still tells the better answers from the worse.
    """
    odds = log_odds(np.clip(answers.belief, _SURE, 1 - _SURE))
    strange = np.clip(np.nan_to_num(answers.ood, nan=0.0), *_UNFAMILIAR_RANGE) / 2
    ordered = np.sort(answers.belief)
    ranks = np.searchsorted(ordered, answers.belief, "left") + np.searchsorted(ordered, answers.belief, "right")
    return np.stack([np.ones_like(odds), odds, strange, ranks / max(len(ordered), 1) - 1], axis=1)


def _ridge_logistic(x: Float, y: Float, weight: Float) -> Float:
    """Weighted logistic regression, held at "the belief is right" by _PRIOR; Newton's method with halved steps."""
    start = np.array([0.0, 1.0, 0.0, 0.0])
    b = start.copy()

    def loss(b: Float) -> float:
        z = x @ b
        return float((weight * (np.logaddexp(0.0, z) - y * z)).sum() + 0.5 * (_PRIOR * (b - start) ** 2).sum())

    current = loss(b)
    for _ in range(50):
        p = sigmoid(x @ b)
        slope = x.T @ (weight * (y - p)) - _PRIOR * (b - start)
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(_PRIOR)
        step = np.linalg.solve(curvature, slope)
        size = 1.0
        while (proposed := loss(b + size * step)) > current and size > 1e-4:
            size /= 2
        if proposed > current:
            break
        b, gain, current = b + size * step, current - proposed, proposed
        if gain < 1e-3:
            break
    return b
