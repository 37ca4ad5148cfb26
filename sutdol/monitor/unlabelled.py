"""How right the model probably is, without a single label; worth something only while its world is the one it was judged in.

    beliefs of the judged items, right or wrong there + beliefs of the traffic -> ATC and CBPE
    signals of the judged items x signals of the traffic -> reasons to hide both

Over 17 kinds of damaged images both were nearly always too optimistic, by up to 80 points. So they are hidden while a drift
alarm is on, while there are too few judged items, and whenever the traffic looks different from the judged items: that
comparison matters where a version meets another world from its first image on, which no chart can see as a change.

Sources: average thresholded confidence (ATC), Garg et al. 2022; confidence-based performance estimation (CBPE), NannyML.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sutdol.monitor import drift
from sutdol.monitor.estimate import Float

MIN_JUDGED = 50
MIN_ANSWERS = 100
LATEST = 500
"""Answers that both numbers and the comparison look at: the newest."""


@dataclass(frozen=True)
class Unlabelled:
    """Shares in [0, 1]; both None exactly when `hidden` says why."""

    atc: float | None
    cbpe: float | None
    hidden: str = ""


def threshold(belief: Float, right: Float) -> float:
    """ATC's threshold: as many judged items lie below it as are wrong.

    >>> threshold(np.array([0.2, 0.6, 0.9, 0.95]), np.array([0.0, 1.0, 1.0, 1.0]))
    0.6
    """
    wrong = round(float((1 - right).sum()))
    ordered = np.sort(belief)
    return float(ordered[wrong]) if wrong < len(ordered) else float(np.nextafter(ordered[-1], 2.0))


def unlabelled(
    judged: drift.Batch,
    judged_belief: Float,
    judged_right: Float,
    traffic: drift.Batch,
    traffic_belief: Float,
    *,
    alarm: str = "",
) -> Unlabelled:
    """Both numbers for the newest traffic, or why they are hidden.

    Args:
        judged: test items of the version as it saw them, with its beliefs and whether it was right (n,).
        traffic: recent answers, oldest first.
        alarm: the drift alarm's text while one is on.
    """
    if alarm:
        return Unlabelled(None, None, f"a drift alarm is on: {alarm}")
    if len(judged) < MIN_JUDGED:
        return Unlabelled(None, None, f"{MIN_JUDGED} judged items are needed, there are {len(judged)}")
    if len(traffic) < MIN_ANSWERS:
        return Unlabelled(None, None, f"{MIN_ANSWERS} recent answers are needed, there are {len(traffic)}")
    traffic, traffic_belief = traffic.part(len(traffic) - LATEST, len(traffic)), traffic_belief[-LATEST:]
    reference = drift.learn(judged)
    different = drift.differs(reference, traffic)
    usual, now = float(judged.unfamiliar.mean()), float(traffic.unfamiliar.mean())
    error = (max(usual * (1 - usual), 0.05 * 0.95) * (1 / len(judged) + 1 / len(traffic))) ** 0.5
    if now > usual + 3 * error:
        different.append(drift.UNFAMILIAR)
    if different:
        names = ", ".join(name.replace("_", " ") for name in different)
        return Unlabelled(None, None, f"the traffic does not look like what the version was judged on: {names}")
    cut = threshold(judged_belief, judged_right)
    return Unlabelled(float((traffic_belief >= cut).mean()), float(traffic_belief.mean()))
