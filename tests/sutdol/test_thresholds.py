"""What accuracy costs: the sweep is right, its ends are defined, and a risk that was promised is kept."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from sutdol import scoring, thresholds
from sutdol.abstention import least_confidence
from sutdol.errors import InputError
from sutdol.thresholds import RISKS, THRESHOLDS, Study, study, sweep
from sutdol.types import InputSpec, Manifest


def answers(n: int, seed: int, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a calibrated model of five classes, and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (n, 5))
    return logits, np.array([rng.choice(5, p=p) for p in scoring.softmax(logits)])


def test_more_withheld_means_more_right() -> None:
    """That is the trade; a study that shows anything else is wrong."""
    found = study("classify", *answers(4000, 0), temperature=1.0, split="val")
    one = found.temperatures.index(1.0)
    rejected, accuracy = found.rejected[one], [a for a in found.accuracy[one] if a is not None]
    assert rejected[0] == 0.0
    assert rejected == sorted(rejected)
    assert accuracy[-1] > accuracy[0] + 0.15
    assert found.ece[one] == min(found.ece) < 0.03


def test_the_sweep_is_counted_by_hand() -> None:
    """Four answers, each threshold counted."""
    accuracy, rejected, _ = sweep(np.array([0.55, 0.75, 0.92, 0.97]), np.array([False, True, False, True]))
    table = dict(zip(THRESHOLDS, zip(accuracy, rejected, strict=True), strict=True))
    assert table[0.0] == (0.5, 0.0)
    assert table[0.6] == pytest.approx((2 / 3, 0.25))
    assert table[0.95] == (1.0, 0.75)
    assert table[0.99] == (None, 1.0)


@pytest.mark.parametrize("task", ["classify", "multilabel", "detect"])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_every_task_and_size_has_a_study(task: str, n: int) -> None:
    """No val images, one, a few: nothing is shown then, and nothing breaks."""
    rng = np.random.default_rng(n)
    scores = rng.normal(0, 1, n) if task == "detect" else rng.normal(0, 1, (n, 3))
    truth = {"classify": rng.integers(0, 3, n), "multilabel": rng.random((n, 3)) < 0.5, "detect": rng.random(n) < 0.5}
    found = study(task, scores, truth[task], temperature=0.7, split="val")  # type: ignore[arg-type]
    assert found.n == n
    assert all(kept.confidence is None for kept in found.accept_at if kept.missing)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Study) == found


@pytest.mark.parametrize("wrong", [np.array([1.2, 0.5]), np.array([np.nan, 0.5]), np.array([0.5])])
def test_what_is_no_confidence_is_refused(wrong: np.ndarray) -> None:
    """A NaN would count as never answered."""
    with pytest.raises(InputError):
        sweep(wrong, np.array([True, False]))
    with pytest.raises(InputError):
        study("classify", np.zeros((2, 3)), np.zeros(3, int), temperature=1.0, split="val")


def test_a_promised_risk_is_kept() -> None:
    """Nine times in ten, over many models: the lowest threshold that looked good would keep it every second time."""
    broken = dict.fromkeys(RISKS, 0)
    tried = dict.fromkeys(RISKS, 0)
    logits, labels = answers(40_000, 1)
    confidence, right = scoring.softmax(logits).max(axis=1), logits.argmax(axis=1) == labels
    for seed in range(60):
        pick = np.random.default_rng(seed).choice(len(labels), 400, replace=False)
        found = study("classify", logits[pick], labels[pick], temperature=1.0, split="val")
        for kept in found.accept_at:
            if kept.confidence is not None:
                tried[kept.risk] += 1
                broken[kept.risk] += bool(1 - right[confidence >= kept.confidence].mean() > kept.risk)
    assert tried[0.1] > 50
    assert all(broken[risk] <= max(3, 0.2 * tried[risk]) for risk in RISKS)


def test_a_version_answers_by_what_was_shown_and_else_by_its_confidence() -> None:
    """A caller says how much may be wrong, not which number a threshold must have."""
    plain = Manifest(task="classify", classes=["a", "b"], input=InputSpec((8, 8)), family="x")
    shown = msgspec.structs.replace(plain, accept_at=[(0.02, 0.93), (0.1, 0.6)])
    assert least_confidence(plain, 0.05) == pytest.approx(0.95)
    assert least_confidence(shown, 0.05) == 0.93
    assert least_confidence(shown, 0.1) == 0.6
    assert least_confidence(shown, 0.01) == pytest.approx(0.99)
    assert thresholds.pairs(study("detect", np.zeros(3), np.ones(3, bool), temperature=1.0, split="val")) == []
