"""A version is judged on frozen items by the very predictor that will serve it.

    items + read(sample_id) -> bytes -> admit, decode, Predictor.prepare, run, interpret -> Outcome per item -> metrics

Errors: NotFoundError (a sample's bytes are gone), ImageError, ModelError: an evaluation with holes is no evaluation.
Items count once each, whatever their weight: the test compares versions with each other, it does not estimate traffic
(for that see the live accuracy). ECE and accuracy therefore describe the test split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from retrain import metrics
from retrain.metrics import Outcome
from sutdol import images
from sutdol.appearance import appearance
from sutdol.errors import InputError
from sutdol.predictor import Predictor
from sutdol.tables import DatasetItem
from sutdol.types import Label, Prediction, Task


@dataclass(frozen=True)
class Evaluated:
    """What one version did on one set of items, in the items' order.

    Attributes:
        classes: those that this version knows.
        score_min: working threshold of a detector; 0 otherwise.
        metrics: see `metrics.classification`, `multilabel`, `detection`; with `latency_ms_p50` of one image.
    """

    task: Task
    classes: list[str]
    score_min: float
    items: list[Outcome]
    metrics: dict[str, Any]

    def to_bytes(self) -> bytes:
        """JSON lines: a head with what the version knows, then one line per item."""
        head = {"task": self.task, "classes": self.classes, "score_min": self.score_min, "metrics": self.metrics}
        return msgspec.json.Encoder().encode_lines([head, *self.items])

    @classmethod
    def from_bytes(cls, data: bytes) -> Evaluated:
        """The inverse of `to_bytes`.

        Raises:
            InputError: not such a file.
        """
        try:
            first, _, rest = data.partition(b"\n")
            head = msgspec.json.decode(first, type=_Head)
            return cls(head.task, head.classes, head.score_min, _LINES.decode_lines(rest), head.metrics)
        except msgspec.MsgspecError as error:
            raise InputError(f"evaluation file: {error}") from error


class _Head(msgspec.Struct):
    task: Task
    classes: list[str]
    score_min: float
    metrics: dict[str, Any]


_LINES = msgspec.json.Decoder(Outcome)


def evaluate(
    predictor: Predictor,
    items: Sequence[DatasetItem],
    read: Callable[[str], bytes],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Judge `predictor` on `items`.

    Args:
        read: a sample's bytes by its id, `lambda i: store.get(f"samples/{i}")`.
        progress: called with (items done, items in all); may raise `Cancelled`.

    Raises:
        NotFoundError, ImageError, ModelError: see the top of this file.
    """
    manifest = predictor.manifest
    judged = predictor.evaluating() if manifest.task == "detect" else predictor
    score_min = manifest.score_min if manifest.task == "detect" else 0.0
    outcomes, times_ms = [], []
    for number, item in enumerate(items, 1):
        data = read(item.sample_id)
        begun = time.perf_counter()
        image = images.admit(data)
        tensor = judged.prepare(images.decode(image.data, cover_hw=judged.cover((image.height_px, image.width_px))))
        prediction = judged.interpret(judged.run(tensor[None]), 0, (image.height_px, image.width_px))
        times_ms.append((time.perf_counter() - begun) * 1000)
        found = outcome_of(manifest.task, item.sample_id, msgspec.convert(item.value, Label), prediction, score_min)
        outcomes.append(msgspec.structs.replace(found, brightness=appearance(tensor, manifest.input).brightness))
        if progress is not None:
            progress(number, len(items))
    numbers = summarise(manifest.task, outcomes, manifest.classes, score_min=score_min)
    numbers["latency_ms_p50"] = float(np.median(times_ms)) if times_ms else None
    return Evaluated(manifest.task, list(manifest.classes), score_min, outcomes, numbers)


def outcome_of(task: Task, sample_id: str, truth: Label, prediction: Prediction, score_min: float) -> Outcome:
    """Compare one prediction with the truth; for `detect` the prediction must hold the full ranking."""
    if task == "detect":
        detections = metrics.match_image(prediction.boxes, truth.boxes)
        reported = [d for d in detections if d.score >= score_min]
        hits = sum(d.hits & 1 for d in reported)
        boxes = [box for box in prediction.boxes if (box.confidence or 0.0) >= score_min]
        pairs, found = metrics.pair_boxes(boxes, truth.boxes)
        return Outcome(
            sample_id=sample_id,
            correct=hits == len(truth.boxes) == len(reported),
            truth=[box.label for box in truth.boxes],
            predicted=[d.label for d in reported],
            confidence=detections[0].score if detections else 0.0,
            ood_score=prediction.ood_score,
            detections=detections,
            boxes=boxes,
            pairs=pairs,
            found=found,
            width_px=prediction.width_px,
            height_px=prediction.height_px,
        )
    predicted = [c.label for c in prediction.classes[: 1 if task == "classify" else None]]
    return Outcome(
        sample_id=sample_id,
        correct=sorted(predicted) == sorted(truth.classes),
        truth=list(truth.classes),
        predicted=predicted,
        confidence=prediction.confidence,
        ood_score=prediction.ood_score,
        scores=[(c.label, c.confidence) for c in prediction.classes],
        width_px=prediction.width_px,
        height_px=prediction.height_px,
    )


def summarise(
    task: Task, outcomes: Sequence[Outcome], classes: Sequence[str], *, score_min: float = 0.0
) -> dict[str, Any]:
    """The task's metrics over any part of the outcomes."""
    if task == "detect":
        return metrics.detection(outcomes, classes, score_min=score_min)
    return (metrics.classification if task == "classify" else metrics.multilabel)(outcomes, classes)
