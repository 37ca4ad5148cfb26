"""Dataset versions as everybody sees them: found, described in words, counted, compared.

    DatasetVersion -> statistics | diff -> plain dictionaries for the command line and the API

They are frozen by `retrain.datasets`. Items are read in slices, so that a version of a million needs no more memory than one
of a thousand.

Errors: NotFoundError for a version that does not exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, col, select

from sutdol import registry
from sutdol.errors import unknown
from sutdol.tables import DatasetItem, DatasetVersion, Sample
from sutdol.types import Label, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SLICE = 2000
"""Rows that are read at a time."""


def canonical(label: Label) -> str:
    """One text per label: classes sorted, boxes sorted, so that equal labels have equal digests."""
    boxes = sorted((b.label, float(b.x1), float(b.y1), float(b.x2), float(b.y2)) for b in label.boxes)
    return msgspec.json.encode([sorted(label.classes), boxes]).decode()


def class_names(label: Label) -> list[str]:
    """The classes of a label, one entry per class or box."""
    return [*label.classes, *(box.label for box in label.boxes)]


def get_version(session: Session, model: str, number: int | None = None) -> DatasetVersion:
    """Dataset version `number` of `model`, or the newest one.

    Raises:
        NotFoundError: there is no such version; lists those there are.
    """
    registry.get_model(session, model)
    query = select(DatasetVersion).where(DatasetVersion.model == model).order_by(col(DatasetVersion.number).desc())
    found = session.exec(query if number is None else query.where(DatasetVersion.number == number)).first()
    if found is None:
        known = session.exec(select(DatasetVersion.number).where(DatasetVersion.model == model)).all()
        raise unknown("dataset version", number if number is not None else "newest", [str(n) for n in sorted(known)])
    return found


def describe(row: Any, *, name: str | None = None, tags: Iterable[str] | None = None, memo: str | None = None) -> None:
    """Give a Dataset or DatasetVersion a name, tags and a memo; None leaves one as it is."""
    if name is not None:
        row.name = name
    if tags is not None:
        row.tags = sorted(set(tags))
    if memo is not None:
        row.memo = memo


def statistics(session: Session, version: DatasetVersion) -> dict[str, Any]:
    """What a version consists of: images and labels per class and split, imbalance, sizes of photos and boxes.

    Returns:
        images, splits, sources, classes {name: {split: labels}}, imbalance (largest / smallest class of train; None when
        one is missing there), empty (images without any label), photo_px {min, median, max} of the longer side,
        box_share {p5, median, p95} of a box's longer side in its photo's, boxes_per_image, drawn (items of the `drawn` arm
        in test: recent traffic).
    """
    per_class: dict[str, dict[str, int]] = {name: dict.fromkeys(SPLITS, 0) for name in version.classes}
    sides: Counter[int] = Counter()
    shares: Counter[int] = Counter()  # in thousandths, so that memory does not grow with the boxes
    empty = boxes = drawn = 0
    query = (
        sa.select(
            col(DatasetItem.split),
            col(DatasetItem.value),
            col(DatasetItem.arm),
            col(Sample.width_px),
            col(Sample.height_px),
        )
        .join(Sample, col(Sample.id) == col(DatasetItem.sample_id))
        .where(col(DatasetItem.dataset_version_id) == version.id)
        .execution_options(yield_per=SLICE)
    )
    for split, value, arm, width, height in session.execute(query):
        label = msgspec.convert(value, Label)
        sides[max(width, height)] += 1
        names = class_names(label)
        empty += not names
        drawn += arm == "drawn" and split == "test"
        boxes += len(label.boxes)
        for name in names:
            per_class.setdefault(name, dict.fromkeys(SPLITS, 0))[split] += 1
        for box in label.boxes:
            shares[round(1000 * max(box.x2 - box.x1, box.y2 - box.y1) / max(width, height))] += 1
    training: list[int] = [counts["train"] for counts in per_class.values()]
    images = sum(version.counts["splits"].values())
    return {
        "images": images,
        "splits": version.counts["splits"],
        "sources": version.counts["sources"],
        "classes": per_class,
        "imbalance": max(training) / min(training) if training and min(training) > 0 else None,
        "empty": empty,
        "photo_px": {"min": _quantile(sides, 0), "median": _quantile(sides, 0.5), "max": _quantile(sides, 1)},
        "box_share": {f"p{round(q * 100)}": _quantile(shares, q) / 1000 for q in (0.05, 0.5, 0.95)} if boxes else None,
        "boxes_per_image": boxes / images if images else 0.0,
        "drawn": drawn,
    }


def _quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that `share` of all counted ones do not exceed; 0 of nothing."""
    wanted, seen = share * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return 0


def diff(session: Session, old: DatasetVersion, new: DatasetVersion, *, shown: int = 100) -> dict[str, Any]:
    """What changed between two versions of one model.

    Returns:
        added, removed, relabelled, moved: counts; with `_samples` of each, the first `shown` sample ids; classes: classes
        that are new; per_class: {name: change in labels}.
    """
    before, after = sa.orm.aliased(DatasetItem), sa.orm.aliased(DatasetItem)
    told: dict[str, Any] = {"classes": [name for name in new.classes if name not in old.classes]}
    change: Counter[str] = Counter()
    for kind, (one, other, sign) in {"added": (new, old, 1), "removed": (old, new, -1)}.items():
        query = (
            sa.select(col(after.sample_id), col(after.value))
            .outerjoin(
                before,
                sa.and_(col(before.dataset_version_id) == other.id, col(before.sample_id) == col(after.sample_id)),
            )
            .where(col(after.dataset_version_id) == one.id, col(before.sample_id).is_(None))
            .order_by(col(after.sample_id))
            .execution_options(yield_per=SLICE)
        )
        ids: list[str] = []
        count = 0
        for sample_id, value in session.execute(query):
            count += 1
            ids += [sample_id] if count <= shown else []
            change.update(dict.fromkeys(class_names(msgspec.convert(value, Label)), sign))
        told |= {kind: count, f"{kind}_samples": ids}
    both = (
        sa.select(col(after.sample_id), col(before.value), col(after.value), col(before.split), col(after.split))
        .join(before, sa.and_(col(before.dataset_version_id) == old.id, col(before.sample_id) == col(after.sample_id)))
        .where(col(after.dataset_version_id) == new.id)
        .order_by(col(after.sample_id))
        .execution_options(yield_per=SLICE)
    )
    relabelled: list[str] = []
    moved: list[str] = []
    for sample_id, was, now_is, split_was, split_is in session.execute(both):
        first, second = msgspec.convert(was, Label), msgspec.convert(now_is, Label)
        if canonical(first) != canonical(second):
            relabelled.append(sample_id)
            change.update(class_names(second))
            change.subtract(class_names(first))
        if split_was != split_is:
            moved.append(sample_id)
    for kind, ids in {"relabelled": relabelled, "moved": moved}.items():
        told |= {kind: len(ids), f"{kind}_samples": ids[:shown]}
    return told | {"per_class": {name: n for name, n in sorted(change.items()) if n}}
