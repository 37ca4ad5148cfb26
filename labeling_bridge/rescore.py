"""Open tasks as the champion sees them; shared by push (before they go out) and refresh (after a swap).

    rows of other versions -> image from the store -> Predictor -> row with answer, version and priority of the champion
       -> certain and familiar now, of an arm other than `drawn`, `gold` or a blind one: to be withdrawn

It speaks to no database and no Label Studio: the caller stores the rows.

Errors: ModelError. An image that is gone or cannot be read makes its row unusable, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from sutdol import sampling
from sutdol.errors import ImageError, NotFoundError
from sutdol.predictor import Predictor
from sutdol.stores import Store
from sutdol.tables import LabelTask
from sutdol.types import Manifest, Prediction

CERTAIN_MARGIN = 0.9
REVIEW_ARM = "review"
"""Tasks that show a label of a data set, and not the model's answer; see `review`."""
KEPT_ARMS = ("drawn", "gold", REVIEW_ARM)
"""Never withdrawn: they would bias the estimate of live accuracy, measure labelers, or were asked for by somebody."""
SCORED = ("answer", "version", "priority", "uncertainty", "ood_score", "scores", "features")
"""What scoring changes in a row."""


@dataclass
class Rescored:
    """Every row stands in one of the three lists; those of `scored` carry the new values, detached from any session."""

    scored: list[LabelTask] = field(default_factory=list)
    certain: list[LabelTask] = field(default_factory=list)
    unusable: list[LabelTask] = field(default_factory=list)


def rescore(store: Store, predictor: Predictor, rows: list[LabelTask]) -> Rescored:
    """Predict every row's image with the champion."""
    found = Rescored()
    for row in rows:
        if row.arm == REVIEW_ARM:
            row.version = predictor.version  # or Label Studio would not show it any more
            found.scored.append(row)
            continue
        try:
            prediction, scores, features = predictor.examine(store.get(f"samples/{row.sample_id}"))
        except (ImageError, NotFoundError):
            found.unusable.append(row)
            continue
        if withdrawable(row, prediction, predictor.manifest):
            found.certain.append(row)
            continue
        row.answer = {
            "classes": msgspec.to_builtins(prediction.classes),
            "boxes": msgspec.to_builtins(prediction.boxes),
        }
        row.version, row.scores, row.features = predictor.version, scores, features
        if row.arm not in KEPT_ARMS:  # the order of `drawn` depends on time alone, and gold tasks hide among them
            row.priority = sampling.priority(prediction, predictor.manifest)
        row.uncertainty, row.ood_score = 1.0 - prediction.margin, prediction.ood_score
        found.scored.append(row)
    return found


def withdrawable(task: LabelTask, prediction: Prediction, manifest: Manifest) -> bool:
    """Whether a label of this task would no longer teach the new model anything, and nothing else needs it."""
    if task.arm in KEPT_ARMS or task.blind or task.state == "conflict":
        return False
    return prediction.margin > CERTAIN_MARGIN and not sampling.is_unfamiliar(prediction, manifest)
