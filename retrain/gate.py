"""Whether a candidate goes to work: a pure function of two evaluations on the same items, and a text that says why.

    candidate + champion (Evaluated on the same test items) -> slices -> guard, gain, classes, limits -> Verdict

The rule, in the order in which the text tells it:

guard   On every slice the candidate may not be worse than the champion by more than the margin (1 point). From 100 items
        on the observed paired difference decides. Below, an interval is so wide that no candidate could ever exclude a
        loss of one point (300 items and 8 % discordance give +-3 points), so only a significant paired loss blocks.
gain    On at least one of the slices named before the run (overall, recent, new_classes) the candidate must be
        significantly better: McNemar mid-p for classes, paired image bootstrap of mAP50 for boxes, one-sided, Holm over
        these slices, at the alpha that this look at the test set may spend (`stats.alpha_for_look`). A slice too small
        to ever reach that alpha, or equal to another one, is left out of the family, whatever it shows.
classes No class with at least 100 test items may lose significantly (Holm over these classes, each with the chance that
        its discordant items leave it); the others are listed as "not enough evidence".
limits  Latency and size, where limits are given.

A candidate that is meant only to be faster (INT8, FP16) claims no gain: instead of it the lower end of its measured speed-up
must reach what was asked for, and on every slice, however small, the observed difference decides. It spends no alpha.

Without a champion there is a floor instead: better than always answering the most frequent class, or mAP50 above .05.

Errors: InputError when the two were not judged on exactly these items, or numbers are not finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrain.datasets import label_of
from retrain.evaluate import Evaluated
from retrain.metrics import Ranking, nan_mean
from sutdol import stats
from sutdol.errors import InputError
from sutdol.tables import DatasetItem
from sutdol.types import Task

MARGIN = 0.01
ENOUGH_ITEMS = 100
LOSS_ALPHA = 0.05
"""One-sided error at which a loss counts as significant, for small slices and (after Holm) for classes."""
DETECTION_FLOOR = 0.05
RESAMPLES = 4000
SEED = 20_260_101
NAMED_SLICES = ("overall", "recent", "new_classes")
_ROUNDING = 1e-9
_NAN = float("nan")

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """`text` is for people, `record` for machines (JSON); `alpha` is what this look spent, None without a champion."""

    verdict: Literal["promote", "refuse"]
    text: str
    record: dict[str, Any]
    alpha: float | None


@dataclass(frozen=True)
class Limits:
    """None means no limit. Latency is the median of one image through the predictor, measured at the evaluation."""

    latency_ms: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class Faster:
    """The claim of a candidate that is only meant to be faster, and what was measured (see `speed`).

    Attributes:
        ratio, low, high: champion's time over candidate's, with its interval.
        wanted: the least speed-up that is worth a swap.
    """

    ratio: float
    low: float
    high: float
    wanted: float


@dataclass(frozen=True)
class Difference:
    """Candidate minus champion on some items, paired. Accuracy or mAP50; all NaN when there is nothing to measure.

    Attributes:
        better, worse: one-sided p-values.
        wins, losses: items that only one of the two has right; None for boxes.
    """

    n: int
    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    better: float
    worse: float
    wins: int | None = None
    losses: int | None = None

    def chance_of_worse(self, p: float) -> float:
        """How likely `worse` is at most `p` when nothing is lost."""
        return p if self.wins is None or self.losses is None else stats.midp_chance(self.wins + self.losses, p)


def judge(
    task: Task,
    classes: Sequence[str],
    candidate: Evaluated,
    champion: Evaluated | None,
    items: Sequence[DatasetItem],
    *,
    recent: AbstractSet[str],
    looks: int,
    recent_looks: int | None = None,
    margin: float = MARGIN,
    limits: Limits | None = None,
    candidate_size_bytes: int | None = None,
    faster: Faster | None = None,
) -> Verdict:
    """Decide about `candidate`.

    Args:
        classes: the model's class list, in its order.
        items: the test items that both were evaluated on.
        recent: ids of drawn test items that the champion's dataset version did not contain.
        looks: how often a candidate was compared with a champion on this test-set version before (see `looks_at`).
        recent_looks: the same for the `recent` items alone, which are often fresh when the whole test set is not; what was
            never looked at still has its first alpha. None means as for the whole.
        margin: largest tolerated loss, a share.
        faster: the candidate claims speed and nothing else.

    Raises:
        InputError: the evaluations are of other items, of another task, or not finite.
    """
    _check(task, candidate, items)
    if champion is not None:
        _check(task, champion, items)
    measure = "mAP50" if task == "detect" else "accuracy"
    limit_lines, limit_record, within = _within(limits or Limits(), candidate, candidate_size_bytes)
    if champion is None:
        lines, record, good = _floor(task, candidate)
        return _verdict(good and within, [*lines, *limit_lines], record | {"measure": measure} | limit_record, None)

    compare = _Comparison(task, classes, candidate, champion)
    alpha = stats.alpha_for_look(looks + 1)
    slices = _slices(items, recent, set(champion.classes))
    distinct = {places.tobytes(): places for places in slices.values()}  # a resampling takes seconds
    once = {key: compare.difference(places) for key, places in distinct.items()}
    differences = {name: once[places.tobytes()] for name, places in slices.items()}
    lines = [f"Candidate against champion on {len(items)} test items, {measure}, look {looks + 1} (alpha {alpha:g})."]

    guard_lines, guard_record, unharmed = _guard(differences, margin, always=faster is not None)
    alphas = dict.fromkeys(NAMED_SLICES, alpha)
    if recent_looks is not None:
        alphas["recent"] = max(alpha, stats.alpha_for_look(recent_looks + 1))
    if faster is None:
        gain_lines, gain_record, better = _gain(differences, slices, alphas)
    else:
        gain_lines, gain_record, better = _speed(faster)
        alpha = 0.0
    class_lines, class_record, no_class_lost = _class_guard(compare, classes, items)
    record = {
        "measure": measure,
        "test_items": len(items),
        "looks_before": looks,
        "alpha": alpha,
        "margin": margin,
        "slices": {name: _plain(vars(d)) | guard_record[name] for name, d in differences.items()},
        "gain": gain_record,
        "classes": class_record,
    }
    lines += [*guard_lines, *gain_lines, *class_lines, *limit_lines]
    good = unharmed and better and no_class_lost and within
    verdict = _verdict(good, lines, record | limit_record, alpha)
    return replace(verdict, alpha=None) if faster is not None else verdict


def looks_at(test_ids: AbstractSet[str], earlier: Sequence[AbstractSet[str]]) -> int:
    """How many of the `earlier` looks were at this test set: those that saw at least half of its present items.

    A test set that grew by a few drawn items is still the same test set; counting looks by its exact content alone would
    hand out a fresh alpha with every new item.

    >>> looks_at({"a", "b"}, [{"a", "b"}, {"b", "c"}, {"c"}])
    2
    """
    return sum(2 * len(test_ids & seen) >= len(test_ids) for seen in earlier) if test_ids else 0


class _Comparison:
    """Paired differences on any subset of the items, by class or as a whole."""

    def __init__(self, task: Task, classes: Sequence[str], candidate: Evaluated, champion: Evaluated) -> None:
        self.task, self.classes = task, list(classes)
        self.pair = (candidate, champion)
        self.right = [np.array([o.correct for o in e.items], bool) for e in self.pair]

    def difference(self, places: NDArray[np.int64]) -> Difference:
        if self.task == "detect":
            return self._boxes(places, nan_mean)
        return self._classes(places)

    def of_class(self, name: str, places: NDArray[np.int64]) -> Difference:
        """The same for one class; `places` are the items that hold it."""
        return (
            self._boxes(places, lambda table: table[:, 0], [name]) if self.task == "detect" else self._classes(places)
        )

    def _classes(self, places: NDArray[np.int64]) -> Difference:
        ours, theirs = (right[places] for right in self.right)
        wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        both = int((ours & theirs).sum())
        n = len(places)
        if n == 0:
            return Difference(0, _NAN, _NAN, _NAN, _NAN, _NAN, better=1.0, worse=1.0, wins=0, losses=0)
        gain, low, high = stats.paired_difference(both, wins, losses, n - both - wins - losses)
        test = stats.mcnemar_midp(wins, losses)
        ours_right, theirs_right = (both + wins) / n, (both + losses) / n
        return Difference(n, ours_right, theirs_right, gain, low, high, test.better, test.worse, wins, losses)

    def _boxes(
        self, places: NDArray[np.int64], reduce: Callable[[Float], Float], names: list[str] | None = None
    ) -> Difference:
        ours, theirs = ([e.items[i] for i in places] for e in self.pair)
        n = len(places)
        rankings = [Ranking(outcomes, names) for outcomes in (ours, theirs)]
        once = [float(reduce(r.average_precision())[0]) if n and r.classes else _NAN for r in rankings]
        if not np.isfinite(once).all():
            return Difference(n, _NAN, _NAN, _NAN, _NAN, _NAN, better=1.0, worse=1.0)
        counts = stats.resample_counts(n, RESAMPLES, np.random.default_rng(SEED))
        resampled = [reduce(r.average_precision(counts)) for r in rankings]
        result = stats.bootstrap_of(resampled[0] - resampled[1])
        # Few images resample to the same sign too easily: no paired test over the images that differ can say more than
        # "all of them went one way".
        differing = sum(a.detections != b.detections for a, b in zip(ours, theirs, strict=True))
        least = stats.smallest_midp(differing)
        better, worse = max(result.better, least), max(result.worse, least)
        return Difference(n, once[0], once[1], once[0] - once[1], result.low, result.high, better, worse)


def _slices(items: Sequence[DatasetItem], recent: AbstractSet[str], known: set[str]) -> dict[str, NDArray[np.int64]]:
    labels = [label_of(item) for item in items]
    names = [{*label.classes, *(box.label for box in label.boxes)} for label in labels]
    chosen = {
        "overall": [True] * len(items),
        "recent": [item.sample_id in recent for item in items],
        "new_classes": [bool(n - known) for n in names],
        "imported": [item.source == "imported" for item in items],
    }
    return {name: np.flatnonzero(np.array(mask, bool)) for name, mask in chosen.items()}


def _guard(
    differences: dict[str, Difference], margin: float, *, always: bool
) -> tuple[list[str], dict[str, dict[str, Any]], bool]:
    lines, record, good = [], {}, True
    for name, d in differences.items():
        if d.n == 0 or not np.isfinite(d.difference):
            record[name] = {"guard": "empty"}
            continue
        if always or d.n >= ENOUGH_ITEMS:
            passed = d.difference >= -margin - _ROUNDING
            rule = f"a loss of at most {margin:.1%} is tolerated"
        else:
            passed = d.worse > LOSS_ALPHA
            rule = f"under {ENOUGH_ITEMS} items only a significant loss blocks, p for a loss {_p(d.worse)}"
        good &= passed
        record[name] = {"guard": "passed" if passed else "failed"}
        counts = f", {d.wins} won, {d.losses} lost" if d.wins is not None else ""
        lines.append(
            f"{'ok' if passed else 'NO'}  {name} ({d.n} items): {d.candidate:.1%} against {d.champion:.1%}, "
            f"difference {_signed(d.difference)} [{_signed(d.low)}, {_signed(d.high)}]{counts}; {rule}."
        )
    return lines, record, good


def _gain(
    differences: dict[str, Difference], slices: dict[str, NDArray[np.int64]], alphas: dict[str, float]
) -> tuple[list[str], dict[str, Any], bool]:
    named: list[str] = []
    present = [name for name in NAMED_SLICES if differences[name].n]
    for name in present:
        repeated = any(np.array_equal(slices[name], slices[other]) for other in named)
        if not repeated and stats.smallest_midp(differences[name].n) <= alphas[name] / len(present):
            named.append(name)
    # Weighted Holm: p-values in units of their own alpha, so that with equal alphas it is Holm's method itself.
    adjusted = stats.holm([min(1.0, differences[n].better * alphas["overall"] / alphas[n]) for n in named])
    winners = [
        n for n, p in zip(named, adjusted, strict=True) if p <= alphas["overall"] and differences[n].difference > 0
    ]
    told = ", ".join(f"{n} p {_p(differences[n].better)} at alpha {alphas[n]:g}" for n in named)
    told = f"({told or 'no slice is large enough'}; Holm over {len(named)})"
    if winners:
        line = f"ok  Significantly better on {' and '.join(winners)} {told}."
    else:
        line = f"NO  Not significantly better on any slice {told}."
    record = {
        "p": {n: differences[n].better for n in named},
        "alpha": {n: alphas[n] for n in named},
        "better_on": winners,
    }
    return [line], record, bool(winners)


def _speed(faster: Faster) -> tuple[list[str], dict[str, Any], bool]:
    good = faster.low >= faster.wanted
    line = (
        f"{'ok' if good else 'NO'}  {faster.ratio:.2f} times as fast [{faster.low:.2f}, {faster.high:.2f}], "
        f"asked for {faster.wanted:.2f}."
    )
    return [line], {"speed_up": vars(faster)}, good


def _class_guard(
    compare: _Comparison, classes: Sequence[str], items: Sequence[DatasetItem]
) -> tuple[list[str], dict[str, Any], bool]:
    labels = [label_of(item) for item in items]
    names = [{*label.classes, *(box.label for box in label.boxes)} for label in labels]
    places = {c: np.flatnonzero(np.array([c in present for present in names], bool)) for c in classes}
    enough = [c for c in classes if len(places[c]) >= ENOUGH_ITEMS]
    unknown = {c: len(places[c]) for c in classes if c not in enough}
    differences = {c: compare.of_class(c, places[c]) for c in enough}
    worse, chances = [differences[c].worse for c in enough], [differences[c].chance_of_worse for c in enough]
    adjusted = dict(zip(enough, stats.holm(worse, chances), strict=True))
    lost = [c for c in enough if adjusted[c] <= LOSS_ALPHA and differences[c].difference < 0]
    lines = [
        f"NO  Class {c} lost: {differences[c].candidate:.1%} against {differences[c].champion:.1%} on "
        f"{differences[c].n} items, Holm-adjusted p {_p(adjusted[c])}."
        for c in lost
    ]
    if enough and not lost:
        lines.append(
            f"ok  No significant loss in any of {len(enough)} classes with at least {ENOUGH_ITEMS} test items."
        )
    if unknown:
        shown = ", ".join(f"{c} ({n})" for c, n in list(unknown.items())[:12]) + (", ..." if len(unknown) > 12 else "")
        lines.append(f"--  Not enough evidence for single classes below {ENOUGH_ITEMS} test items: {shown}.")
    record = {
        "judged": {c: _plain(vars(differences[c])) | {"adjusted_worse": adjusted[c]} for c in enough},
        "lost": lost,
        "not_enough_evidence": unknown,
    }
    return lines, record, not lost


def _floor(task: Task, candidate: Evaluated) -> tuple[list[str], dict[str, Any], bool]:
    """The first version has nobody to beat; it must only be better than no model at all."""
    n = len(candidate.items)
    if task == "detect":
        score = candidate.metrics["map50"]
        good = score is not None and score > DETECTION_FLOOR
        told = "cannot be measured, the test items hold no objects" if score is None else f"is {score:.1%}"
        line = f"{'ok' if good else 'NO'}  First version: mAP50 {told} on {n} test items; the floor is {DETECTION_FLOOR:.0%}."
        return [line], {"floor": DETECTION_FLOOR, "candidate": score, "test_items": n}, good
    if n == 0:
        return ["NO  First version: there are no test items to judge it on."], {"test_items": 0}, False
    right = sum(o.correct for o in candidate.items)
    most = Counter(tuple(sorted(o.truth)) for o in candidate.items).most_common(1)[0][1]
    low, high = stats.wilson(right, n, 0.95)
    good = stats.wilson(right, n, 0.90)[0] > most / n  # one-sided 5 %
    line = (
        f"{'ok' if good else 'NO'}  First version: accuracy {right / n:.1%} [{low:.1%}, {high:.1%}] on {n} test items; "
        f"always answering the most frequent class gives {most / n:.1%}, and the lower bound must be above that."
    )
    record = {"floor": most / n, "candidate": right / n, "low": low, "high": high, "test_items": n}
    return [line], record, good


def _within(limits: Limits, candidate: Evaluated, size: int | None) -> tuple[list[str], dict[str, Any], bool]:
    lines, record, good = [], {}, True
    latency = candidate.metrics.get("latency_ms_p50")
    for name, limit, found, unit in (
        ("latency_ms", limits.latency_ms, latency, "ms an image"),
        ("size_bytes", limits.size_bytes, size, "bytes"),
    ):
        if limit is None:
            continue
        if found is None:
            raise InputError(f"gate: a limit of {limit:g} {unit} is set, expected the candidate's {name}, found none")
        passed = found <= limit
        good &= passed
        record[name] = {"found": found, "limit": limit}
        lines.append(
            f"{'ok' if passed else 'NO'}  {found:,.6g} {unit}, {'within' if passed else 'over'} the limit of {limit:,.6g}."
        )
    return lines, {"limits": record} if record else {}, good


def _check(task: Task, evaluated: Evaluated, items: Sequence[DatasetItem]) -> None:
    if evaluated.task != task:
        raise InputError(f"gate: expected an evaluation of a {task} model, found {evaluated.task}")
    expected, found = [item.sample_id for item in items], [o.sample_id for o in evaluated.items]
    if expected != found:
        odd = next((a for a, b in zip(expected, found, strict=False) if a != b), None)
        raise InputError(
            f"gate: expected outcomes of exactly these {len(expected)} items in this order, found {len(found)}"
            + (f", differing from item {odd[:12]} on" if odd else ""),
            hint="evaluate both versions on the same test split",
        )
    if len(set(expected)) != len(expected):
        raise InputError("gate: expected every test item once, found one twice")
    numbers = [o.confidence for o in evaluated.items] + [d.score for o in evaluated.items for d in o.detections]
    if not np.isfinite(numbers).all():
        raise InputError("gate: expected finite confidences, found NaN or infinity")


def _verdict(good: bool, lines: list[str], record: dict[str, Any], alpha: float | None) -> Verdict:
    if good:
        head = "Promote." if alpha is not None else "Promote: the first version, there is no champion to compare with."
    else:
        head = (
            "Refuse: " + "; ".join(line[4:].split(";")[0].rstrip(".") for line in lines if line.startswith("NO")) + "."
        )
    return Verdict("promote" if good else "refuse", "\n".join([head, *lines]), record, alpha)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def _signed(value: float) -> str:
    return f"{value * 100:+.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
