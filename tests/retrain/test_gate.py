"""The rule of promotion, row by row: what is promoted, what is refused, and what the text says about it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from retrain import evaluate, gate, metrics
from retrain.evaluate import Evaluated
from retrain.gate import Limits, judge
from retrain.metrics import Outcome
from sutdol import stats
from sutdol.errors import InputError
from sutdol.tables import DatasetItem
from sutdol.types import Box

Row = tuple[str, str, str]
"""Truth, what the candidate says, what the champion says."""


def classified(rows: list[Row], *, drawn: int = 0) -> tuple[list[DatasetItem], Evaluated, Evaluated]:
    """A classifier pair; the last `drawn` items come from traffic, the others were imported."""
    items, outcomes = [], ([], [])
    for i, (truth, ours, theirs) in enumerate(rows):
        source = "annotation" if i >= len(rows) - drawn else "imported"
        items.append(
            DatasetItem(
                dataset_version_id="d",
                sample_id=f"{i:04}",
                split="test",
                value={"classes": [truth], "boxes": []},
                source=source,
            )
        )
        for found, said in zip(outcomes, (ours, theirs), strict=True):
            found.append(Outcome(f"{i:04}", truth == said, [truth], [said], 0.9))
    classes = [sorted({t for t, _, _ in rows} | {o for _, o, _ in rows}), sorted({t for _, _, t in rows})]
    pair = [
        Evaluated("classify", names, 0.0, found, evaluate.summarise("classify", found, names) | {"latency_ms_p50": 2.0})
        for found, names in zip(outcomes, classes, strict=True)
    ]
    return items, pair[0], pair[1]


def pairs(*, both: int = 0, won: int = 0, lost: int = 0, neither: int = 0, name: str = "a") -> list[Row]:
    other = "b" if name == "a" else "a"
    return (
        [(name, name, name)] * both
        + [(name, name, other)] * won
        + [(name, other, name)] * lost
        + [(name, other, other)] * neither
    )


def verdict(rows: list[Row], *, drawn: int = 0, looks: int = 0, **more: object) -> gate.Verdict:
    items, candidate, champion = classified(rows, drawn=drawn)
    recent = {i.sample_id for i in items if i.source == "annotation"}
    result = judge("classify", ["a", "b"], candidate, champion, items, recent=recent, looks=looks, **more)  # type: ignore[arg-type]
    json.dumps(result.record, allow_nan=False)
    return result


BALANCED = pairs(both=50, name="b")

TABLE = [
    ("equal", pairs(both=300) + BALANCED, 0, 0, "refuse"),
    ("clearly better", pairs(both=280, won=30, lost=2) + BALANCED, 0, 0, "promote"),
    ("better, but not on a later look", pairs(both=280, won=14, lost=5) + BALANCED, 0, 1, "refuse"),
    ("the same at the first look", pairs(both=280, won=14, lost=4) + BALANCED, 0, 0, "promote"),
    ("a lucky half point", pairs(both=280, won=4, lost=2) + BALANCED, 0, 0, "refuse"),
    ("worse", pairs(both=280, won=2, lost=30) + BALANCED, 0, 0, "refuse"),
    ("recent much better, old equal", pairs(both=300) + pairs(won=17, lost=1, neither=2), 20, 0, "promote"),
    ("recent better, old one point worse", pairs(both=297, lost=3) + pairs(won=18, neither=2), 20, 0, "promote"),
    ("recent better, old more than a point worse", pairs(both=296, lost=4) + pairs(won=18, neither=2), 20, 0, "refuse"),
    ("eight recent items are enough when all are won", pairs(both=300) + pairs(won=8), 8, 0, "promote"),
    ("three recent items never are", pairs(both=300) + pairs(won=3), 3, 0, "refuse"),
    ("a small old part significantly worse", pairs(both=40, lost=9) + pairs(won=60), 60, 0, "refuse"),
    ("a small old part a little worse", pairs(both=46, lost=3) + pairs(won=60), 60, 0, "promote"),
    ("one item", pairs(won=1), 0, 0, "refuse"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "drawn", "looks", "expected"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_the_rule_decides_as_it_is_written(rows: list[Row], drawn: int, looks: int, expected: str) -> None:
    """Each row is one sentence of the rule."""
    assert verdict(rows, drawn=drawn, looks=looks).verdict == expected


def test_a_class_the_champion_never_heard_of_is_a_reason_to_promote() -> None:
    """New classes are why people label; the champion cannot be right about them."""
    rows = [*pairs(both=200), *[("new", "new", "a")] * 12, *[("new", "a", "a")] * 3]
    result = verdict(rows)
    assert result.verdict == "promote"
    assert "new_classes" in result.record["gain"]["better_on"]


def test_a_class_that_is_lost_blocks_even_when_the_whole_gets_better() -> None:
    """A gain on one class must not be paid with another one."""
    rows = pairs(both=100, won=80) + pairs(both=100, lost=20, name="b")
    result = verdict(rows)
    assert result.verdict == "refuse"
    assert result.record["classes"]["lost"] == ["b"]
    assert "Class b lost" in result.text.splitlines()[0]


def test_small_classes_are_listed_and_do_not_block() -> None:
    """Below a hundred items a drop is noise half of the time."""
    rows = pairs(both=200, won=60) + pairs(both=20, lost=4, name="b")
    result = verdict(rows)
    assert result.verdict == "promote"
    assert result.record["classes"]["not_enough_evidence"] == {"b": 24}
    assert "Not enough evidence" in result.text


def test_a_slice_equal_to_another_costs_no_power() -> None:
    """With only recent items, `overall` and `recent` are one question; asking it twice would halve the alpha."""
    result = verdict(pairs(both=60, won=9, lost=2), drawn=71)
    assert list(result.record["gain"]["p"]) == ["overall"]


def test_items_nobody_looked_at_keep_their_first_alpha() -> None:
    """A test set that was looked at before grew by fresh traffic: the fresh part has not been used up with the rest."""
    rows = pairs(both=300) + pairs(both=10, won=9)
    assert verdict(rows, drawn=19, looks=3).verdict == "promote"
    rows = pairs(both=300) + pairs(both=10, won=8, lost=1)
    assert verdict(rows, drawn=19, looks=3).verdict == "refuse"
    assert verdict(rows, drawn=19, looks=3, recent_looks=0).verdict == "promote"
    assert verdict(rows, drawn=19, looks=3, recent_looks=3).verdict == "refuse"


def test_the_text_tells_numbers_intervals_and_why() -> None:
    """Somebody reads this a year later and wants to know."""
    text = verdict(pairs(both=280, won=30, lost=2) + BALANCED).text
    for part in (
        "Promote.",
        "look 1 (alpha 0.03)",
        "overall (362 items)",
        "30 won, 2 lost",
        "[",
        "imported",
        "Significantly better on overall",
    ):
        assert part in text
    assert "recent" not in text
    refused = verdict(pairs(both=300) + BALANCED).text
    assert refused.startswith("Refuse: Not significantly better")


def test_limits_refuse_what_is_too_slow_or_too_large() -> None:
    """A better model that misses the deadline of its users is no better model."""
    good = pairs(both=280, won=30, lost=2) + BALANCED
    fits = verdict(good, limits=Limits(latency_ms=5, size_bytes=1_000), candidate_size_bytes=900)
    slow = verdict(good, limits=Limits(latency_ms=1))
    large = verdict(good, limits=Limits(size_bytes=1_000), candidate_size_bytes=1_001)
    assert (fits.verdict, slow.verdict, large.verdict) == ("promote", "refuse", "refuse")
    assert "limit" in slow.text.splitlines()[0]
    with pytest.raises(InputError, match="size_bytes"):
        verdict(good, limits=Limits(size_bytes=1))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (pairs(both=90, neither=10) + pairs(both=100, name="b"), "promote"),
        (pairs(both=50) + pairs(neither=50, name="b"), "refuse"),  # always says a
        (pairs(both=100), "refuse"),  # one class only: nothing can be shown
        ([], "refuse"),
    ],
)
def test_the_first_version_must_beat_always_saying_the_same(rows: list[Row], expected: str) -> None:
    """Nobody to compare with is no reason to serve nonsense."""
    items, candidate, _ = classified(rows)
    result = judge("classify", ["a", "b"], candidate, None, items, recent=set(), looks=0)
    assert result.verdict == expected
    assert result.alpha is None
    assert "irst version" in result.text


@pytest.mark.parametrize("what", ["missing", "other", "order", "twice", "task", "nan"])
def test_evaluations_that_do_not_belong_together_are_refused(what: str) -> None:
    """A paired test of unpaired things gives a number, and the number is wrong."""
    items, candidate, champion = classified(pairs(both=3))
    outcomes = list(champion.items)
    task = champion.task
    if what == "missing":
        outcomes.pop()
    elif what == "other":
        outcomes[1] = Outcome("ffff", True, ["a"], ["a"], 0.9)
    elif what == "order":
        outcomes.reverse()
    elif what == "twice":
        items, outcomes = [items[0]] * 3, [outcomes[0]] * 3
        candidate = Evaluated("classify", ["a"], 0.0, outcomes, {})
    elif what == "task":
        task = "detect"
    else:
        outcomes[1] = Outcome("0001", True, ["a"], ["a"], float("nan"))
    with pytest.raises(InputError, match="gate"):
        judge("classify", ["a"], candidate, Evaluated(task, ["a"], 0.0, outcomes, {}), items, recent=set(), looks=0)


def boxes_pair(n: int, *, ours: float, theirs: float, seed: int = 0) -> tuple[list[DatasetItem], Evaluated, Evaluated]:
    """A detector pair on n photos of three objects, each found with the probability given; some false alarms."""
    rng = np.random.default_rng(seed)
    items, outcomes = [], ([], [])
    for i in range(n):
        truth = [Box("a" if k else "b", 50.0 * k, 0, 50 * k + 40, 40) for k in range(3)]
        value = {
            "classes": [],
            "boxes": [{"label": b.label, "x1": b.x1, "y1": b.y1, "x2": b.x2, "y2": b.y2} for b in truth],
        }
        items.append(
            DatasetItem(dataset_version_id="d", sample_id=f"{i:04}", split="test", value=value, source="imported")
        )
        luck = rng.random(3)
        for found, chance in zip(outcomes, (ours, theirs), strict=True):
            predicted = [
                Box(b.label, b.x1 + 1, b.y1, b.x2, b.y2, float(rng.uniform(0.3, 1)))
                for b, u in zip(truth, luck, strict=True)
                if u < chance
            ]
            predicted.append(Box("a", 0, 60, 30, 90, float(rng.uniform(0, 0.6))))
            matched = metrics.match_image(predicted, truth)
            found.append(
                Outcome(f"{i:04}", False, [b.label for b in truth], [d.label for d in matched], 0.5, detections=matched)
            )
    pair = [
        Evaluated("detect", ["a", "b"], 0.25, found, metrics.detection(found, ["a", "b"], score_min=0.25))
        for found in outcomes
    ]
    return items, pair[0], pair[1]


@pytest.mark.parametrize(
    ("n", "ours", "theirs", "expected"),
    [
        (72, 0.8, 0.6, "promote"),
        (72, 0.6, 0.6, "refuse"),
        (72, 0.5, 0.7, "refuse"),
        (120, 0.75, 0.6, "promote"),
        (3, 1.0, 0.1, "refuse"),
    ],
)
def test_detectors_are_judged_by_paired_resampling_of_photos(n: int, ours: float, theirs: float, expected: str) -> None:
    """Three photos resample to "always better" by themselves; they must not promote anything."""
    items, candidate, champion = boxes_pair(n, ours=ours, theirs=theirs)
    result = judge("detect", ["a", "b"], candidate, champion, items, recent=set(), looks=0)
    assert result.verdict == expected
    again = judge("detect", ["a", "b"], candidate, champion, items, recent=set(), looks=0)
    assert again == result
    json.dumps(result.record, allow_nan=False)


def test_a_lost_class_of_objects_blocks() -> None:
    """Cells that are no longer found must not hide behind those that are found better."""
    items, candidate, champion = boxes_pair(150, ours=0.7, theirs=0.7)
    better = [
        Outcome(
            o.sample_id,
            False,
            o.truth,
            o.predicted,
            0.5,
            detections=[d for d in o.detections if (d.label == "a" and d.hits) or i % 2],
        )
        for i, o in enumerate(candidate.items)
    ]
    result = judge(
        "detect", ["a", "b"], Evaluated("detect", ["a", "b"], 0.25, better, {}), champion, items, recent=set(), looks=0
    )
    assert result.verdict == "refuse"
    assert "b" in result.record["classes"]["lost"]


def test_photos_without_any_object_cannot_be_judged_and_do_not_crash() -> None:
    """A slice of empty photos is legal; mAP does not exist on it."""
    items = [
        DatasetItem(
            dataset_version_id="d",
            sample_id=str(i),
            split="test",
            value={"classes": [], "boxes": []},
            source="imported",
        )
        for i in range(5)
    ]
    empty = [Outcome(str(i), True, [], [], 0.0) for i in range(5)]
    same = Evaluated("detect", ["a"], 0.25, empty, metrics.detection(empty, ["a"], score_min=0.25))
    result = judge("detect", ["a"], same, same, items, recent=set(), looks=0)
    assert result.verdict == "refuse"
    first = judge("detect", ["a"], same, None, items, recent=set(), looks=0)
    assert first.verdict == "refuse"
    assert "no objects" in first.text


def test_the_first_detector_needs_five_percent() -> None:
    """A detector from scratch may be weak, but not empty."""
    items, candidate, _ = boxes_pair(20, ours=0.5, theirs=0.5)
    assert judge("detect", ["a", "b"], candidate, None, items, recent=set(), looks=0).verdict == "promote"
    items, candidate, _ = boxes_pair(20, ours=0.0, theirs=0.5)
    assert judge("detect", ["a", "b"], candidate, None, items, recent=set(), looks=0).verdict == "refuse"


def test_twenty_rounds_without_progress_promote_at_most_one_in_ten_teams() -> None:
    """The promise about luck, through the whole rule: 20 equal candidates on one frozen test set of 500 items."""
    rng = np.random.default_rng(5)
    alphas = [stats.alpha_for_look(k) for k in range(1, 21)]
    teams, fooled, optimism = 600, 0, 0.0
    for _ in range(teams):
        unsure = rng.binomial(500, 0.16)  # items that every retraining gets right with probability 1/2: discordance .08
        champion = rng.random(unsure) < 0.5
        promoted = False
        for alpha, candidate in zip(alphas, rng.random((20, unsure)) < 0.5, strict=True):
            wins, losses = int((candidate & ~champion).sum()), int((champion & ~candidate).sum())
            if wins - losses >= -5 and stats.mcnemar_midp(wins, losses).better <= alpha:
                champion, promoted = candidate, True
        fooled += promoted
        optimism += (champion.sum() - unsure / 2) / 500
    assert fooled / teams <= 0.10
    assert optimism / teams <= 0.004


@pytest.mark.parametrize(
    ("now", "earlier", "expected"),
    [
        (set(), [{"a"}], 0),
        ({"a", "b"}, [], 0),
        ({"a", "b", "c"}, [{"a", "b"}, {"c"}], 1),
        ({"a"}, [{"a"}, {"a", "b"}], 2),
    ],
)
def test_a_test_set_that_grew_a_little_is_still_the_same(now: set[str], earlier: list[set[str]], expected: int) -> None:
    """Otherwise one new item would buy a fresh alpha."""
    assert gate.looks_at(now, earlier) == expected
