"""What an answer looks like: to the log, to a client of ours, and to a client that was written for Roboflow.

    engine.Answer -> compose -> Entry(reply in the wanted form, log row, label task)

The reply has the words of the Ultralytics Platform for each finding (`name`, `class`, `confidence`, `box`) and ours around
them. The log row is the same whatever form the caller asked for, and whether the answer was withheld from it or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.engine import Answer
from serving.log import Entry
from serving.metrics import Metrics
from sutdol.abstention import abide
from sutdol.sampling import is_unfamiliar, uniform
from sutdol.tables import LabelTask, PredictionRow, new_id, now
from sutdol.types import Prediction


class Corners(msgspec.Struct):
    """Pixels of the upright image: x to the right, y down."""

    x1: float
    y1: float
    x2: float
    y2: float


class Found(msgspec.Struct, omit_defaults=True):
    """One class, or one object with its box; `confidence` is calibrated, in [0, 1]."""

    name: str
    index: int = msgspec.field(name="class")
    """Place in the model's class list; it never changes."""
    confidence: float
    box: Corners | None = None


class Queued(msgspec.Struct):
    """The image was picked for labelling."""

    arms: list[str]
    """drawn (by chance), or one of `sampling.ARMS`: unfamiliar, empty, disagree, weak, diverse, margin."""
    reason: str


class Size(msgspec.Struct):
    """Pixels of the upright image (EXIF orientation applied)."""

    width: int
    height: int


class Reply(msgspec.Struct):
    """The answer for one image; it is in the log under `prediction_id`."""

    prediction_id: str
    model: str
    version: int
    task: str
    confidence: float
    """Of the best prediction, calibrated; 0 when a detector found nothing."""
    ood_score: float | None
    """How strange the image is, in standard deviations of familiar ones; null when the model cannot tell."""
    unfamiliar: bool
    queued: Queued | None
    predictions: list[Found]
    """Best first; for classification at most five."""
    image: Size
    duration_ms: float
    """From the accepted body to the answer, before its commit."""
    unsure: bool | msgspec.UnsetType = msgspec.UNSET
    """Only with `max_risk`: true when no answer is good enough for that risk; `predictions` is empty then."""


def as_json(reply: Reply) -> bytes:
    """Our own form."""
    return msgspec.json.encode(reply)


def as_roboflow(reply: Reply) -> bytes:
    """The form of Roboflow's inference server: boxes by centre and size, classes with `top`, labels by name."""
    answer: dict[str, Any] = {
        "inference_id": reply.prediction_id,
        "time": round(reply.duration_ms / 1000, 6),
        "image": reply.image,
    }
    if reply.task == "detect":
        answer["predictions"] = [_by_centre(found, reply.prediction_id, i) for i, found in enumerate(reply.predictions)]
    elif reply.task == "multilabel":
        scores = {f.name: {"class_id": f.index, "confidence": f.confidence} for f in reply.predictions}
        answer |= {"predictions": scores, "predicted_classes": list(scores)}
    else:
        answer["predictions"] = [_by_class(found) for found in reply.predictions]
        answer |= {"top": reply.predictions[0].name if reply.predictions else "", "confidence": reply.confidence}
    if reply.unsure is not msgspec.UNSET:
        answer["unsure"] = reply.unsure
    return msgspec.json.encode(answer)


