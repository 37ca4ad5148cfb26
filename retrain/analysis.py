"""What an evaluation says, in every form that people ask for: one JSON-able dict. Pure functions of outcomes and items.

    Evaluated + DatasetItems -> analyse -> headline, per class, confusion, pairs, curves, reliability, slices
    two Evaluated on the same items -> compare -> who won where, item by item

Every share comes with its counts and a 95 % interval: Wilson's for counted shares, a bootstrap over images for average
precision. None where there is nothing to measure. Items count once each, whatever their weight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrain import metrics
from retrain.evaluate import Evaluated, summarise
from retrain.metrics import BACKGROUND, Outcome, Ranking
from sutdol import stats
from sutdol.errors import InputError
from sutdol.tables import DatasetItem
from sutdol.types import Label

RESAMPLES = 400
CURVE_POINTS = 101
EXAMPLES = 12
MOST_PAIRS = 20
SMALL_PX, LARGE_PX = 32.0, 96.0
"""Objects up to 32 px and from 96 px a side (square root of the area in the original image) are small and large, as in COCO."""

Numbers = dict[str, Any]


def analyse(evaluated: Evaluated, items: Sequence[DatasetItem]) -> Numbers:
    """Everything about one version on these items.

    Raises:
        InputError: the items are not those that were judged.
    """
    _check(evaluated, items)
    outcomes, task = evaluated.items, evaluated.task
    classes = [*evaluated.classes, *sorted({n for o in outcomes for n in o.truth} - set(evaluated.classes))]
    return {
        "task": task,
        "n": len(outcomes),
        "classes": classes,
        "score_min": evaluated.score_min,
        "latency_ms_p50": evaluated.metrics.get("latency_ms_p50"),
        "headline": _headline(evaluated),
        "per_class": _per_class(evaluated, classes),
        "confusion": _confusion(outcomes, classes, task),
        "most_confused": most_confused(outcomes),
        "curves": _curves(outcomes, classes, task),
        "reliability": reliability(*_confidences(outcomes, task, evaluated.score_min)),
        "slices": _slices(evaluated, items),
        "mistakes": sum(not o.correct for o in outcomes),
    }


def compare(candidate: Evaluated, champion: Evaluated, items: Sequence[DatasetItem]) -> Numbers:
    """The two on the same images, item by item: `fixed` only the candidate has right, `broken` only the champion.

    Raises:
        InputError: they were judged on other items.
    """
    _check(candidate, items)
    _check(champion, items)
    rows, counts = [], Counter[str]()
    for ours, theirs, item in zip(candidate.items, champion.items, items, strict=True):
        change = _change(ours.correct, theirs.correct)
        counts[change] += 1
        rows.append(
            {
                "sample_id": ours.sample_id,
                "change": change,
                "truth": ours.truth,
                "candidate": _said(ours),
                "champion": _said(theirs),
                "source": item.source,
                "arm": item.arm,
            }
        )
    parts = (counts["both_right"], counts["fixed"], counts["broken"], counts["both_wrong"])
    difference, low, high = stats.paired_difference(*parts)
    test = stats.mcnemar_midp(counts["fixed"], counts["broken"])
    return {
        "n": len(rows),
        **{name: counts[name] for name in ("both_right", "fixed", "broken", "both_wrong")},
        "difference": difference,
        "interval": [low, high],
        "p_better": test.better,
        "p_worse": test.worse,
        "headline": {"candidate": _headline(candidate), "champion": _headline(champion)},
        "items": rows,
    }


def share(k: float, n: float) -> Numbers:
    """A counted share with its interval; value None when nothing counts.

    >>> share(0, 0)["value"] is None
    True
    """
    low, high = stats.wilson(k, n)
    return {"value": k / n if n else None, "k": k, "n": n, "interval": [low, high] if n else None}


def most_confused(outcomes: Sequence[Outcome]) -> list[Numbers]:
    """Pairs (truth, answer) that are not the same, most frequent first, with samples to look at.

    BACKGROUND as truth is an invented object, as answer a missed one.
    """
    examples: dict[tuple[str, str], list[str]] = defaultdict(list)
    of_truth = Counter[str]()
    for outcome in outcomes:
        for truth, answer in _pairs(outcome):
            of_truth[truth] += 1
            if truth != answer:
                examples[truth, answer].append(outcome.sample_id)
    ranked = sorted(examples.items(), key=lambda kv: (-len(kv[1]), kv[0]))
    return [
        {
            "truth": truth,
            "predicted": answer,
            "count": len(samples),
            "share_of_truth": len(samples) / of_truth[truth],
            "samples": list(dict.fromkeys(samples))[:EXAMPLES],
        }
        for (truth, answer), samples in ranked[:MOST_PAIRS]
    ]


def reliability(
    confidences: NDArray[np.float64], correct: NDArray[np.bool_], *, bins: int = metrics.ECE_BINS
) -> Numbers:
    """How often answers of each confidence are right: bins with counts and intervals, and the ECE over them."""
    places = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        inside = places == i
        n = int(inside.sum())
        rows.append(
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "confidence": float(confidences[inside].mean()) if n else None,
                "accuracy": share(int(correct[inside].sum()), n),
            }
        )
    ece = metrics.expected_calibration_error(confidences.tolist(), correct.tolist())
    return {"bins": rows, "ece": ece, "n": len(confidences)}


def precision_recall(scores: NDArray[np.float64], hits: NDArray[np.bool_], positives: int) -> Numbers:
    """Precision over recall as the threshold falls, at most CURVE_POINTS points; `ap` is the area as scikit-learn counts it.

    Ties are one point: a threshold cannot tell them apart.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.array([], int)
    found = np.cumsum(hits)[last]
    precision = found / (last + 1.0)
    recall = found / positives if positives else np.zeros(len(found))
    ap = float(np.sum(np.diff(np.append(0.0, recall)) * precision)) if positives else None
    if len(last) > CURVE_POINTS:
        kept = np.unique(np.linspace(0, len(last) - 1, CURVE_POINTS).round().astype(int))
        precision, recall, last = precision[kept], recall[kept], last[kept]
    return {
        "positives": positives,
        "ap": ap,
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "threshold": scores[last].tolist() if len(scores) else [],
    }


