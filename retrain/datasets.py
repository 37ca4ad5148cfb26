"""Labelled photos come in, and immutable dataset versions go out.

    folder -> formats -> records -> admit, decode, store bytes -> one transaction: samples, labels, classes, data set
    labels of a model -> freeze -> DatasetVersion with its items (copied, so labels may change later)

An import is all in or not in: rows are written in one transaction at its end. Bytes are stored before it, under their
hash, where a second try finds them again. A sample's split is fixed for ever by its first label row.

Errors: DatasetError (what the data set says, or labels that do not fit the model), NotFoundError (no such model).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from retrain import formats
from retrain.formats import Import, LeftOut, Record
from sutdol import images, registry
from sutdol.context import Context
from sutdol.db import insert_for
from sutdol.errors import DatasetError, ImageError
from sutdol.events import tell
from sutdol.tables import Dataset, DatasetItem, DatasetVersion, LabelRow, Model, Sample, now
from sutdol.types import Box, Label, Split

RATIOS = (0.7, 0.1, 0.2)
"""Shares of train, val and test for photos whose data set says nothing."""
REPORTED = 1000
"""Entries of "left out" and "merged" that a report keeps; it always has the counts of all."""
_CHUNK = 500

Progress = Callable[[int, int], None]
"""Called with (photos done, photos in all); may raise `Cancelled`."""


@dataclass(frozen=True)
class _Admitted:
    record: Record
    image: images.Image
    """Without its bytes: they are in the store already."""
    size_bytes: int


def import_folder(
    context: Context,
    model: str,
    path: Path,
    *,
    format: str | None = None,
    limit_train: float | int | None = None,
    only: Collection[str] | None = None,
    ratios: tuple[float, float, float] = RATIOS,
    progress: Progress | None = None,
) -> Dataset:
    """Import a data set from disk for `model`; its new classes are added to the model's list, sorted by name.

    Args:
        format: a name of FORMATS; None recognises it.
        limit_train: keep only so many training photos (int), or that share of them (float in (0, 1]), always the same
            ones; val and test stay whole. A later import without it brings in the rest.
        only: import only photos with one of these stems (file names without ending).
        ratios: train, val, test for photos without a given split, and for a split that the data set lacks.

    Returns:
        The data set's row; `report` has counts, and every file left out with line and reason.

    Raises:
        DatasetError: nothing was imported. NotFoundError: no such model.
    """
    with context.database.read() as session:
        registry.get_model(session, model)
    found = formats.read(path, format=format)
    if only is not None:
        wanted = {name.casefold() for name in only}
        found.records = [r for r in found.records if Path(r.name).stem.casefold() in wanted]
        if missing := wanted - {Path(r.name).stem.casefold() for r in found.records}:
            raise DatasetError(f"no photo named {sorted(missing)[0]!r} in {path.name} ({len(missing)} names unknown)")
    return _import(context, model, found, limit_train=limit_train, ratios=ratios, progress=progress)


def import_records(
    context: Context,
    model: str,
    records: Sequence[Record],
    *,
    format: str = "records",
    limit_train: float | int | None = None,
    ratios: tuple[float, float, float] = RATIOS,
    progress: Progress | None = None,
) -> Dataset:
    """The same for photos that are in memory, or that no reader knows; see `import_folder`."""
    found = Import(format, list(records))
    return _import(context, model, found, limit_train=limit_train, ratios=ratios, progress=progress)


def freeze(session: Session, model: str) -> DatasetVersion:
    """An immutable copy of all labels of `model`; the newest version again when nothing changed since.

    Raises:
        DatasetError: the model has no labels yet. NotFoundError: no such model.
    """
    known = registry.get_model(session, model)
    rows = session.exec(select(LabelRow).where(LabelRow.model == model).order_by(col(LabelRow.sample_id))).all()
    if not rows:
        raise DatasetError(f"{model} has no labelled samples yet", hint="import a data set or answer label tasks")
    digest = _digest((r.sample_id, r.split, _canonical(r.value), r.source) for r in rows)
    same = session.exec(
        select(DatasetVersion).where(DatasetVersion.model == model, DatasetVersion.digest == digest)
    ).first()
    if same is not None:
        return same
    newest = session.exec(select(sa.func.max(DatasetVersion.number)).where(DatasetVersion.model == model)).one()
    version = DatasetVersion(
        model=model,
        number=(newest or 0) + 1,
        digest=digest,
        test_digest=_digest((r.sample_id, _canonical(r.value)) for r in rows if r.split == "test"),
        classes=list(known.classes),
        counts=_counts(rows),
    )
    session.add(version)
    session.flush()
    columns = ("sample_id", "split", "value", "source", "arm", "weight")
    for chunk in _chunks(rows):
        values = [{c: getattr(r, c) for c in columns} | {"dataset_version_id": version.id} for r in chunk]
        session.execute(sa.insert(DatasetItem), values)
    return version


def items(session: Session, dataset_version_id: str, split: Split | None = None) -> list[DatasetItem]:
    """The items of a dataset version, of one split or all, sorted by sample id."""
    query = select(DatasetItem).where(DatasetItem.dataset_version_id == dataset_version_id)
    if split is not None:
        query = query.where(DatasetItem.split == split)
    return list(session.exec(query.order_by(col(DatasetItem.sample_id))).all())


def label_of(item: DatasetItem | LabelRow) -> Label:
    """The truth of an item or label row as a checked struct."""
    return msgspec.convert(item.value, Label)


def assign_splits(
    units: Sequence[tuple[str, str]], ratios: tuple[float, float, float] = RATIOS, *, salt: str = ""
) -> list[Split]:
    """Splits for `units` of (key, stratum), deterministic by hash and stratified: every stratum is shared out by `ratios`.

    Every stratum keeps at least one unit in train; what it is too small to give to test and val, the next one gives.

    Raises:
        DatasetError: ratios that are negative or do not add up to 1.

    >>> assign_splits([(str(i), "cat") for i in range(10)]).count("test")
    2
    """
    if min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6:
        raise DatasetError(f"split ratios: expected three shares that add up to 1, found {ratios}")
    strata: dict[str, list[int]] = defaultdict(list)
    for index, (_, stratum) in enumerate(units):
        strata[stratum].append(index)
    splits: list[Split] = ["train"] * len(units)
    owed_test, owed_val = 0.0, 0.0
    for stratum in sorted(strata):
        members = sorted(strata[stratum], key=lambda i: _rank(units[i][0], salt))
        owed_test += ratios[2] * len(members)
        owed_val += ratios[1] * len(members)
        room = len(members) - (1 if ratios[0] > 0 else 0)
        tests = min(room, round(owed_test))
        vals = min(room - tests, round(owed_val))
        owed_test, owed_val = owed_test - tests, owed_val - vals
        for place, index in enumerate(members[: tests + vals]):
            splits[index] = "test" if place < tests else "val"
    return splits


def _import(
    context: Context,
    model: str,
    found: Import,
    *,
    limit_train: float | int | None,
    ratios: tuple[float, float, float],
    progress: Progress | None,
) -> Dataset:
    if limit_train is not None and (limit_train <= 0 or (isinstance(limit_train, float) and limit_train > 1)):
        raise DatasetError(f"limit_train: expected a count, or a share in (0, 1], found {limit_train}")
    with context.database.read() as session:
        known = registry.get_model(session, model)
        _check_task(known, found)
    admitted = _admit(context, found, progress)
    merged: list[LeftOut] = []
    unique = _merge(admitted, found, merged)
    with_splits = _split(unique, found, ratios)
    chosen = _limit(with_splits, limit_train)
    if not chosen:
        first = f"; the first: {found.left_out[0].file}: {found.left_out[0].reason}" if found.left_out else ""
        raise DatasetError(f"{found.format}: expected usable labelled photos, found none{first}")
    with context.database.begin() as session:
        return _write(session, model, chosen, found, merged, offered=len(with_splits))


def _check_task(model: Model, found: Import) -> None:
    """Labels of the wrong kind are a mistake of the whole import, not of one photo."""
    for record in found.records:
        classes, boxes = record.label.classes, record.label.boxes
        if model.task == "detect" and classes:
            wrong = f"{model.slug} detects objects, expected boxes, found the class {classes[0]!r}"
        elif model.task != "detect" and boxes:
            wrong = f"{model.slug} is a {model.task} model, expected classes, found boxes"
        elif model.task == "classify" and len(classes) != 1:
            wrong = f"{model.slug} classifies, expected one class, found {len(classes)}"
        else:
            continue
        raise DatasetError(f"{record.name}: {wrong}", hint="import into a model of the right task")


def _admit(context: Context, found: Import, progress: Progress | None) -> list[_Admitted]:
    """Open every photo, compare its size with the annotation, store its bytes."""
    admitted = []
    for number, record in enumerate(found.records, 1):
        try:
            image = images.admit(record.read())
            images.decode(image.data, cover_hw=(1, 1))  # a truncated photo must not wait for the training to be found
        except ImageError as error:
            found.leave_out(record.name, 0, str(error))
        else:
            fitted = _fit_label(record, image, found)
            if fitted is not None:
                context.store.put(f"samples/{image.sample_id}", image.data)
                admitted.append(
                    _Admitted(replace(fitted, data=b"", path=None), replace(image, data=b""), len(image.data))
                )
        if progress is not None:
            progress(number, len(found.records))
    return admitted


def _fit_label(record: Record, image: images.Image, found: Import) -> Record | None:
    wh, declared = (image.width_px, image.height_px), record.declared_wh
    if declared is not None and declared != wh:
        turned = " (turned by its EXIF orientation)" if declared == wh[::-1] else ""
        reason = f"the annotation says {declared[0]} x {declared[1]} pixels, the photo has {wh[0]} x {wh[1]}{turned}"
        found.leave_out(record.name, 0, f"{reason}; annotate the upright photo")
        return None
    if not record.label.boxes:
        return record
    boxes: list[Box] = formats.clip_boxes([(box, 0) for box in record.label.boxes], wh, record.name, found)
    return replace(record, label=Label(classes=record.label.classes, boxes=boxes))


def _merge(admitted: list[_Admitted], found: Import, merged: list[LeftOut]) -> list[_Admitted]:
    """One entry per content. Copies that agree are merged; copies that disagree are all left out."""
    by_id: dict[str, list[_Admitted]] = defaultdict(list)
    for entry in admitted:
        by_id[entry.image.sample_id].append(entry)
    unique = []
    for copies in by_id.values():
        first = copies[0].record
        if len({_canonical(msgspec.to_builtins(c.record.label)) for c in copies}) > 1:
            for copy in copies:
                others = ", ".join(c.record.name for c in copies if c is not copy)
                found.leave_out(copy.record.name, 0, f"the same photo is labelled differently as {others}")
            continue
        for copy in copies[1:]:
            merged.append(LeftOut(copy.record.name, 0, f"the same photo as {first.name}"))
        # A copy in test and one in train would let the test set be learned by heart.
        splits = {c.record.split for c in copies}
        split = next((s for s in _SAFEST if s in splits), None)
        unique.append(replace(copies[0], record=replace(first, split=split)))
    return unique


_SAFEST: tuple[Split, ...] = ("test", "val", "train")


def _split(unique: list[_Admitted], found: Import, ratios: tuple[float, float, float]) -> list[tuple[_Admitted, Split]]:
    """Keep the splits that the data set gives, and share out the rest; a val or test that is missing is cut from train."""
    given: set[Split] = {e.record.split for e in unique if e.record.split is not None}
    open_entries = [e for e in unique if e.record.split is None]
    splits: dict[str, Split] = {e.image.sample_id: e.record.split for e in unique if e.record.split is not None}
    splits |= _by_unit(open_entries, ratios)
    lacking = [s for s, ratio in (("val", ratios[1]), ("test", ratios[2])) if s not in given and ratio > 0]
    if given and lacking and not open_entries:
        val, test = (r if s in lacking else 0.0 for s, r in (("val", ratios[1]), ("test", ratios[2])))
        training = [e for e in unique if splits[e.image.sample_id] == "train"]
        splits |= _by_unit(training, (1 - val - test, val, test))
        found.notes.append(f"the data set has no {' and no '.join(lacking)}; cut from its train")
    return [(entry, splits[entry.image.sample_id]) for entry in unique]


def _by_unit(entries: list[_Admitted], ratios: tuple[float, float, float]) -> dict[str, Split]:
    units: dict[str, list[_Admitted]] = defaultdict(list)
    for entry in entries:
        units[f"group:{entry.record.group}" if entry.record.group else entry.image.sample_id].append(entry)
    frequency = Counter(name for e in entries for name in set(_class_names(e.record.label)))
    keyed = [(key, _stratum([e.record.label for e in members], frequency)) for key, members in units.items()]
    return {
        entry.image.sample_id: split
        for (key, _), split in zip(keyed, assign_splits(keyed, ratios), strict=True)
        for entry in units[key]
    }


def _stratum(labels: list[Label], frequency: Counter[str]) -> str:
    """The rarest class of a unit, because the rarest class is the one that a split can lack."""
    names = {name for label in labels for name in _class_names(label)}
    return min(names, key=lambda name: (frequency[name], name), default="")


def _class_names(label: Label) -> list[str]:
    return [*label.classes, *(box.label for box in label.boxes)]


def _limit(entries: list[tuple[_Admitted, Split]], limit: float | int | None) -> list[tuple[_Admitted, Split]]:
    if limit is None:
        return entries
    training = sorted((e.image.sample_id for e, split in entries if split == "train"), key=lambda i: _rank(i, "limit"))
    kept = set(training[: round(limit * len(training)) if isinstance(limit, float) else limit])
    return [(e, split) for e, split in entries if split != "train" or e.image.sample_id in kept]


def _write(
    session: Session,
    model: str,
    chosen: list[tuple[_Admitted, Split]],
    found: Import,
    merged: list[LeftOut],
    *,
    offered: int,
) -> Dataset:
    present: dict[str, LabelRow] = {}
    for chunk in _chunks([entry.image.sample_id for entry, _ in chosen]):
        query = select(LabelRow).where(LabelRow.model == model, col(LabelRow.sample_id).in_(chunk))
        present |= {row.sample_id: row for row in session.exec(query)}
    samples, labels, added, known = [], [], [], 0
    for entry, split in chosen:
        image, record = entry.image, entry.record
        value = msgspec.to_builtins(record.label)
        if (there := present.get(image.sample_id)) is not None:
            if _canonical(there.value) == _canonical(value):
                known += 1
            else:
                found.leave_out(
                    record.name, 0, f"this photo is in the data of {model} with another label ({there.source})"
                )
            continue
        size = {"width_px": image.width_px, "height_px": image.height_px, "media_type": image.media_type}
        samples.append({"id": image.sample_id, "size_bytes": entry.size_bytes, "created_at": now()} | size)
        labels.append(
            {"model": model, "sample_id": image.sample_id, "value": value, "source": "imported", "arm": None}
            | {"weight": 1.0, "split": split, "created_at": now(), "updated_at": now()}
        )
        added.append((record, split))
    _insert_new(session, Sample, samples, key=["id"])
    _insert_new(session, LabelRow, labels, key=["model", "sample_id"])
    records = [record for record, _ in added]
    classes = formats.count_labels(records)
    registry.add_classes(session, model, list(classes))
    found.left_out.sort(key=lambda e: (e.file, e.line))
    row = Dataset(
        model=model,
        format=found.format,
        report={
            "imported": len(added),
            "already_there": known,
            "not_chosen": offered - len(chosen),
            "boxes": sum(len(r.label.boxes) for r in records),
            "clipped_boxes": found.clipped,
            "classes": classes,
            "splits": {s: sum(split == s for _, split in added) for s in ("train", "val", "test")},
            "left_out_count": len(found.left_out),
            "left_out": [vars(e) for e in found.left_out[:REPORTED]],
            "merged_count": len(merged),
            "merged": [vars(e) for e in merged[:REPORTED]],
            "notes": found.notes,
        },
    )
    session.add(row)
    text = (
        f"{len(added)} labelled photos imported into {model} ({found.format}), {len(found.left_out)} entries left out"
    )
    tell(session, "dataset.imported", text, model=model, dataset_id=row.id)
    return row


def _insert_new(session: Session, table: type[SQLModel], rows: list[dict[str, Any]], *, key: list[str]) -> None:
    """Bulk insert; rows whose key is there already stay as they are."""
    for chunk in _chunks(rows):
        session.execute(insert_for(session)(table).on_conflict_do_nothing(index_elements=key), list(chunk))


def _counts(rows: Sequence[LabelRow]) -> dict[str, Any]:
    per_class: dict[str, Counter[str]] = {s: Counter() for s in ("train", "val", "test")}
    for row in rows:
        per_class[row.split].update(_class_names(msgspec.convert(row.value, Label)))
    return {
        "splits": dict(sorted(Counter(r.split for r in rows).items())),
        "sources": dict(sorted(Counter(r.source for r in rows).items())),
        "classes": {split: dict(sorted(counts.items())) for split, counts in per_class.items()},
    }


def _canonical(value: dict[str, Any]) -> str:
    """One text per label: keys sorted, boxes sorted, so that equal labels have equal digests."""
    label = msgspec.convert(value, Label)
    boxes = sorted((b.label, b.x1, b.y1, b.x2, b.y2) for b in label.boxes)
    return msgspec.json.encode([sorted(label.classes), boxes]).decode()


def _digest(parts: Iterable[tuple[str, ...]]) -> str:
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update(msgspec.json.encode(part) + b"\n")
    return digest.hexdigest()


def _rank(key: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()


def _chunks(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))


__all__ = ["RATIOS", "assign_splits", "freeze", "import_folder", "import_records", "items", "label_of"]
