"""The arithmetic that promotions hang on, compared with scipy and with published or hand-made tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from sutdol import stats
from sutdol.errors import InputError


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (1, 0), (0, 1), (5, 5), (9, 1), (1, 9), (30, 10), (40, 41), (700, 600), (3000, 10)]
)
def test_mcnemar_midp_is_scipys_binomial_tail(b: int, c: int) -> None:
    """A wrong tail here would promote or refuse everything that follows."""
    n = b + c
    expected = float(reference.binom.sf(b, n, 0.5) + 0.5 * reference.binom.pmf(b, n, 0.5))
    result = stats.mcnemar_midp(b, c)
    assert result.better == pytest.approx(expected, rel=1e-8, abs=1e-300)
    assert result.better + result.worse == pytest.approx(1.0)
    assert result.two_sided == pytest.approx(2 * min(expected, 1 - expected), rel=1e-8)
    assert stats.mcnemar_midp(c, b).better == result.worse


@pytest.mark.parametrize(("b", "c"), [(-1, 0), (0, -1), (1.5, 0), (math.nan, 1)])
def test_mcnemar_refuses_what_is_no_count(b: float, c: float) -> None:
    """A shifted argument must fail loudly, not give a plausible number."""
    with pytest.raises((InputError, ValueError)):
        stats.mcnemar_midp(b, c)  # type: ignore[arg-type]


def test_the_smallest_midp_is_what_only_wins_give() -> None:
    """The gate leaves slices out that could never be significant; both must speak of the same test."""
    for n in (1, 2, 7, 20):
        assert stats.smallest_midp(n) == pytest.approx(stats.mcnemar_midp(n, 0).better)


@pytest.mark.parametrize(
    ("k", "n", "confidence"), [(0, 10, 0.95), (10, 10, 0.95), (3, 10, 0.9), (450, 500, 0.95), (1, 1, 0.99)]
)
def test_wilson_is_scipys(k: int, n: int, confidence: float) -> None:
    """The interval is shown to people as the truth about their model."""
    low, high = reference.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert stats.wilson(k, n, confidence) == pytest.approx((low, high), abs=1e-12)


def test_wilson_knows_nothing_without_items() -> None:
    """An empty slice is not 0 % right and not 100 % right."""
    assert stats.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("k", "n", "confidence"), [(5, 4, 0.95), (-1, 4, 0.95), (math.nan, 4, 0.95), (1, math.nan, 0.95), (1, 2, 1.0)]
)
def test_wilson_refuses_impossible_shares(k: float, n: float, confidence: float) -> None:
    """NaN must not travel into a decision record."""
    with pytest.raises(InputError):
        stats.wilson(k, n, confidence)


@pytest.mark.parametrize(
    ("table", "expected"),
    [  # the first row is Newcombe's own example (Statistics in Medicine 17, 1998, method 10)
        ((36, 12, 2, 0), (0.2, 0.0569, 0.3404)),
        ((0, 0, 0, 0), (0.0, -1.0, 1.0)),
    ],
)
def test_the_paired_interval_is_newcombes(
    table: tuple[int, int, int, int], expected: tuple[float, float, float]
) -> None:
    """The guard's interval stands in every record; the published table is the only judge."""
    assert stats.paired_difference(*table) == pytest.approx(expected, abs=6e-4)


def test_the_paired_interval_covers_what_it_promises() -> None:
    """95 % has to mean about 95 %, at the sizes our test splits have."""
    rng = np.random.default_rng(1)
    for n, shares in ((30, (0.8, 0.1, 0.05, 0.05)), (200, (0.88, 0.06, 0.02, 0.04)), (60, (0.0, 0.9, 0.05, 0.05))):
        truth = shares[1] - shares[2]
        hits = 0
        for draw in rng.multinomial(n, shares, size=2000):
            _, low, high = stats.paired_difference(*(int(v) for v in draw))
            hits += low <= truth <= high
        assert hits / 2000 > 0.93


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_adjusts_in_the_order_given(p_values: list[float], expected: list[float]) -> None:
    """A p-value handed back for the wrong class would block the wrong thing."""
    assert stats.holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [[math.nan], [-0.1], [1.1]])
def test_holm_refuses_what_is_no_probability(p_values: list[float]) -> None:
    """NaN sorts anywhere, so it must never get in."""
    with pytest.raises(InputError):
        stats.holm(p_values)


def test_a_class_that_cannot_come_low_takes_nothing_from_the_others() -> None:
    """Ten classes, nine of which differ on two items: Holm alone would forgive a loss of 11 to 2 in the tenth."""
    ps = [stats.mcnemar_midp(2, 11).worse, *[stats.mcnemar_midp(1, 1).worse] * 9]
    chances = [lambda p, n=n: stats.midp_chance(n, p) for n in (13, *[2] * 9)]
    assert stats.holm(ps)[0] > 0.05
    assert stats.holm(ps, chances)[0] < 0.05


