"""The statistics behind every decision, as pure functions: paired tests, intervals, Holm, bootstrap, alpha spending.

Counts or arrays in, probabilities in [0, 1] out. Nothing here draws random numbers of its own: a generator is passed in.
Errors: InputError for negative counts, NaN, or values outside their range, naming what was expected and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError

FIRST_LOOK_ALPHA = 0.03
LATER_LOOK_ALPHA = 0.0036
PLANNED_LOOKS = 20
TAIL_ALPHA = 0.0016


@dataclass(frozen=True)
class McNemar:
    """Mid-p values of a paired test on `b` wins and `c` losses; .5, .5 and 1 when they are equal.

    Attributes:
        better: one-sided, small when wins outweigh losses.
        worse: one-sided, small when losses outweigh wins; `better + worse` is 1.
        two_sided: twice the smaller one.
    """

    better: float
    worse: float
    two_sided: float


def mcnemar_midp(b: int, c: int) -> McNemar:
    """Paired test of two classifiers on the same items.

    Args:
        b: wins, items that only the candidate has right.
        c: losses, items that only the champion has right.

    Raises:
        InputError: a negative or fractional count.

    >>> round(mcnemar_midp(9, 1).better, 4)
    0.0059
    """
    for name, value in (("b", b), ("c", c)):
        if value != int(value) or value < 0:
            raise InputError(f"McNemar: expected a count >= 0 for {name}, found {value}")
    n = int(b + c)
    larger = max(int(b), int(c))
    tail = math.fsum(_binomial_half(k, n) for k in range(larger + 1, n + 1)) + 0.5 * _binomial_half(larger, n)
    tail = 0.5 if b == c else min(tail, 0.5)
    better, worse = (tail, 1.0 - tail) if b >= c else (1.0 - tail, tail)
    return McNemar(better, worse, 2.0 * tail)


def smallest_midp(n: int) -> float:
    """The smallest one-sided value that `n` paired items can give: all of them wins.

    >>> smallest_midp(4)
    0.03125
    """
    return float(0.5 ** (n + 1))


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's two-sided interval for a share of `k` in `n`; (0, 1) when `n` is 0. Both may be fractional (weights).

    Raises:
        InputError: `k` outside [0, n], NaN, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise InputError(f"Wilson interval: expected a confidence in (0, 1), found {confidence}")
    if not (n >= 0 and 0 <= k <= n and math.isfinite(n)):
        raise InputError(f"Wilson interval: expected 0 <= k <= n, found k={k} and n={n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, z2 = k / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def paired_difference(
    both_right: int, b: int, c: int, both_wrong: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Newcombe's interval (method 10) for the difference of two paired shares: (difference, low, high) in [-1, 1].

    Args:
        both_right, both_wrong: items on which the two agree.
        b: wins, items that only the candidate has right; c: losses.

    Returns:
        (0, -1, 1) when there are no items.
    """
    n = both_right + b + c + both_wrong
    if min(both_right, b, c, both_wrong) < 0:
        raise InputError(f"paired difference: expected counts >= 0, found {(both_right, b, c, both_wrong)}")
    if n == 0:
        return 0.0, -1.0, 1.0
    p1, p2 = (both_right + b) / n, (both_right + c) / n
    (low1, high1), (low2, high2) = wilson(both_right + b, n, confidence), wilson(both_right + c, n, confidence)
    product = (both_right + b) * (c + both_wrong) * (both_right + c) * (b + both_wrong)
    cross: float = both_right * both_wrong - b * c
    if cross > 0:
        cross = max(cross - n / 2, 0)  # Newcombe's continuity correction, only for a positive association
    phi = cross / math.sqrt(product) if product else 0.0
    down1, up1, down2, up2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    low = math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    high = math.sqrt(max(0.0, up1**2 - 2 * phi * up1 * down2 + down2**2))
    difference = (b - c) / n
    return difference, max(-1.0, difference - low), min(1.0, difference + high)