def _headline(evaluated: Evaluated) -> Numbers:
    """The few numbers at the top, by their usual names."""
    outcomes, found = evaluated.items, evaluated.metrics
    per_class = found.get("per_class", {})
    confidences, correct = _confidences(outcomes, evaluated.task, evaluated.score_min)
    ece = metrics.expected_calibration_error(confidences.tolist(), correct.tolist())
    right = share(sum(o.correct for o in outcomes), len(outcomes))
    if evaluated.task == "detect":
        hits = sum(sum(o.found) for o in outcomes)
        reported, objects = sum(len(o.predicted) for o in outcomes), sum(len(o.truth) for o in outcomes)
        ranking = Ranking(outcomes)
        return {
            "map50": {"value": found.get("map50"), "interval": _resampled(ranking.mean_average_precision, ranking.n)},
            "map50_95": {"value": found.get("map50_95"), "interval": None},
            "precision": share(hits, reported),
            "recall": share(hits, objects),
            "f1": {"value": 2 * hits / (reported + objects) if reported + objects else None},
            "accuracy": right,
            "ece": {"value": ece},
        }
    macro = {name: _mean([v[name] for v in per_class.values() if v["n"]]) for name in ("precision", "recall", "f1")}
    return {"accuracy": right, **{name: {"value": value} for name, value in macro.items()}, "ece": {"value": ece}}


