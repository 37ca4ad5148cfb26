"""Where a model is weak, and what people asked to have collected: what the arm `weak` looks for.

    last evaluation (confusion matrix, or average precision per class) -+
                                                                        +-> Focus -> score and reason for one prediction
    collections that people opened ("50 more like this cell")  ---------+

A spot is a class, or a confused pair: truth and what it is taken for. The truth of a new image is unknown, so its score is
the weight of the spot times the model's own probability that the image belongs there. Collections by hand count more than
anything the matrix says, as long as they are open.

Errors: NotFoundError for an unknown model or class, InputError for a count that is not positive or a pair of one class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from sutdol import registry
from sutdol.errors import InputError, unknown
from sutdol.events import tell
from sutdol.scoring import binary_entropy
from sutdol.tables import Collection, Evaluation, LabelTask, now
from sutdol.types import Prediction

MIN_CONFUSED = 2
"""A confusion that happened once is an accident."""
MIN_ITEMS = 5
SPOTS = 5
"""So many weak classes, and so many confused pairs, are looked for at a time."""
BY_HAND = 3.0
GONE = ("withdrawn", "merged", "unlabelable")
"""States of tasks that bring no label, so they do not count as collected."""


@dataclass(frozen=True)
class Spot:
    """One thing to look for.

    Attributes:
        truth: the class that it really is.
        taken_for: what the model says instead; None for the class as a whole.
        weight: in (0, 1] from an evaluation, above 1 by hand.
        reason: in words for the labeler.
        collection_id: the collection that asked for it, None when the evaluation did.
    """

    truth: str
    taken_for: str | None
    weight: float
    reason: str
    collection_id: str | None = None


@dataclass(frozen=True)
class Focus:
    """What to look for now; empty spots find nothing."""

    spots: list[Spot] = field(default_factory=list)

    def look(self, prediction: Prediction) -> tuple[float, Spot | None]:
        """(score, the spot it comes from): larger means more likely to be of use; 0 and None when no spot fits."""
        best, found = 0.0, None
        for spot in self.spots:
            score = spot.weight * _belongs(prediction, spot)
            if score > best:
                best, found = score, spot
        return best, found


def focus_of(metrics: dict[str, Any], collections: Iterable[tuple[Collection, int]] = ()) -> Focus:
    """Spots of an evaluation's metrics (those of `retrain.metrics`; {} for none) and of open collections.

    Args:
        collections: each with the number of samples it has already.
    """
    spots = [*_confused(metrics), *_weak_classes(metrics)]
    for collection, collected in collections:
        if collected < collection.wanted:
            name = describe(collection.truth, collection.taken_for)
            reason = f"asked for by {collection.who}: {name}, {collected} of {collection.wanted} collected"
            spots.append(Spot(collection.truth, collection.taken_for, BY_HAND, reason, collection.id))
    return Focus(spots)


def read_focus(session: Session, model: str, version: int) -> Focus:
    """What to look for in the answers of this version of `model`."""
    judged = (Evaluation.model == model, Evaluation.version == version, Evaluation.split == "test")
    metrics = session.exec(
        select(Evaluation.metrics).where(*judged).order_by(col(Evaluation.at).desc()).limit(1)
    ).first()
    return focus_of(dict(metrics or {}), open_collections(session, model))


def open_collections(session: Session, model: str) -> list[tuple[Collection, int]]:
    """Collections of `model` that nobody closed, oldest first, each with how many samples it has."""
    rows = session.exec(
        select(Collection)
        .where(Collection.model == model, col(Collection.closed_at).is_(None))
        .order_by(col(Collection.created_at))
    ).all()
    if not rows:
        return []
    counted = session.exec(
        select(LabelTask.collection_id, func.count())
        .where(col(LabelTask.collection_id).in_([row.id for row in rows]), col(LabelTask.state).not_in(GONE))
        .group_by(col(LabelTask.collection_id))
    )
    counts = dict(counted.all())
    return [(row, counts.get(row.id, 0)) for row in rows]


def collect(
    session: Session, model: str, truth: str, taken_for: str | None = None, *, wanted: int, who: str
) -> Collection:
    """Ask for `wanted` more samples like one cell of the confusion matrix, or of one class.

    Raises:
        NotFoundError, InputError: see the top of this file.
    """
    row = registry.get_model(session, model)
    for name in filter(None, (truth, taken_for)):
        if name not in row.classes:
            raise unknown("class", name, row.classes)
    if truth == taken_for:
        raise InputError(f"collection: {truth!r} taken for itself is no confusion", hint="name the class alone")
    if wanted < 1:
        raise InputError(f"collection: expected a count of at least 1, found {wanted}")
    collection = Collection(model=model, truth=truth, taken_for=taken_for, wanted=wanted, who=who)
    session.add(collection)
    session.flush()
    text = f"{model}: {wanted} more samples wanted: {describe(truth, taken_for)}"
    tell(session, "collection.opened", text, model=model, collection_id=collection.id, who=who)
    return collection


def end(session: Session, model: str, collection_id: str) -> Collection:
    """Close a collection; closing it twice changes nothing.

    Raises:
        NotFoundError: `model` has no such collection; lists the open ones.
    """
    registry.get_model(session, model)
    row = session.get(Collection, collection_id)
    if row is None or row.model != model:
        raise unknown("collection", collection_id, [open_.id for open_, _ in open_collections(session, model)])
    row.closed_at = row.closed_at or now()
    session.add(row)
    return row


def describe(truth: str, taken_for: str | None) -> str:
    """A spot in words."""
    return f"{truth!r} read as {taken_for!r}" if taken_for else f"class {truth!r}"


def _belongs(prediction: Prediction, spot: Spot) -> float:
    """How likely the image belongs to the spot, in [0, 1]."""
    if prediction.boxes:
        chances = [box.confidence or 0.0 for box in prediction.boxes if box.label == (spot.taken_for or spot.truth)]
        if not chances:
            return 0.0
        return max(chances) if spot.collection_id else float(binary_entropy([max(chances, key=_doubt)])[0])  # type: ignore[arg-type]
    chances_of = {found.label: found.confidence for found in prediction.classes}
    if spot.taken_for is None:
        return chances_of.get(spot.truth, 0.0)
    if not prediction.classes:
        return 0.0
    top = prediction.classes[0].label
    if top == spot.taken_for:
        return chances_of.get(spot.truth, 0.0)
    # The other side of the same border: what the model calls by its right name, and nearly did not.
    return chances_of.get(spot.taken_for, 0.0) if top == spot.truth else 0.0


def _doubt(chance: float) -> float:
    return -abs(chance - 0.5)


def _confused(metrics: dict[str, Any]) -> list[Spot]:
    confusion = metrics.get("confusion") or {}
    names, matrix = confusion.get("classes", []), confusion.get("matrix", [])
    cells = []
    for truth, row in zip(names, matrix, strict=True):
        total = sum(row)
        for taken_for, count in zip(names, row, strict=True):
            if truth != taken_for and count >= MIN_CONFUSED:
                words = f"weak spot: {describe(truth, taken_for)} in {count} of {total} of the last evaluation"
                cells.append(Spot(truth, taken_for, count / total, words))
    return sorted(cells, key=lambda spot: -spot.weight)[:SPOTS]


def _weak_classes(metrics: dict[str, Any]) -> list[Spot]:
    """Classes that do worse than the whole, by recall or average precision; the weight is what they lack."""
    known = {}
    for name, numbers in (metrics.get("per_class") or {}).items():
        value = numbers.get("ap50") if "ap50" in numbers else numbers.get("accuracy")
        if value is not None and numbers.get("n", 0) >= MIN_ITEMS:
            known[name] = float(value)
    if not known:
        return []
    mean, measure = sum(known.values()) / len(known), "AP50" if "map50" in metrics else "recall"
    weak = sorted((value, name) for name, value in known.items() if value < mean and value < 1.0)[:SPOTS]
    return [
        Spot(name, None, 1.0 - value, f"weak class: {name!r} has {measure} {value:.2f} in the last evaluation")
        for value, name in weak
    ]
