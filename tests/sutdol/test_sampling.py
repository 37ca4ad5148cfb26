"""The arms: honest probabilities, deterministic draws, budgets that hold through drift."""

from __future__ import annotations

import numpy as np
import pytest

from sutdol.errors import SetupError
from sutdol.focus import Focus, Spot
from sutdol.sampling import ARMS, OnlineQuantile, Sampler, arms_of, drawn_probability, priority, rates
from sutdol.settings import load
from sutdol.types import Box, ClassScore, InputSpec, Manifest, Prediction

MANIFEST = Manifest("classify", ["a", "b"], InputSpec((8, 8)), "timm", unfamiliar_at=2.0)


def answer(margin: float, ood: float | None = 0.0, boxes: list[Box] | None = None) -> Prediction:
    return Prediction([ClassScore("a", 0, 0.9)], boxes or [], 0.9, 0.9, margin, ood, 8, 8)


def test_the_logged_probability_is_the_one_that_draws() -> None:
    """Live accuracy divides by it; a wrong one would bias every estimate."""
    sampler, rng = Sampler("m", drawn_rate=0.1, other_rate=0.0), np.random.default_rng(0)
    picks = [sampler.pick(f"s{i}", answer(float(rng.beta(6, 1))), MANIFEST, at=0.0) for i in range(20_000)]
    drawn = np.array(["drawn" in p.arms for p in picks])
    probabilities = np.array([p.inclusion_probability for p in picks])
    assert drawn.sum() == pytest.approx(
        probabilities.sum(), abs=4 * np.sqrt((probabilities * (1 - probabilities)).sum())
    )
    unsure = probabilities > np.quantile(probabilities, 0.9)
    expected = probabilities[unsure].sum()
    assert drawn[unsure].sum() == pytest.approx(expected, abs=4 * np.sqrt(expected))
    assert drawn.mean() == pytest.approx(0.1, abs=0.01)


def test_every_answer_can_be_drawn() -> None:
    """A probability of zero anywhere would make the estimate blind there."""
    assert drawn_probability(0.0, rate=0.05, mean_doubt=0.3) == pytest.approx(0.025)


def test_a_retry_draws_the_same() -> None:
    """The draw depends on the content, not on time."""
    first, second = (Sampler("m", drawn_rate=0.2, other_rate=0.0) for _ in range(2))
    ids = [f"s{i}" for i in range(500)]
    assert [first.pick(i, answer(0.5), MANIFEST, at=0.0).arms for i in ids] == [
        second.pick(i, answer(0.5), MANIFEST, at=0.0).arms for i in ids
    ]


def test_unfamiliar_images_are_picked_at_their_rate_through_drift() -> None:
    """A changed world must not flood the labelers, nor go unseen."""
    sampler = Sampler("m", drawn_rate=0.0, other_rate=0.05)
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(0, 1, 3000), rng.normal(6, 2, 3000)])
    picked = np.array(
        [
            "unfamiliar" in sampler.pick(f"s{i}", answer(0.9, float(s)), MANIFEST, at=0.0).arms
            for i, s in enumerate(scores)
        ]
    )
    assert picked[:3000].mean() < 0.06
    assert 0.03 < picked[3000:].mean() < 0.08
    assert not picked[scores < 2.0].any()


def test_nothing_found_is_worth_a_look() -> None:
    """Missed objects look exactly like this."""
    manifest = Manifest("detect", ["cell"], InputSpec((8, 8), "letterbox"), "yolo")
    sampler = Sampler("m", drawn_rate=0.0, other_rate=0.2)
    box = [Box("cell", 0, 0, 4, 4, 0.9)]
    picks = [sampler.pick(f"s{i}", answer(0.0, None, [] if i % 2 else box), manifest, at=0.0).arms for i in range(2000)]
    assert all("empty" not in arms for arms in picks[::2])
    assert 0.1 < np.mean(["empty" in arms for arms in picks]) < 0.3


@pytest.mark.parametrize("target", [0.02, 0.05, 0.1])
def test_the_quantile_holds_its_target(target: float) -> None:
    """A budget is a rate, not a number."""
    quantile, rng = OnlineQuantile(target), np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 1, 5000), rng.normal(5, 3, 5000)])
    assert np.mean([quantile.exceeds(v) for v in values]) == pytest.approx(target, rel=0.15)


def test_the_budget_closes_the_tap_before_the_draw() -> None:
    """A drawn sample is never thrown away later, so the rate must fall first."""
    settings = load(label_rate=0.1, drawn_share=0.5, labels_per_day=100, max_open_tasks=50)
    assert rates(settings, open_tasks=0, queued_today=0) == (0.05, 0.05)
    assert rates(settings, open_tasks=45, queued_today=0) == pytest.approx((0.025, 0.025))
    assert rates(settings, open_tasks=50, queued_today=0) == (0.0, 0.0)
    assert rates(settings, open_tasks=0, queued_today=120) == (0.0, 0.0)
    assert rates(load(labels_per_day=0), open_tasks=0, queued_today=0) == (0.0, 0.0)


