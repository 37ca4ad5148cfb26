"""Live accuracy from drawn labels: honest where plain averages are not, and refused where labels are missing."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol.errors import InputError
from sutdol.monitor.estimate import ENOUGH, Answers, live_accuracy, wilson_shaped
from sutdol.stats import wilson


def world(seed: int = 0, *, n: int = 3000, accuracy: float | None = None):
    """Beliefs, OOD scores, right answers, and the default design for 150 labels."""
    rng = np.random.default_rng(seed)
    belief = np.clip(rng.beta(8, 1.2, n), 0.01, 1)
    right = (rng.random(n) < (belief if accuracy is None else accuracy)).astype(float)
    doubt = (1 - belief) ** 2
    probability = np.minimum(150 / n * (0.5 + 0.5 * doubt / doubt.mean()), 1)
    return Answers(belief, rng.normal(0, 1, n), probability, np.ones(n)), right


@pytest.mark.parametrize("accuracy", [None, 0.5], ids=["calibrated", "confident and wrong"])
def test_it_covers_and_does_not_lean_however_wrong_the_confidence_is(accuracy: float | None) -> None:
    """The confidence only shapes the interval; 300 draws, so the bounds leave four standard errors of room."""
    answers, right = world(accuracy=accuracy)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        places = np.flatnonzero(rng.random(len(answers)) < answers.probability)
        e = live_accuracy(answers, places, right[places])
        found.append((e.accuracy, e.low, e.high))
    estimate, low, high = np.array(found, float).T
    assert abs(estimate.mean() - right.mean()) < 0.012
    assert ((low <= right.mean()) & (right.mean() <= high)).mean() >= 0.9


def test_the_plain_average_of_the_same_labels_would_be_far_off() -> None:
    """This is why the inclusion probability is logged."""
    answers, right = world()
    places = np.flatnonzero(np.random.default_rng(1).random(len(answers)) < answers.probability)
    assert right[places].mean() < right.mean() - 0.03
    assert live_accuracy(answers, places, right[places]).accuracy == pytest.approx(right.mean(), abs=0.03)


def test_too_few_labels_are_refused_with_the_number_missing() -> None:
    """A number without a basis is worse than none."""
    answers, right = world()
    e = live_accuracy(answers, np.arange(ENOUGH - 7), right[: ENOUGH - 7])
    assert (e.accuracy, e.low, e.high, e.labels, e.needed) == (None, None, None, ENOUGH - 7, 7)


@pytest.mark.parametrize("enough", [0, 1, 30])
def test_an_empty_window_has_an_answer(enough: int) -> None:
    """A model without traffic is a normal case."""
    empty = np.array([])
    e = live_accuracy(Answers(empty, empty, empty, empty), np.array([], int), empty, enough=enough)
    assert (e.accuracy, e.needed, e.answers) == (None, max(enough, 1), 0)


def test_all_right_is_not_certainty() -> None:
    """Forty right answers in a row still leave room for errors that were not drawn."""
    answers, _ = world()
    e = live_accuracy(answers, np.arange(40), np.ones(40))
    assert e.low is not None
    assert e.low < 0.97
    assert e.high == pytest.approx(1.0, abs=0.02)


def test_certain_beliefs_and_constant_outcomes_do_not_break_it() -> None:
    """Probabilities of exactly 0 and 1 are what saturated models give."""
    n = 200
    belief = np.r_[np.ones(100), np.zeros(100)]
    answers = Answers(belief, np.full(n, np.nan), np.full(n, 0.5), np.ones(n))
    for value in (0.0, 1.0):
        e = live_accuracy(answers, np.arange(0, n, 2), np.full(100, value))
        assert e.accuracy == pytest.approx(value, abs=0.03)
        assert 0 <= (e.low or 0) <= (e.accuracy or 0) <= (e.high or 0) <= 1


def test_with_every_answer_labelled_it_is_the_plain_share() -> None:
    """Nothing is left to chance, so nothing may be left to a model."""
    answers, right = world(n=400)
    sure = Answers(answers.belief, answers.ood, np.ones(400), answers.weight)
    e = live_accuracy(sure, np.arange(400), right)
    assert e.accuracy == pytest.approx(right.mean(), abs=1e-9)
    assert (e.high or 0) - (e.low or 0) < 0.01


def test_a_repeated_content_counts_with_its_multiplicity() -> None:
    """A thousand copies of one wrong answer are a thousand wrong answers, and one label."""
    belief = np.full(100, 0.9)
    weight = np.ones(100)
    weight[0] = 100
    right = np.ones(100)
    right[0] = 0
    answers = Answers(belief, np.zeros(100), np.ones(100), weight)
    assert live_accuracy(answers, np.arange(100), right).accuracy == pytest.approx(99 / 199)


def test_what_nobody_could_label_widens_the_interval_on_both_sides() -> None:
    """A skipped image may be the model's worst error; leaving it out would flatter the model."""
    answers, right = world()
    places = np.flatnonzero(np.random.default_rng(1).random(len(answers)) < answers.probability)
    lost, kept = places[:15], places[15:]
    whole = live_accuracy(answers, kept, right[kept])
    widened = live_accuracy(answers, kept, right[kept], missing=lost)
    assert (widened.low or 0) < (whole.low or 0)
    assert (widened.high or 0) >= (whole.high or 0)
    assert widened.missing_width > 0.03
    assert widened.accuracy == whole.accuracy


