"""Above which sureness a model may label by itself: the error stays below a target, with a confidence.

    scores and outcomes of a plain random sample of the traffic -> learn_then_test -> Rule (threshold, or labels missing)

Pure but for `request` and `hold`.

A fixed threshold such as .9 keeps its promise never or always, depending on the model; the lowest threshold that looks good
on the labels breaks it in a third to three quarters of all cases. Here thresholds are tested from strict to loose and the
first that fails ends it, so all of them together are wrong with at most DELTA.

Source: learn then test, Angelopoulos et al. 2021 (arXiv:2110.01052).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sqlmodel import Session

from sutdol import jobs, registry
from sutdol.errors import InputError
from sutdol.events import tell
from sutdol.monitor.estimate import Float
from sutdol.scoring import log_odds

DELTA = 0.1
"""How often, over many calibrations, the error may be above its target."""
STEPS = 20
"""Thresholds that are tried, from strict to loose."""
LIMIT = 500
"""Auto-labels made by one job, unless it says otherwise."""
_STRANGE = (-2.0, 8.0)
_STRANGENESS = 2.0
"""Log-odds that one standard deviation of strangeness costs. With 2 instead of 1 or 0 three nets label more under the same
error; the promise does not depend on it."""


@dataclass(frozen=True)
class Rule:
    """What the labels allow. `threshold` is None when they allow nothing; `missing` is how many labels too few there are.

    Attributes:
        labels, errors: of the calibration, above the threshold.
        coverage: share of the calibration above the threshold.
    """

    threshold: float | None
    labels: int
    errors: int
    coverage: float
    missing: int


def labels_needed(target: float, delta: float = DELTA) -> int:
    """Labels without a single error that prove an error below `target` with confidence 1 - `delta`.

    >>> labels_needed(0.05), labels_needed(0.02), labels_needed(0.01)
    (45, 114, 230)
    """
    if not 0 < target <= 0.5:
        raise InputError(f"auto-labels: expected a target error in (0, 0.5], found {target}")
    return math.ceil(math.log(delta) / math.log1p(-target))


def learn_then_test(score: Float, right: Float, *, target: float, delta: float = DELTA) -> Rule:
    """The loosest threshold whose error is below `target`, so that all of them together fail with at most `delta`.

    Args:
        score: larger is surer (n,).
        right: 0 or 1 (n,).

    Raises:
        InputError: shapes that do not fit, values that are not finite, a target outside (0, 0.5].
    """
    if score.shape != right.shape or score.ndim != 1 or not (np.isfinite(score).all() and np.isfinite(right).all()):
        raise InputError(f"auto-labels: expected finite scores and outcomes (n,), found {score.shape}, {right.shape}")
    needed, n = labels_needed(target, delta), len(score)
    if n < needed:
        return Rule(None, n, 0, 0.0, needed - n)
    order = np.argsort(-score, kind="stable")
    ordered, errors = score[order], np.cumsum(1 - right[order])
    best = Rule(None, 0, 0, 0.0, 0)
    for place in np.unique(np.linspace(needed, n, STEPS).astype(int)):
        threshold = float(ordered[place - 1])
        above = int(np.searchsorted(-ordered, -threshold, "right"))  # ties come along
        wrong = round(float(errors[above - 1]))
        if _at_most(wrong, above, target) > delta:
            break
        best = Rule(threshold, above, wrong, above / n, 0)
    return best


def score_of(chance: Float, ood: Float) -> Float:
    """Sureness of answers (n,): log-odds of being right, less for strange images; a missing OOD score counts as average."""
    return log_odds(chance) - _STRANGENESS * np.clip(np.nan_to_num(ood, nan=0.0), *_STRANGE)


def request(session: Session, model: str, *, target: float, limit: int = LIMIT) -> str | None:
    """Send the job; its id, or None when the same is waiting already.

    Raises:
        InputError: a target outside (0, 0.5]. NotFoundError: no such model.
    """
    labels_needed(target)
    registry.get_model(session, model)
    payload = {"model": model, "target": target, "limit": limit}
    return jobs.send(session, "retrain.autolabel", payload, unique_key=f"retrain.autolabel:{model}")


def hold(session: Session, model: str, held: bool, *, who: str) -> None:
    """Stop labelling `model` without people, or allow it again; what was labelled stays.

    Raises:
        NotFoundError: no such model.
    """
    row = registry.get_model(session, model)
    if row.auto_labels_held != held:
        row.auto_labels_held = held
        session.add(row)
        text = f"{model}: nothing is labelled without people any more" if held else f"{model}: auto-labels are allowed"
        tell(session, "auto-labels.held" if held else "auto-labels.allowed", text, model=model, who=who)


def _at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), 0 < p < 1."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return min(1.0, math.fsum(math.exp(v) for v in logs))