def test_by_chance_the_guard_of_classes_blocks_no_more_often_than_it_says() -> None:
    """Exactly, by adding up what is likely: three classes with 5, 9 and 14 discordant fair coins each."""
    sizes, blocked = (5, 9, 14), 0.0
    chances = [lambda p, n=n: stats.midp_chance(n, p) for n in sizes]
    for losses in itertools.product(*(range(n + 1) for n in sizes)):
        ps = [stats.mcnemar_midp(n - k, k).worse for n, k in zip(sizes, losses, strict=True)]
        likely = math.prod(math.comb(n, k) / 2**n for n, k in zip(sizes, losses, strict=True))
        blocked += likely * (min(stats.holm(ps, chances)) <= 0.05)
    assert 0.02 < blocked <= 0.05


@pytest.mark.parametrize("n", [0, 1, 8, 23])
def test_the_chance_of_a_midp_is_that_of_the_counts_that_reach_it(n: int) -> None:
    """Against the definition, at and around every value that there is."""
    worse = [stats.mcnemar_midp(n - k, k).worse for k in range(n + 1)]
    for p in {0.0, 1.0, *worse, *(w - 1e-6 for w in worse)}:
        expected = sum(math.comb(n, k) / 2**n for k in range(n + 1) if worse[k] <= p * (1 + 1e-9))
        assert stats.midp_chance(n, p) == pytest.approx(expected)


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    """A check of the whole helper against a case that has a formula."""
    rng = np.random.default_rng(2)
    gains = rng.normal(0.1, 1.0, 400)
    result = stats.paired_bootstrap(lambda counts: counts @ gains / 400, 400, rng=rng, resamples=4000)
    error = gains.std() / 20
    assert result.low == pytest.approx(gains.mean() - 1.96 * error, abs=0.02)
    assert result.high == pytest.approx(gains.mean() + 1.96 * error, abs=0.02)
    assert result.better == pytest.approx(float(reference.norm.sf(gains.mean() / error)), abs=0.02)


def test_resamples_keep_their_size() -> None:
    """A resample of distinct items only (as some tools draw) would make every interval too narrow."""
    counts = stats.resample_counts(7, 500, np.random.default_rng(0))
    assert counts.shape == (500, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.max() > 1


def test_resamples_without_anything_to_measure_count_as_no_difference() -> None:
    """A resample without a single box of a class must not decide anything."""
    result = stats.bootstrap_of(np.array([np.nan, np.nan, 0.1]))
    assert result.better == pytest.approx(3 / 4)
    assert result.worse == pytest.approx(1.0)


@pytest.mark.parametrize("differences", [np.array([]), np.zeros((2, 2))])
def test_the_bootstrap_refuses_what_is_no_list_of_differences(differences: np.ndarray) -> None:
    """Shapes are checked where they enter."""
    with pytest.raises(InputError):
        stats.bootstrap_of(differences)
    with pytest.raises(InputError):
        stats.resample_counts(0, 10, np.random.default_rng(0))


def test_twenty_looks_spend_at_most_ten_percent() -> None:
    """By the union bound this is the promise about false promotions, whatever the dependence between the looks."""
    looks = [stats.alpha_for_look(k) for k in range(1, 21)]
    assert sum(looks) <= 0.0985
    assert max(looks) == looks[0] <= 0.05
    assert sum(stats.alpha_for_look(k) for k in range(1, 3000)) <= 0.1 + 1e-9
    with pytest.raises(InputError):
        stats.alpha_for_look(0)


def power(n: int, alpha: float, *, gain: float, discordance: float = 0.08) -> float:
    """Exact chance that a candidate with a true `gain` is found on `n` items."""
    win = (discordance + gain) / 2 / discordance
    total = 0.0
    for k in range(n + 1):
        weight = float(reference.binom.pmf(k, n, discordance))
        if weight < 1e-10:
            continue
        wins = np.arange(k + 1)
        p = reference.binom.sf(wins, k, 0.5) + 0.5 * reference.binom.pmf(wins, k, 0.5)
        total += weight * float(reference.binom.pmf(wins, k, win)[p <= alpha].sum())
    return total


def test_the_schedule_finds_a_gain_of_four_points() -> None:
    """Spending too carefully would leave real improvements on the shelf."""
    first, later = stats.alpha_for_look(1), stats.alpha_for_look(2)
    at_first, at_later = power(500, first, gain=0.04), power(500, later, gain=0.04)
    assert at_first >= 0.88
    assert (at_first + 19 * at_later) / 20 >= 0.70
    assert power(800, later, gain=0.04) >= 0.88
    assert power(500, first, gain=0.0) <= 0.05
    assert power(500, first, gain=0.0) + 19 * power(500, later, gain=0.0) <= 0.10