def holm(p_values: Sequence[float], chances: Sequence[Callable[[float], float]] | None = None) -> list[float]:
    """Holm's adjusted p-values in the order given: reject where the adjusted value is <= alpha.

    The chance of any false rejection among them is then at most alpha, whatever their dependence.

    Args:
        chances: of each test, the chance of a p-value that is at most the one given when nothing is there; without them
            it is that value itself. A test on a handful of items cannot come low, and then takes nothing from the others
            (Westfall & Wolfinger 1997, by Bonferroni's bound).

    Raises:
        InputError: NaN or a value outside [0, 1].

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    >>> holm([0.01, 0.04, 0.03], [lambda p: p, lambda p: 0.0, lambda p: p])
    [0.02, 0.03, 0.03]
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise InputError(f"Holm: expected p-values in [0, 1], found {p}")
    adjusted = [1.0] * len(p_values)
    running = 0.0
    left = sorted(range(len(p_values)), key=lambda i: p_values[i])
    while left:
        p = p_values[left[0]]
        together = len(left) * p if chances is None else sum(chances[i](p) for i in left)
        running = max(running, min(1.0, together))
        adjusted[left.pop(0)] = running
    return adjusted


def midp_chance(n: int, p: float) -> float:
    """The chance that `n` discordant items, each a fair coin, give a one-sided mid-p value of at most `p`.

    >>> round(midp_chance(8, 0.005), 4), midp_chance(2, 0.005)
    (0.0039, 0.0)
    """
    tail = 0.0
    for k in range(n, -1, -1):
        here = _binomial_half(k, n)
        if tail + 0.5 * here > p * (1 + 1e-9):
            return tail
        tail += here
    return 1.0


@dataclass(frozen=True)
class Bootstrap:
    """What the resamples say about one difference; NaN resamples (nothing to measure in them) count as "no difference".

    Attributes:
        low, high: percentile interval.
        better: one-sided p-value for "the difference is above 0"; worse: for "below 0". Never below 1 / (resamples + 1).
    """

    low: float
    high: float
    better: float
    worse: float


def resample_counts(n: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """How often each of `n` items is in each resample: (resamples, n) int32, each row sums to `n`.

    Raises:
        InputError: fewer than one item or resample.
    """
    if n < 1 or resamples < 1:
        raise InputError(f"bootstrap: expected at least one item and one resample, found {n} and {resamples}")
    counts = np.empty((resamples, n), np.int32)
    for row in range(resamples):
        counts[row] = np.bincount(rng.integers(0, n, n), minlength=n)
    return counts


def bootstrap_of(differences: NDArray[np.float64], confidence: float = 0.95) -> Bootstrap:
    """Interval and one-sided p-values from the differences (r,) of r paired resamples.

    Raises:
        InputError: no resamples, or a confidence outside (0, 1).
    """
    if differences.ndim != 1 or differences.size == 0:
        raise InputError(f"bootstrap: expected differences of shape (r,), found {differences.shape}")
    if not 0 < confidence < 1:
        raise InputError(f"bootstrap: expected a confidence in (0, 1), found {confidence}")
    values = np.nan_to_num(differences, nan=0.0)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    n = values.size
    return Bootstrap(
        float(low),
        float(high),
        float((1 + np.count_nonzero(values <= 0)) / (n + 1)),
        float((1 + np.count_nonzero(values >= 0)) / (n + 1)),
    )


def paired_bootstrap(
    statistic: Callable[[NDArray[np.int32]], NDArray[np.float64]],
    n: int,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Bootstrap:
    """Resample `n` paired items together and look at how often the difference keeps its sign.

    Args:
        statistic: (r, n) multiplicities -> (r,) differences, candidate minus champion.

    >>> gains = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    >>> paired_bootstrap(lambda counts: counts @ gains / 6, 6, rng=np.random.default_rng(0)).better < 0.01
    True
    """
    return bootstrap_of(np.asarray(statistic(resample_counts(n, resamples, rng)), np.float64), confidence)


def alpha_for_look(look: int) -> float:
    """The one-sided error that the `look`-th comparison (from 1) on one test-set version may spend.

    3 % for the first, .36 % for each of the next nineteen, and a halving tail after that. The sum over 20 looks is 9.84 %,
    over all looks ever 10 %, so by the union bound a team that looks twenty times at one frozen test set, with nothing
    ever improving, sees a false promotion with at most 10 %, whatever the dependence (simulated with 20 equal candidates
    against one champion: 6-7 %, because they share the champion's luck).

    The first look is the large one: most test-set versions are looked at once before the `drawn` arm has refreshed them.
    It is 3 and not 5 % because the rest pays for it: with a true gain of 4 points, discordance .08 and 500 items the power
    is .92 at the first look and .70 at later ones (.71 over 20 rounds, .92 with 800 items at any look); a first look of
    4.5 % would leave .68 for later ones, an even split of .5 % would give .75 everywhere and miss .88 at the first.

    Raises:
        InputError: `look` below 1.

    >>> alpha_for_look(1), alpha_for_look(2), round(sum(map(alpha_for_look, range(1, 100))), 6)
    (0.03, 0.0036, 0.1)
    """
    if look < 1:
        raise InputError(f"alpha spending: expected a look >= 1, found {look}")
    if look == 1:
        return FIRST_LOOK_ALPHA
    if look <= PLANNED_LOOKS:
        return LATER_LOOK_ALPHA
    return float(TAIL_ALPHA * 0.5 ** min(look - PLANNED_LOOKS, 1000))


def _binomial_half(k: int, n: int) -> float:
    """P(X = k) for X ~ Binomial(n, 1/2)."""
    return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