def _per_class(evaluated: Evaluated, classes: Sequence[str]) -> list[Numbers]:
    outcomes, rows = evaluated.items, []
    ranking = Ranking(outcomes, classes) if evaluated.task == "detect" else None
    counts = _counts(ranking.n) if ranking is not None and ranking.n else None
    table = ranking.average_precision(counts) if ranking is not None and counts is not None else None
    for column, name in enumerate(classes):
        of_truth = sum(o.truth.count(name) for o in outcomes)
        reported = sum(o.predicted.count(name) for o in outcomes)
        if evaluated.task == "detect":
            hits = sum(f for o in outcomes for t, f in zip(o.truth, o.found, strict=True) if t == name)
        else:
            hits = sum(name in o.truth and name in o.predicted for o in outcomes)
        row: Numbers = {
            "name": name,
            "n": of_truth,
            "reported": reported,
            "images": sum(name in o.truth for o in outcomes),
            "precision": share(hits, reported),
            "recall": share(hits, of_truth),
            "f1": 2 * hits / (reported + of_truth) if reported + of_truth else None,
        }
        if table is not None:
            known = evaluated.metrics["per_class"].get(name, {})
            row["ap50"] = {"value": known.get("ap50"), "interval": _quantiles(table[:, column])}
            row["ap50_95"] = {"value": known.get("ap50_95")}
        rows.append(row)
    return rows


