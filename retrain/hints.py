"""What the curves say, in words: over-fitting, an unstable loss, epochs too few, nothing learnt.

    every epoch's metrics so far -> hints(history) -> a few sentences, each with its remedy

They are hints and not verdicts: nothing stops because of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

SCORES = ("val/accuracy", "val/mAP50")
PATIENCE = 5
"""Epochs that a curve must go the wrong way before anybody is told."""
JUMP = 3.0
"""A loss so many times the median of the epochs before it has jumped."""


def score_of(metrics: dict[str, float]) -> float | None:
    """The number by which epochs and candidates of one task are compared; larger is better."""
    for name in SCORES:
        if name in metrics and math.isfinite(metrics[name]):
            return metrics[name]
    loss = metrics.get("val/loss")
    return -loss if loss is not None and math.isfinite(loss) else None


def hints(history: Sequence[dict[str, float]], epochs: int) -> list[str]:
    """Sentences about a training that has seen `history`, an entry per epoch, of `epochs`.

    >>> hints([{"train/loss": 1 / i, "val/loss": 1 + i / 10, "val/accuracy": 0.5} for i in range(1, 11)], 10)[0][:12]
    'over-fitting'
    """
    found: list[str] = []
    train, val = _curve(history, "train"), _curve(history, "val")
    if len(val) > PATIENCE and len(train) > PATIENCE:
        best = min(range(len(val)), key=lambda i: val[i])
        since = len(val) - 1 - best
        if since >= PATIENCE and val[-1] > 1.05 * val[best] and train[-1] < train[best]:
            found.append(
                f"over-fitting: the loss on val has risen since epoch {best + 1} while the one on train still falls; "
                "set patience, augment more, or label more"
            )
    jumps = [i + 1 for i in range(3, len(train)) if train[i] > JUMP * median(train[:i])]
    if jumps:
        found.append(f"unstable: the training loss jumped at epoch {jumps[-1]}; lower lr, or raise batch")
    scores = [s for s in (score_of(m) for m in history) if s is not None]
    if len(history) >= epochs > 2 * PATIENCE and len(scores) > PATIENCE:
        gain = max(scores[-2:]) - max(scores[:-PATIENCE])
        if gain > 0.01:
            found.append(f"not finished: the last {PATIENCE} epochs still gained {100 * gain:.1f} points; raise epochs")
    if len(scores) > 2 * PATIENCE and max(scores) <= 0.02:
        found.append("nothing learnt: the score on val is still zero; look at the labels, or raise lr")
    return found


def _curve(history: Sequence[dict[str, float]], part: str) -> list[float]:
    """The sum of a part's losses per epoch, for the epochs that have them."""
    curve = []
    for metrics in history:
        own = [v for name, v in metrics.items() if name.startswith(f"{part}/") and name.endswith("loss")]
        whole = metrics.get(f"{part}/loss")
        if own:
            curve.append(whole if whole is not None else sum(own))
    return curve
