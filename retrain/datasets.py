"""Immutable dataset versions: frozen, and written out again.

    labels of a model -> freeze -> DatasetVersion with its items (copied, so labels may change later)
    DatasetVersion -> export -> a folder in any of FORMATS

Photos come in by `retrain.imports`, what is in a version is counted by `sutdol.dataset_versions`. A version is copied inside
the database and read in slices, so that a hundred thousand samples take seconds and no memory.

Errors: DatasetError (no labels yet, a format that cannot hold them), NotFoundError (no such model or version).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, col, select

from retrain.formats import FORMATS, Photo
from retrain.formats.records import SUFFIX
from retrain.imports import import_folder, import_records
from retrain.splits import RATIOS, assign_splits
from sutdol import registry
from sutdol.context import Context
from sutdol.dataset_versions import SLICE, SPLITS, canonical, class_names, describe, diff, get_version, statistics
from sutdol.errors import DatasetError
from sutdol.tables import DatasetItem, DatasetVersion, LabelRow, Sample, new_id
from sutdol.types import Label, Split

_LABEL = msgspec.json.Decoder(Label)


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
    query = (
        sa.select(
            col(DatasetItem.sample_id),
            col(DatasetItem.split),
            sa.cast(col(DatasetItem.value), sa.Text),  # decoded by us, which takes a third of the time
            col(DatasetItem.source),
        )
        .where(col(DatasetItem.dataset_version_id) == version_id)
        .order_by(col(DatasetItem.sample_id))
        .execution_options(yield_per=SLICE)
    )
    for sample_id, split, value, source in session.execute(query):
        label = _LABEL.decode(value)
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


def items(session: Session, dataset_version_id: str, split: Split | None = None) -> list[DatasetItem]:
    """The items of a dataset version, of one split or all, sorted by sample id."""
    query = select(DatasetItem).where(DatasetItem.dataset_version_id == dataset_version_id)
    if split is not None:
        query = query.where(DatasetItem.split == split)
    return list(session.exec(query.order_by(col(DatasetItem.sample_id))).all())


def label_of(item: DatasetItem | LabelRow) -> Label:
    """The truth of an item or label row as a checked struct."""
    return msgspec.convert(item.value, Label)


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
            .execution_options(yield_per=SLICE)
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