def _confusion(outcomes: Sequence[Outcome], classes: Sequence[str], task: str) -> Numbers:
    """One row per truth, one column per answer; detectors have the background last, multi-label models none at all."""
    if task == "multilabel":
        return {"labels": [], "matrix": []}
    labels = [*classes, *([BACKGROUND] if task == "detect" else [])]
    extra = sorted({name for o in outcomes for pair in _pairs(o) for name in pair} - {*labels, BACKGROUND})
    labels = [*classes, *extra, *([BACKGROUND] if task == "detect" else [])]
    index = {name: i for i, name in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for outcome in outcomes:
        for truth, answer in _pairs(outcome):
            matrix[index[truth], index[answer]] += 1
    return {"labels": labels, "matrix": matrix.tolist()}


def _curves(outcomes: Sequence[Outcome], classes: Sequence[str], task: str) -> dict[str, Numbers]:
    """One precision-recall curve per class; classes beyond the five best of an item count with a score of 0."""
    curves = {}
    for name in classes:
        if task == "detect":
            found = [(d.score, bool(d.hits & 1)) for o in outcomes for d in o.detections if d.label == name]
        else:
            found = [(dict(o.scores).get(name, 0.0), name in o.truth) for o in outcomes]
        scores, hits = np.array([s for s, _ in found], np.float64), np.array([h for _, h in found], bool)
        curves[name] = precision_recall(scores, hits, sum(o.truth.count(name) for o in outcomes))
    return curves


def _slices(evaluated: Evaluated, items: Sequence[DatasetItem]) -> dict[str, list[Numbers]]:
    """The headline on parts: by size, brightness, source and arm. Small parts have wide intervals; read those."""
    outcomes = evaluated.items
    brightness = np.array([np.nan if o.brightness is None else o.brightness for o in outcomes], np.float64)
    known = np.isfinite(brightness)
    edges = np.quantile(brightness[known], [1 / 3, 2 / 3]) if known.any() else np.array([0.0, 0.0])

    def bright(i: int) -> str:
        if not known[i]:
            return "unknown"
        names = (f"dark (below {edges[0]:.2f})", "middle", f"bright (from {edges[1]:.2f})")
        return names[int(np.searchsorted(edges, brightness[i], side="right"))]

    keys: dict[str, Callable[[int], str]] = {
        "brightness": bright,
        "source": lambda i: items[i].source,
        "arm": lambda i: items[i].arm or "none",
        "image_size": lambda i: _size_name(outcomes[i].width_px, outcomes[i].height_px),
    }
    found = {name: _by(evaluated, key) for name, key in keys.items()}
    if evaluated.task == "detect":
        found["object_size"] = _by_object_size(outcomes, items)
    return found


def _by(evaluated: Evaluated, key: Callable[[int], str]) -> list[Numbers]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for i, outcome in enumerate(evaluated.items):
        groups[key(i)].append(outcome)
    rows = []
    for name, part in sorted(groups.items()):
        row: Numbers = {"name": name, "n": len(part), "accuracy": share(sum(o.correct for o in part), len(part))}
        if evaluated.task == "detect":
            ranking = Ranking(part)
            value = summarise("detect", part, evaluated.classes, score_min=evaluated.score_min)["map50"]
            row["map50"] = {"value": value, "interval": _resampled(ranking.mean_average_precision, len(part))}
            row["recall"] = share(sum(sum(o.found) for o in part), sum(len(o.truth) for o in part))
        rows.append(row)
    return rows


def _by_object_size(outcomes: Sequence[Outcome], items: Sequence[DatasetItem]) -> list[Numbers]:
    """Share of small, middle and large objects that were found."""
    found: dict[str, list[bool]] = {"small": [], "middle": [], "large": []}
    for outcome, item in zip(outcomes, items, strict=True):
        for box, hit in zip(msgspec.convert(item.value, Label).boxes, outcome.found, strict=True):
            side = ((box.x2 - box.x1) * (box.y2 - box.y1)) ** 0.5
            found["small" if side <= SMALL_PX else "large" if side >= LARGE_PX else "middle"].append(hit)
    return [{"name": name, "n": len(hits), "recall": share(sum(hits), len(hits))} for name, hits in found.items()]


def _size_name(width: int, height: int) -> str:
    pixels = width * height
    names = ((0, "unknown"), (100_000, "below 0.1 MP"), (1_000_000, "0.1 to 1 MP"), (10**12, "over 1 MP"))
    return next(name for limit, name in names if pixels <= limit)


def _confidences(
    outcomes: Sequence[Outcome], task: str, score_min: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What calibration is measured on: answers, or the boxes that were reported."""
    if task == "detect":
        found = [(d.score, bool(d.hits & 1)) for o in outcomes for d in o.detections if d.score >= score_min]
    else:
        found = [(o.confidence, o.correct) for o in outcomes]
    return np.array([c for c, _ in found], np.float64), np.array([h for _, h in found], bool)


def _pairs(outcome: Outcome) -> list[tuple[str, str]]:
    """(truth, answer) of a detector's boxes, or of the one class; none where several classes may hold."""
    if outcome.pairs or len(outcome.truth) != 1 or len(outcome.predicted) != 1:
        return list(outcome.pairs)
    return [(outcome.truth[0], outcome.predicted[0])]


def _said(outcome: Outcome) -> Numbers:
    return {"predicted": outcome.predicted, "confidence": outcome.confidence, "correct": outcome.correct}


def _change(ours: bool, theirs: bool) -> str:
    if ours == theirs:
        return "both_right" if ours else "both_wrong"
    return "fixed" if ours else "broken"


def _counts(n: int) -> NDArray[np.int32]:
    return stats.resample_counts(n, RESAMPLES, np.random.default_rng(0))


def _resampled(statistic: Callable[[NDArray[np.int32]], NDArray[np.float64]], n: int) -> list[float] | None:
    return _quantiles(statistic(_counts(n))) if n else None


def _quantiles(values: NDArray[np.float64]) -> list[float] | None:
    known = values[np.isfinite(values)]
    return [float(q) for q in np.quantile(known, [0.025, 0.975])] if len(known) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what cannot be measured (a class never reported) the value is 0, as scikit-learn counts it."""
    return float(np.mean([v or 0.0 for v in values])) if values else None


def _check(evaluated: Evaluated, items: Sequence[DatasetItem]) -> None:
    if [o.sample_id for o in evaluated.items] != [item.sample_id for item in items]:
        raise InputError(
            f"analysis: expected outcomes of exactly these {len(items)} items in this order, "
            f"found {len(evaluated.items)}"
        )
