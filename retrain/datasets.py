"""Immutable dataset versions: frozen, counted, described, compared, and written out again.

    labels of a model -> freeze -> DatasetVersion with its items (copied, so labels may change later)
    DatasetVersion -> statistics | diff | export (a folder or a zip in any of FORMATS)

Photos come in by `retrain.imports`. A version is copied inside the database and read in slices, so that a hundred thousand
samples take seconds and no memory.

Errors: DatasetError (no labels yet, a format that cannot hold them), NotFoundError (no such model or version).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, col, select

from retrain.formats import FORMATS, Photo
from retrain.formats.records import SUFFIX
from retrain.imports import import_folder, import_records
from retrain.splits import RATIOS, assign_splits
from retrain.staging import canonical, class_names
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import DatasetError, unknown
from sutdol.tables import DatasetItem, DatasetVersion, LabelRow, Sample, new_id
from sutdol.types import Label, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SLICE = 2000


def freeze(session: Session, model: str) -> DatasetVersion:
    """An immutable copy of all labels of `model`; the newest version again when nothing changed since.

    Raises:
        DatasetError: the model has no labels yet. NotFoundError: no such model.
    """
    known = registry.get_model(session, model)
    version_id = new_id()
    # Copied first and counted from the copy: labels that people change meanwhile are either in both or in neither.
    with session.begin_nested() as nested:
        columns = ("sample_id", "split", "value", "source", "arm", "weight")
        copied = sa.select(sa.literal(version_id), *(getattr(LabelRow, c) for c in columns)).where(
            col(LabelRow.model) == model
        )
        session.execute(sa.insert(DatasetItem).from_select(["dataset_version_id", *columns], copied))
        digest, test_digest, counts = _digests(session, version_id)
        if not counts["splits"]:
            raise DatasetError(f"{model} has no labelled samples yet", hint="import a data set or answer label tasks")
        same = session.exec(
            select(DatasetVersion).where(DatasetVersion.model == model, DatasetVersion.digest == digest)
        ).first()
        if same is not None:
            nested.rollback()
            return same
        newest = session.exec(select(sa.func.max(DatasetVersion.number)).where(DatasetVersion.model == model)).one()
        version = DatasetVersion(
            id=version_id,
            model=model,
            number=(newest or 0) + 1,
            digest=digest,
            test_digest=test_digest,
            classes=list(known.classes),
            counts=counts,
            tags=[],
        )
        session.add(version)
    return version


def _digests(session: Session, version_id: str) -> tuple[str, str, dict[str, Any]]:
    """(digest of all items, digest of the test items, counts), in one pass over the copy."""
    whole, test = hashlib.sha256(), hashlib.sha256()
    splits: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    classes: dict[str, Counter[str]] = {s: Counter() for s in SPLITS}
    for sample_id, split, value, source in _columns(session, version_id, "sample_id", "split", "value", "source"):
        label = msgspec.convert(value, Label)
        text = canonical(label)
        whole.update(msgspec.json.encode((sample_id, split, text, source)) + b"\n")
        if split == "test":
            test.update(msgspec.json.encode((sample_id, text)) + b"\n")
        splits[split] += 1
        sources[source] += 1
        classes[split].update(class_names(label))
    counts = {
        "splits": dict(sorted(splits.items())),
        "sources": dict(sorted(sources.items())),
        "classes": {split: dict(sorted(found.items())) for split, found in classes.items()},
    }
    return whole.hexdigest(), test.hexdigest(), counts


def _columns(session: Session, version_id: str, *names: str) -> Iterator[Any]:
    """Columns of a version's items, sorted by sample id, in slices."""
    query = (
        sa.select(*(getattr(DatasetItem, name) for name in names))
        .where(col(DatasetItem.dataset_version_id) == version_id)
        .order_by(col(DatasetItem.sample_id))
        .execution_options(yield_per=_SLICE)
    )
    yield from session.execute(query)


def items(session: Session, dataset_version_id: str, split: Split | None = None) -> list[DatasetItem]:
    """The items of a dataset version, of one split or all, sorted by sample id."""
    query = select(DatasetItem).where(DatasetItem.dataset_version_id == dataset_version_id)
    if split is not None:
        query = query.where(DatasetItem.split == split)
    return list(session.exec(query.order_by(col(DatasetItem.sample_id))).all())


def label_of(item: DatasetItem | LabelRow) -> Label:
    """The truth of an item or label row as a checked struct."""
    return msgspec.convert(item.value, Label)


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
        .execution_options(yield_per=_SLICE)
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
            .execution_options(yield_per=_SLICE)
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
        .execution_options(yield_per=_SLICE)
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


def export(
    context: Context,
    version: DatasetVersion,
    folder: Path,
    format: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a version into `folder`, which must not exist or be empty; the number of photos.

    Photos are named by their content, so two of one name cannot meet, and importing the folder gives the same labels.

    Raises:
        DatasetError: the format cannot hold these labels, or the folder is not empty.
    """
    if format not in FORMATS:
        raise DatasetError(f"unknown format {format!r}", hint=f"known: {', '.join(FORMATS)}")
    with context.database.read() as session:
        task = registry.get_model(session, version.model).task
        if task not in FORMATS[format].tasks:
            able = [name for name, known in FORMATS.items() if task in known.tasks]
            raise DatasetError(f"{format} cannot hold the labels of a {task} model", hint=f"choose {' or '.join(able)}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DatasetError(f"{folder.name}: expected a new or empty folder", hint="name another one")
        folder.mkdir(parents=True, exist_ok=True)
        writer = FORMATS[format].write(folder, version.classes)
        total = sum(version.counts["splits"].values())
        query = (
            sa.select(col(DatasetItem.sample_id), col(DatasetItem.split), col(DatasetItem.value), *_SAMPLE)
            .join(Sample, col(Sample.id) == col(DatasetItem.sample_id))
            .where(col(DatasetItem.dataset_version_id) == version.id)
            .order_by(col(DatasetItem.sample_id))
            .execution_options(yield_per=_SLICE)
        )
        done = 0
        for done, (sample_id, split, value, width, height, media_type) in enumerate(session.execute(query), 1):
            label, key = msgspec.convert(value, Label), f"samples/{sample_id}"
            read = _reader(context, key)
            writer.add(Photo(sample_id, SUFFIX[media_type], (width, height), label, split, read))
            if progress is not None:
                progress(done, total)
        writer.close()
    return done


_SAMPLE = (col(Sample.width_px), col(Sample.height_px), col(Sample.media_type))


def _reader(context: Context, key: str) -> Callable[[], bytes]:
    return lambda: context.store.get(key)


__all__ = [
    "RATIOS",
    "assign_splits",
    "describe",
    "diff",
    "export",
    "freeze",
    "get_version",
    "import_folder",
    "import_records",
    "items",
    "label_of",
    "statistics",
]