def test_a_domain_counts_its_own_answers_and_labels() -> None:
    """By class and by version it is the same estimate over a part."""
    answers, right = world(n=2000)
    domain = np.arange(2000) < 1000
    places = np.flatnonzero(np.random.default_rng(2).random(2000) < answers.probability)
    part = live_accuracy(answers, places, right[places], domain=domain)
    assert part.answers == 1000
    assert part.labels == int(domain[places].sum())
    assert (part.low or 0) <= right[domain].mean() <= (part.high or 0)
    assert live_accuracy(answers, places, right[places], domain=np.zeros(2000, bool)).needed == ENOUGH


@pytest.mark.parametrize(
    ("belief", "probability", "weight", "right"),
    [
        ([np.nan, 0.5], [0.5, 0.5], [1, 1], [1, 1]),
        ([1.2, 0.5], [0.5, 0.5], [1, 1], [1, 1]),
        ([0.5, 0.5], [0.0, 0.5], [1, 1], [1, 1]),
        ([0.5, 0.5], [0.5, 1.5], [1, 1], [1, 1]),
        ([0.5, 0.5], [0.5, 0.5], [0, 1], [1, 1]),
        ([0.5, 0.5], [0.5], [1, 1], [1, 1]),
        ([0.5, 0.5], [0.5, 0.5], [1, 1], [np.nan, 1]),
        ([0.5, 0.5], [0.5, 0.5], [1, 1], [2, 1]),
        ([0.5, 0.5], [0.5, 0.5], [1, 1], [1]),
    ],
)
def test_impossible_numbers_are_refused(belief, probability, weight, right) -> None:
    """A NaN would become an accuracy of NaN on a board."""
    arrays = [np.array(v, float) for v in (belief, [0.0] * len(belief), probability, weight)]
    with pytest.raises(InputError, match="live accuracy"):
        live_accuracy(Answers(*arrays), np.array([0, 1]), np.array(right, float), enough=1)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (15, 20), (20, 20), (180, 200)])
def test_with_a_binomial_variance_it_is_close_to_wilsons_own_interval(k: int, n: int) -> None:
    """The shape is Wilson's; only the size is ours."""
    shrunk = (k + 2) / (n + 4)
    low, high = wilson_shaped(k / n, shrunk * (1 - shrunk) / n, n)
    expected = wilson(k, n)
    assert (low, high) == pytest.approx(expected, abs=1e-6)
