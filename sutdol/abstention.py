"""When a model had better say "I am unsure": one function from a prediction and the risk a caller accepts to the answer.

    Prediction, Manifest, max_risk -> abide -> Prediction (what may be said), unsure

How sure is sure enough was shown on held-out data when the version was made (`thresholds`): the answers that are given are
wrong with at most the accepted risk, all in all. Where too few labels could show that, the calibrated confidence itself must
do: 1 - confidence is the chance of being wrong. `classify` and `multilabel` answer or do not; a
detector leaves out the boxes that are too risky, and is unsure when none remains: a detector that found nothing has no
confidence in that either, because a missed object looks exactly like an empty image.
"""

from __future__ import annotations

import msgspec

from sutdol.errors import InputError
from sutdol.types import Manifest, Prediction


def least_confidence(manifest: Manifest, max_risk: float) -> float:
    """The calibrated confidence from which answers are wrong with at most `max_risk`, in [0, 1].

    Raises:
        InputError: a risk that is no probability.
    """
    if not 0.0 <= max_risk <= 1.0:
        raise InputError(f"max_risk: expected a number in [0, 1], found {max_risk}")
    shown = [confidence for risk, confidence in manifest.accept_at if risk <= max_risk]
    return shown[-1] if shown else 1.0 - max_risk


def abide(prediction: Prediction, manifest: Manifest, *, max_risk: float) -> tuple[Prediction, bool]:
    """What may be said at that risk, and whether the model is unsure; scores stay as they were, findings are left out.

    Raises:
        InputError: a risk that is no probability.
    """
    least = least_confidence(manifest, max_risk)
    if manifest.task == "detect":
        boxes = [box for box in prediction.boxes if (box.confidence or 0.0) >= least]
        return msgspec.structs.replace(prediction, boxes=boxes), not boxes
    if prediction.confidence >= least:
        return prediction, False
    return msgspec.structs.replace(prediction, classes=[]), True
