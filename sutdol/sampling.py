"""Which answered images are worth a human look: the arms, and the probability of the random one.

    prediction -> Sampler.pick -> Picked(arms, inclusion probability, reason in words, priority)

`drawn` picks at random with a probability that is logged whether it picks or not; only that makes an honest estimate of
live accuracy possible later, and it cannot be reconstructed (facts: accuracy from uncertain-only labels is off by 29 to 51
points). Half of its probability is uniform, half goes with (1 - margin)^2. The draw depends on the content alone: a client
that retries draws the same.

The other arms are lines of ARMS, asked in their order; the first that wants a sample has it. Each holds a target rate by an
online quantile, through drift and across retrains, so that a changed world does not flood the labelers. The rates add up: an
arm that finds nothing leaves its share to those after it, so the whole stays what the budget says.

`disagree` has no line there: that two versions differ, or that a caller knows better, is known after the answer.

The budget acts on `drawn` through its rate *before* the draw and never afterwards.

Source of the online quantile: Robbins & Monro 1951.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sutdol.errors import SetupError
from sutdol.focus import Focus, Spot
from sutdol.settings import Settings
from sutdol.types import Manifest, Prediction

UNIFORM_SHARE = 0.5
_MEMORY = 500
"""Answers over which the mean of (1 - margin)^2 is remembered."""
_STEP = 0.02
_PAY_BACK = 1_000
"""Answers whose picks a debt is compared with."""


@dataclass(frozen=True)
class Picked:
    """What the arms say about one answer.

    Attributes:
        arms: those that picked it, `drawn` first; empty for nearly all answers.
        inclusion_probability: with which `drawn` picks such an answer, in [0, 1]; logged for every answer.
        reason: in words for the labeler; empty when nothing picked it.
        priority: in [0, 1], larger is labelled sooner; of `drawn` samples it depends on time alone.
        collection_id: the collection that it was picked for, if any.
    """

    arms: list[str]
    inclusion_probability: float
    reason: str
    priority: float
    collection_id: str | None = None


@dataclass(frozen=True)
class Seen:
    """What an arm may know about one answer.

    Attributes:
        focused: there is anything that the arm `weak` looks for.
        spot, spot_score: what of the focus it fits, and how well; see `focus.Focus.look`.
    """

    sample_id: str
    prediction: Prediction
    manifest: Manifest
    focused: bool = False
    spot: Spot | None = None
    spot_score: float = 0.0

    @property
    def chance(self) -> float:
        """A number in [0, 1) that depends on the content alone; orders candidates that no score can tell apart."""
        return uniform("arm", self.sample_id)


@dataclass(frozen=True)
class ArmKind:
    """A line of ARMS: a score per answer (larger is picked sooner, None is no candidate), and its reason in words.

    An arm that does not apply to such answers at all has no share.
    """

    score: Callable[[Seen], float | None]
    reason: Callable[[Seen], str]
    applies: Callable[[Seen], bool] = lambda seen: True


def unfamiliar(seen: Seen) -> float | None:
    """Candidates at random among themselves: the strangest of all are mostly junk (noise, lens caps)."""
    return seen.chance if is_unfamiliar(seen.prediction, seen.manifest) else None


def empty(seen: Seen) -> float | None:
    """A detector found nothing: missed objects look exactly like this."""
    return seen.chance if seen.manifest.task == "detect" and not seen.prediction.boxes else None


def weak(seen: Seen) -> float | None:
    """It looks like a weak spot of the last evaluation, or like what people asked for."""
    return seen.spot_score if seen.spot is not None else None


def doubt(seen: Seen) -> float | None:
    """1 - margin; empty answers of a detector have their own arm."""
    if seen.manifest.task == "detect" and not seen.prediction.boxes:
        return None
    return 1.0 - seen.prediction.margin


ARMS: dict[str, ArmKind] = {
    "unfamiliar": ArmKind(
        unfamiliar, lambda s: f"unfamiliar: {s.prediction.ood_score:.1f} standard deviations from what the model knows"
    ),
    "empty": ArmKind(empty, lambda s: "the detector found nothing here", lambda s: s.manifest.task == "detect"),
    "weak": ArmKind(weak, lambda s: s.spot.reason if s.spot else "", lambda s: s.focused),
    "diverse": ArmKind(doubt, lambda s: f"uncertain: {_margin(s)}; one of the most different ones is shown"),
    "margin": ArmKind(doubt, lambda s: f"uncertain: {_margin(s)}"),
}
"""`margin` and `diverse` differ in the window: by doubt alone, or spread over what the doubtful images look like."""


class OnlineQuantile:
    """Holds the share of picks at `target`, whatever the distribution of the scores does. Not thread-safe by itself.

    Counts how far the picks of the past are from the target and moves the threshold by a step in units of the scores'
    own spread, so a burst of strange images raises the threshold within a few dozen answers. What such a burst took too much is
    paid back over the next thousands, by at most a fifth of the target.

    Attributes:
        floor: the threshold never falls below; the lowest score that there is.
    """

    def __init__(self, target: float, *, floor: float = -math.inf) -> None:
        self.target = target
        self.floor = floor
        self.threshold = -math.inf
        self._spread = 1.0
        self._debt = 0.0

    def above(self, score: float | None) -> bool:
        """Whether such a score would be picked now."""
        return score is not None and self.target > 0 and score > self.threshold

    def learn(self, score: float | None, *, picked: bool) -> None:
        """One more answer went by; `score` None was no candidate. `picked` says whether it counts against the target."""
        if score is not None:
            if self.threshold == -math.inf:
                self.threshold = score
            self._spread += _STEP * (abs(score - self.threshold) - self._spread)
        step = max(self._spread, 1e-6) * _STEP / max(self.target, 0.01)
        taken = 1.0 if picked else 0.0
        self._debt = max(self._debt + taken - self.target, 0.0)
        target = self.target * (1 - min(self._debt / (_PAY_BACK * max(self.target, 1e-6)), 0.2))
        self.threshold = max(self.threshold + step * (taken - target), self.floor)

    def exceeds(self, score: float) -> bool:
        """Whether `score` is among the top `target` share, learning from it."""
        if self.threshold == -math.inf:
            self.threshold = score
        over = self.above(score)
        self.learn(score, picked=over)
        return over


class Sampler:
    """The arms of one model in one serving process; thread-safe.

    Args:
        drawn_rate: wanted share of answers that `drawn` picks.
        other_rate: wanted share that all others pick together.
        arms: names of ARMS, first asked first; each gets an equal share and what those before it leave.
    """

    def __init__(
        self, model: str, *, drawn_rate: float, other_rate: float, arms: Sequence[str] = ("unfamiliar", "empty")
    ) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._mean_doubt = 0.05
        self._drawn_rate, self._other_rate = drawn_rate, other_rate
        self._arms = [(name, ARMS[name], OnlineQuantile(0.0, floor=0.0)) for name in arms]
        self._disagree = OnlineQuantile(other_rate, floor=0.0)
        self._focus = Focus()

    def set_rates(self, drawn_rate: float, other_rate: float) -> None:
        """Follow the budget; takes effect with the next answer."""
        with self._lock:
            self._drawn_rate, self._other_rate = drawn_rate, other_rate
            self._disagree.target = other_rate

    def set_focus(self, focus: Focus) -> None:
        """What the arm `weak` looks for; takes effect with the next answer."""
        with self._lock:
            self._focus = focus

    def pick(
        self,
        sample_id: str,
        prediction: Prediction,
        manifest: Manifest,
        *,
        at: float,
    ) -> Picked:
        """Ask every arm about one answer, given at `at` (epoch seconds)."""
        doubt_squared = (1.0 - prediction.margin) ** 2
        with self._lock:
            score, spot = self._focus.look(prediction)
            seen = Seen(sample_id, prediction, manifest, bool(self._focus.spots), spot, score)
            probability = drawn_probability(doubt_squared, rate=self._drawn_rate, mean_doubt=self._mean_doubt)
            self._mean_doubt += (doubt_squared - self._mean_doubt) / _MEMORY
            drawn = uniform(self._model, sample_id) < probability
            arms = ["drawn"] if drawn else []
            reasons = [f"drawn at random (1 in {1 / probability:.0f})"] if drawn else []
            arm = self._ask(seen, drawn=drawn)
            if arm is not None:
                arms.append(arm)
                reasons.append(ARMS[arm].reason(seen))
        urgent = freshness(at) if drawn else priority(prediction, manifest)
        collection = spot.collection_id if spot is not None and arm == "weak" else None
        return Picked(arms, probability, "; ".join(reasons), urgent, collection)

    def disagreed(self, sample_id: str) -> bool:
        """Whether this one, on which two versions differ, is among those that the budget allows to ask people about."""
        with self._lock:
            return self._disagree.target > 0 and self._disagree.exceeds(uniform("arm", sample_id))

    def _ask(self, seen: Seen, *, drawn: bool) -> str | None:
        """The first arm that wants it. What is drawn anyway costs the arm nothing.

        Each quantile counts the picks of its own arm and of all before it against the sum of their shares.
        """
        chosen: str | None = None
        asked = [arm for arm in self._arms if arm[1].applies(seen)]
        for i, (name, kind, quantile) in enumerate(asked, 1):
            quantile.target = self._other_rate * i / len(asked)
            score = kind.score(seen)
            if chosen is None and quantile.above(score):
                chosen = name
            quantile.learn(score, picked=chosen is not None and not drawn)
        return chosen


def arms_of(settings: Settings) -> list[str]:
    """The arms beside `drawn`, in the order in which they are asked.

    Raises:
        SetupError: a name that is none.
    """
    names = [name.strip() for name in settings.arms.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise SetupError(f"setting SUTDOL_ARMS: expected names of {', '.join(ARMS)}, found {name!r}")
    return list(dict.fromkeys(names))


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


def _margin(seen: Seen) -> str:
    classes = seen.prediction.classes
    if len(classes) > 1:
        return f"{classes[0].label!r} or {classes[1].label!r}"
    return f"margin {seen.prediction.margin:.2f}"
