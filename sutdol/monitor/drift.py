"""Whether the world of a model version has changed: charts with a false-alarm budget over what is logged anyway. Pure.

    the version's first LEARN images -> Reference (what each signal usually is)
    every later image -> normal score per signal -> two-sided CUSUM chart each      window: small, lasting shifts
                      -> its class -> chi-square per CLASS_WINDOW images           window: another mix of answers
                      -> unfamiliar or not -> Bernoulli CUSUM                      per image, needs no Reference
       -> State, and Changes: a chart went into alarm, or came back

The reference is the version's own early traffic and not its training data: what people labelled is on purpose not like the
traffic, and a version that was promoted for a new world must not sound an alarm because the new world goes on. What a
version never knew is found by the unfamiliar share, which compares with the training data from the first image on.

A score is the normal quantile of the value's rank in the reference, so no signal needs a distribution, and one wild value
counts no more than any other at the edge. The slack of each chart is a quarter of a standard deviation plus 2.5
of the reference's own errors; the limit follows from the false-alarm budget (Siegmund 1985), divided over all charts.
Neighbouring images of a camera are alike, so scores are divided by the square root of the reference's correlation time.

Sources: Page 1954 (CUSUM); Siegmund 1985, eq. 2.56 (run length). Errors: InputError for columns of unequal length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError

Float = NDArray[np.float64]
SIGNALS = ("ood_score", "confidence", "brightness", "sharpness", "colour", "objects")
"""Of each image; NaN where a model has none of it. `ood_score` counts upwards only: larger is stranger."""
LEARN = 500
"""Images that make a reference; from MIN_LEARN on it is used, and it grows no more after LEARN."""
MIN_LEARN = 200
FALSE_ALARMS = 0.3
"""Alarms without a cause in PER images, all charts together, that the limits are set for; the promise is 1."""
PER = 10_000
SLACK = 0.25
"""Lasting shifts below this, in standard deviations, are not drift."""
REFERENCE_ERRORS = 2.5
"""Standard errors of the reference's own mean that count as no drift on top."""
CLASS_WINDOW = 200
CLASS_ALPHA = 0.0005
UNFAMILIAR, UNFAMILIAR_USUAL, UNFAMILIAR_CHANGED = "unfamiliar", 0.15, 0.6
UNFAMILIAR_LIMIT = math.log(PER / FALSE_ALARMS)
CLASSES = "classes"
SHOWN = 50
"""Images that a message describes as "now"."""
_NORMAL = NormalDist()


class Reference(msgspec.Struct):
    """What a version's images usually are.

    Attributes:
        size: images it was learned from.
        values: sorted values of each signal that has any.
        centre, scale: mean and standard deviation of the reference's own normal scores (ties make them differ from 0 and 1),
            the scale times the square root of the correlation time.
        classes: how often each answer came.
    """

    size: int
    values: dict[str, list[float]]
    centre: dict[str, float]
    scale: dict[str, float]
    classes: dict[str, int]


class Chart(msgspec.Struct):
    """One side of one signal. While `alarm`, `sum` is the evidence that it is over."""

    sum: float = 0.0
    alarm: bool = False


class State(msgspec.Struct):
    """Where all charts stand; JSON in table `drift_state`."""

    charts: dict[str, Chart] = {}
    window: dict[str, int] = {}
    seen: int = 0

    @property
    def alarms(self) -> list[str]:
        """Names of the charts in alarm, sorted: `brightness-`, `classes`, `unfamiliar`."""
        return sorted(name for name, chart in self.charts.items() if chart.alarm)


class Change(msgspec.Struct, frozen=True):
    """A chart went into alarm (`on`) or came back, at image `at` of the batch."""

    chart: str
    on: bool
    at: int
    text: str