def test_doubt_and_strangeness_both_raise_the_priority() -> None:
    """The most valuable task is the one that a labeler sees next."""
    sure, unsure, strange = (priority(answer(m, o), MANIFEST) for m, o in ((0.95, 0.0), (0.2, 0.0), (0.95, 8.0)))
    assert sure < unsure <= 1
    assert sure < strange <= 1


def test_the_order_of_drawn_samples_says_nothing_about_them() -> None:
    """If people stop half-way, what they answered must still stand for the traffic."""
    sampler = Sampler("m", drawn_rate=1.0, other_rate=0.0)
    sure, unsure = (sampler.pick(f"s{m}", answer(m), MANIFEST, at=1_000.0) for m in (0.99, 0.01))
    later = sampler.pick("s3", answer(0.5), MANIFEST, at=1_001.0)
    assert sure.arms == unsure.arms == later.arms == ["drawn"]
    assert sure.priority == unsure.priority < later.priority < 0.5


def pick_all(sampler: Sampler, margins: np.ndarray, ood: np.ndarray | None = None) -> list[list[str]]:
    strange = np.zeros(len(margins)) if ood is None else ood
    return [
        sampler.pick(f"s{i}", answer(float(m), float(o)), MANIFEST, at=0.0).arms
        for i, (m, o) in enumerate(zip(margins, strange, strict=True))
    ]


@pytest.mark.parametrize("arms", [["margin"], ["unfamiliar", "diverse"], ["unfamiliar", "empty", "weak", "diverse"]])
def test_all_arms_together_spend_what_the_budget_says(arms: list[str]) -> None:
    """An arm that finds nothing leaves its share to the others; one that finds much takes nobody else's."""
    rng = np.random.default_rng(5)
    sampler = Sampler("m", drawn_rate=0.03, other_rate=0.03, arms=arms)
    margins = np.concatenate([rng.beta(8, 1, 6000), rng.beta(2, 2, 6000)])
    strange = np.concatenate([np.zeros(6000), rng.normal(1.5, 2, 6000)])
    picks = pick_all(sampler, margins, strange)
    assert np.mean([bool(p) for p in picks]) == pytest.approx(0.06, abs=0.006)
    for start in range(0, 12_000, 2000):
        others = sum(bool(p) and p[0] != "drawn" for p in picks[start : start + 2000])
        assert 0.02 < others / 2000 < 0.04


def test_what_a_burst_took_too_much_is_paid_back() -> None:
    """A changed world costs some labels more at once; over the day the budget holds."""
    quantile, rng = OnlineQuantile(0.05), np.random.default_rng(8)
    values = np.concatenate([rng.normal(0, 1, 2000), rng.normal(40, 3, 12_000)])
    picks = np.array([quantile.exceeds(float(v)) for v in values])
    assert picks[2000:3000].mean() < 0.09
    assert picks.mean() == pytest.approx(0.05, rel=0.02)


def test_the_most_doubtful_are_picked_by_doubt() -> None:
    """A rate says how many; the score says which."""
    margins = np.random.default_rng(6).random(8000)
    picks = pick_all(Sampler("m", drawn_rate=0.0, other_rate=0.1, arms=["margin"]), margins)
    chosen = np.array([bool(p) for p in picks])
    chosen[:500] = False
    assert np.quantile(margins[chosen], 0.9) < 0.2


def test_a_weak_spot_is_named_in_the_reason() -> None:
    """The labeler reads why, and the collection is counted."""
    sampler = Sampler("m", drawn_rate=0.0, other_rate=0.2, arms=["weak"])
    sampler.set_focus(Focus([Spot("a", None, 3.0, "asked for by kim: class 'a', 0 of 5 collected", "c1")]))
    picks = [sampler.pick(f"s{i}", answer(0.5), MANIFEST, at=0.0) for i in range(300)]
    found = [p for p in picks if p.arms]
    assert found
    assert {p.collection_id for p in found} == {"c1"}
    assert "asked for by kim" in found[0].reason
    assert {p.collection_id for p in picks if not p.arms} <= {None}


def test_an_unknown_arm_stops_the_start() -> None:
    """A misspelt arm would silently pick nothing."""
    assert arms_of(load(arms="margin, unfamiliar,margin")) == ["margin", "unfamiliar"]
    with pytest.raises(SetupError, match="margn"):
        arms_of(load(arms="margn"))


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_without_a_budget_picks_nothing(name: str) -> None:
    """Zero labels a day means zero."""
    sampler = Sampler("m", drawn_rate=0.0, other_rate=0.0, arms=[name])
    sampler.set_focus(Focus([Spot("a", None, 1.0, "weak")]))
    assert not any(pick_all(sampler, np.random.default_rng(7).random(500), np.full(500, 9.0)))