FORMATS: dict[str, Callable[[Reply], bytes]] = {"sutdol": as_json, "roboflow": as_roboflow}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants beyond the answer: in which form, and how sure it must be."""

    render: Callable[[Reply], bytes] = as_json
    max_risk: float | None = None


PLAIN = Ask()


def compose(answer: Answer, metrics: Metrics, keep_share: float = 0.0) -> Entry:
    """The log row, the label task if it was picked, and the reply of one answer.

    Args:
        keep_share: of the images that no arm picked, kept by their content; for labels that are made without people.
    """
    item, loaded, image, prediction, picked = answer.item, answer.loaded, answer.image, answer.prediction, answer.picked
    ask: Ask = item.ask or PLAIN
    manifest = loaded.predictor.manifest
    at, prediction_id = now(), new_id()
    unfamiliar = is_unfamiliar(prediction, manifest)
    said: Prediction = prediction
    unsure: bool | msgspec.UnsetType = msgspec.UNSET
    if ask.max_risk is not None:
        said, unsure = abide(prediction, manifest, max_risk=ask.max_risk)
    reply = Reply(
        prediction_id=prediction_id,
        model=loaded.model,
        version=loaded.version,
        task=manifest.task,
        confidence=prediction.confidence,
        ood_score=prediction.ood_score,
        unfamiliar=unfamiliar,
        queued=Queued(picked.arms, picked.reason) if picked.arms else None,
        predictions=_found(said, manifest.classes),
        image=Size(image.width_px, image.height_px),
        duration_ms=round(answer.duration_ms, 3),
        unsure=unsure,
    )
    logged = {"classes": msgspec.to_builtins(prediction.classes), "boxes": msgspec.to_builtins(prediction.boxes)}
    row = {
        "id": prediction_id,
        "at": at,
        "model": loaded.model,
        "version": loaded.version,
        "sample_id": image.sample_id,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "answer": logged,
        "confidence": prediction.confidence,
        "raw_confidence": prediction.raw_confidence,
        "margin": prediction.margin,
        "ood_score": prediction.ood_score,
        "inclusion_probability": picked.inclusion_probability,
        "arms": picked.arms,
        "duration_ms": answer.duration_ms,
        "key_id": item.key_id,
        "brightness": answer.appearance.brightness,
        "sharpness": answer.appearance.sharpness,
        "colour": answer.appearance.colour,
        "fingerprint": answer.appearance.fingerprint,
    }
    metrics.predictions.labels(loaded.model, str(loaded.version)).inc()
    if unfamiliar:
        metrics.unfamiliar.labels(loaded.model).inc()
    for arm in picked.arms:
        metrics.picked.labels(loaded.model, arm).inc()
    task = None
    if picked.arms:
        arm = "drawn" if "drawn" in picked.arms else picked.arms[0]
        task = LabelTask(
            model=loaded.model,
            sample_id=image.sample_id,
            prediction_id=prediction_id,
            version=loaded.version,
            arm=arm,
            reason=picked.reason,
            inclusion_probability=picked.inclusion_probability if arm == "drawn" else None,
            priority=picked.priority,
            uncertainty=1.0 - prediction.margin,
            ood_score=prediction.ood_score,
            answer=logged,
            scores=answer.scores,
            features=answer.features,
            collection_id=picked.collection_id,
        )
    kept = image if picked.arms or uniform("keep", image.sample_id) < keep_share else None
    return Entry(item.ticket, ask.render(reply), ((PredictionRow, row),), image=kept, task=task)


def _found(prediction: Prediction, classes: list[str]) -> list[Found]:
    if prediction.boxes:
        index = {name: i for i, name in enumerate(classes)}
        return [
            Found(b.label, index[b.label], b.confidence or 0.0, Corners(b.x1, b.y1, b.x2, b.y2))
            for b in prediction.boxes
        ]
    return [Found(c.label, c.index, c.confidence) for c in prediction.classes]


def _by_class(found: Found) -> dict[str, Any]:
    return {"class": found.name, "class_id": found.index, "confidence": found.confidence}


def _by_centre(found: Found, prediction_id: str, i: int) -> dict[str, Any]:
    box = found.box or Corners(0.0, 0.0, 0.0, 0.0)
    return {
        "x": (box.x1 + box.x2) / 2,
        "y": (box.y1 + box.y2) / 2,
        "width": box.x2 - box.x1,
        "height": box.y2 - box.y1,
        **_by_class(found),
        "detection_id": f"{prediction_id}-{i}",
    }