class Batch(msgspec.Struct, frozen=True):
    """Images in the order they came: signals (n,) each, answers, and whether each is unfamiliar."""

    signals: Mapping[str, Float]
    classes: Sequence[str]
    unfamiliar: NDArray[np.bool_]

    def __post_init__(self) -> None:
        lengths = {len(self.classes), len(self.unfamiliar), *(len(v) for v in self.signals.values())}
        if len(lengths) != 1:
            raise InputError(f"drift: expected columns of one length, found {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.classes)

    def part(self, start: int, end: int) -> Batch:
        signals = {name: values[start:end] for name, values in self.signals.items()}
        return Batch(signals, self.classes[start:end], self.unfamiliar[start:end])


def learn(batch: Batch) -> Reference:
    """The reference that these images make.

    Raises:
        InputError: fewer than two images.
    """
    n = len(batch)
    if n < 2:
        raise InputError(f"drift: expected at least 2 images to learn from, found {n}")
    reference = Reference(n, {}, {}, {}, dict(Counter(batch.classes)))
    for name in SIGNALS:
        values = np.asarray(batch.signals.get(name, []), np.float64)
        known = values[np.isfinite(values)]
        if len(known) < n / 2 or n < 2:
            continue
        ordered = np.sort(known)
        raw = _normal_scores(ordered, known)
        reference.values[name] = ordered.tolist()
        reference.centre[name] = float(raw.mean())
        reference.scale[name] = float(raw.std()) * math.sqrt(_correlation_time(raw))
    return reference


def scores(reference: Reference, name: str, values: Float) -> Float:
    """Standardised normal scores (n,): mean 0 and deviation 1 while nothing has changed; 0 where a value is missing.

    A signal that never varied in the reference (the colour of grey images) scores 0 as long as it stays within one step of
    8-bit pixels, and 3 standard deviations beyond.
    """
    ordered = np.asarray(reference.values[name])
    scale = reference.scale[name]
    if scale < 1e-6:
        off = values - ordered[len(ordered) // 2]
        return np.where(np.abs(np.nan_to_num(off)) > 1 / 255, 3.0 * np.sign(np.nan_to_num(off)), 0.0)
    raw = (_normal_scores(ordered, values) - reference.centre[name]) / scale
    return np.where(np.isfinite(values), raw, 0.0)


def watch(reference: Reference | None, state: State, batch: Batch) -> list[Change]:
    """Take `batch` into `state` (which changes); what happened, in order. Without a reference only the unfamiliar share
    is watched."""
    changes: list[Change] = []
    rise = math.log(UNFAMILIAR_CHANGED / UNFAMILIAR_USUAL)
    fall = math.log((1 - UNFAMILIAR_CHANGED) / (1 - UNFAMILIAR_USUAL))
    steps = np.where(batch.unfamiliar, rise, fall)
    for at, on in _run(state, UNFAMILIAR, steps, -steps, UNFAMILIAR_LIMIT):
        share = float(np.mean(batch.unfamiliar[max(0, at - SHOWN + 1) : at + 1]))
        text = f"{share:.0%} of the last images are unfamiliar" if on else "the images are familiar again"
        changes.append(Change(UNFAMILIAR, on, at, text))
    if reference is not None:
        charts = [(n, side) for n in reference.values for side in ("+", "-") if (n, side) != ("ood_score", "-")]
        slack = SLACK + REFERENCE_ERRORS / math.sqrt(reference.size)
        limit = chart_limit(len(charts))
        standard = {name: scores(reference, name, np.asarray(batch.signals[name])) for name in reference.values}
        for name, side in charts:
            z = standard[name] if side == "+" else -standard[name]
            for at, on in _run(state, name + side, z - slack, slack - z, limit):
                changes.append(Change(name + side, on, at, _words(reference, batch, name, side, at, on)))
        changes += _class_mix(reference, state, batch)
    state.seen += len(batch)
    return sorted(changes, key=lambda change: (change.at, change.chart))


def differs(reference: Reference, batch: Batch, *, limit: float = 3.0) -> list[str]:
    """Signals whose mean in `batch` is further from the reference than chance allows: `limit` standard errors of both."""
    if not len(batch):
        return []
    error = math.sqrt(1 / reference.size + 1 / len(batch))
    return [
        name
        for name in reference.values
        if abs(float(scores(reference, name, np.asarray(batch.signals[name])).mean())) > limit * error
    ]


def chart_limit(charts: int) -> float:
    """The limit of each of so many charts; the mix of answers and the unfamiliar share have their part of the budget too."""
    return cusum_limit(PER * (charts + 2) / FALSE_ALARMS)


@lru_cache(maxsize=64)
def cusum_limit(run_length: float, slack: float = SLACK) -> float:
    """The limit at which a one-sided chart of independent normal scores alarms once in `run_length` images.

    >>> round(cusum_limit(10_000), 1)
    13.1
    """
    low, high = 0.1, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        b = 2 * slack * (middle + 1.166)
        low, high = (middle, high) if (math.exp(b) - b - 1) / (2 * slack**2) < run_length else (low, middle)
    return high


def chi_square_p(observed: Sequence[int], expected: Sequence[int]) -> float:
    """How likely two lists of counts differ so much by chance; classes with fewer than 5 expected are put together.

    By Wilson and Hilferty's cube root (1931): a few per cent off around .05, at 1e-5 twice as large as it should be. 1 where
    there is nothing to compare.

    >>> chi_square_p([50, 50], [500, 500])
    1.0
    """
    ours, theirs = np.asarray(observed, np.float64), np.asarray(expected, np.float64)
    n, m = ours.sum(), theirs.sum()
    if n == 0 or m == 0:
        return 1.0
    common = (ours + theirs) / (n + m)
    rare = common * min(n, m) < 5
    if rare.any():
        ours = np.append(ours[~rare], ours[rare].sum())
        theirs = np.append(theirs[~rare], theirs[rare].sum())
        common = (ours + theirs) / (n + m)
    kept = common > 0
    ours, theirs, common = ours[kept], theirs[kept], common[kept]
    freedom = len(common) - 1
    if freedom < 1:
        return 1.0
    statistic = float(((ours - n * common) ** 2 / (n * common) + (theirs - m * common) ** 2 / (m * common)).sum())
    if statistic == 0:
        return 1.0
    spread = 2 / (9 * freedom)
    return 1 - _NORMAL.cdf(((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def _run(state: State, name: str, rising: Float, falling: Float, limit: float) -> list[tuple[int, bool]]:
    """Continue a chart; (image, in alarm from here on or not) for each change."""
    chart = state.charts.setdefault(name, Chart())
    found: list[tuple[int, bool]] = []
    start = 0
    while start < len(rising):
        path = chart.sum + np.cumsum((falling if chart.alarm else rising)[start:])
        path -= np.minimum(np.minimum.accumulate(path), 0.0)
        over = np.flatnonzero(path >= limit)
        if not len(over):
            chart.sum = float(path[-1])
            break
        chart.alarm, chart.sum = not chart.alarm, 0.0
        start += int(over[0]) + 1
        found.append((start - 1, chart.alarm))
    return found


def _class_mix(reference: Reference, state: State, batch: Batch) -> list[Change]:
    chart = state.charts.setdefault(CLASSES, Chart())
    changes: list[Change] = []
    for at, name in enumerate(batch.classes):
        state.window[name] = state.window.get(name, 0) + 1
        if sum(state.window.values()) < CLASS_WINDOW:
            continue
        names = sorted({*state.window, *reference.classes})
        ours, theirs = ([c.get(n, 0) for n in names] for c in (state.window, reference.classes))
        p = chi_square_p(ours, theirs)
        state.window.clear()
        if p < CLASS_ALPHA and not chart.alarm:
            chart.alarm = True
            shares = [(o / CLASS_WINDOW - t / reference.size, n) for o, t, n in zip(ours, theirs, names, strict=True)]
            by, most = max(shares, key=lambda s: abs(s[0]))
            changes.append(Change(CLASSES, True, at, f"the mix of answers has changed, most of all {most}: {by:+.0%}"))
        elif p > 0.05 and chart.alarm:
            chart.alarm = False
            changes.append(Change(CLASSES, False, at, "the mix of answers is as before"))
    return changes


def _words(reference: Reference, batch: Batch, name: str, side: str, at: int, on: bool) -> str:
    word = name.replace("_", " ")
    if not on:
        return f"{word} is as before"
    now = np.asarray(batch.signals[name])[max(0, at - SHOWN + 1) : at + 1]
    usual = reference.values[name][len(reference.values[name]) // 2]
    higher = "higher" if side == "+" else "lower"
    return f"{word} is {higher} than usual: {float(np.nanmedian(now)):.3g}, usually {usual:.3g}"


@lru_cache(maxsize=16)
def _quantiles(n: int) -> Float:
    """Normal quantiles of (r + 1) / (2 n + 2) for r in 0..2n: what a rank between r / 2 values of n is worth."""
    return np.array([_NORMAL.inv_cdf((r + 1) / (2 * n + 2)) for r in range(2 * n + 1)])


def _normal_scores(ordered: Float, values: Float) -> Float:
    """Ties get the middle of their ranks."""
    clean = np.nan_to_num(values, nan=float(ordered[len(ordered) // 2]))
    ranks = np.searchsorted(ordered, clean, "left") + np.searchsorted(ordered, clean, "right")
    return np.asarray(_quantiles(len(ordered))[ranks])


def _correlation_time(z: Float, longest: int = 20) -> float:
    """1 + 2 x the sum of autocorrelations up to the first one that is not above its own error; at least 1."""
    centred = z - z.mean()
    total = float((centred**2).sum())
    if total <= 0:
        return 1.0
    time = 1.0
    for lag in range(1, min(longest, len(z) // 4) + 1):
        correlation = float((centred[lag:] * centred[:-lag]).sum()) / total
        if correlation < 2 / math.sqrt(len(z)):
            break
        time += 2 * correlation
    return time
