"""Labelled photos come in: from a folder or a zip, whole or not at all.

    folder | zip -> formats -> staging (opened, stored, written down) -> splits -> one transaction: samples, labels, classes,
    data set

An import is all in or not in: rows are written in one transaction at its end. The job `retrain.import` does the same for
big data sets: it reports its progress, can be cancelled, and goes on after the last photo when its worker was killed.
A sample's split is fixed for ever by its first label row, and so is a group's.

Errors: DatasetError (what the data set says, or labels that do not fit the model), NotFoundError (no such model).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from retrain import formats, splits
from retrain.formats import Import, LeftOut, Record
from retrain.formats.archive import unpack
from retrain.splits import RATIOS, grouping
from retrain.staging import Stage, Staged
from sutdol import registry
from sutdol.context import Context
from sutdol.dataset_versions import canonical, class_names
from sutdol.db import insert_for
from sutdol.errors import DatasetError
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.tables import Dataset, LabelRow, Sample, now
from sutdol.types import Label

REPORTED = 1000
"""Entries of "left out" and "merged" that a report keeps; it always has the counts of all."""
REPORT_EVERY_S = 1.0
_CHUNK = 500
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (photos done, photos in all; 0 while that is unknown); may raise `Cancelled`."""


@dataclass(frozen=True)
class Plan:
    """How a data set is to be taken in; see `import_folder`."""

    limit_train: float | int | None = None
    ratios: tuple[float, float, float] = RATIOS
    group: str | None = None
    resplit: bool = False
    name: str = ""
    tags: tuple[str, ...] = ()
    memo: str = ""

    def __post_init__(self) -> None:
        limit = self.limit_train
        if limit is not None and (limit <= 0 or (isinstance(limit, float) and limit > 1)):
            raise DatasetError(f"limit_train: expected a count, or a share in (0, 1], found {limit}")
        splits.check_ratios(self.ratios)
        grouping(self.group)


@dataclass(frozen=True)
class _Commit:
    """The one transaction at the end: plain, or under the lease of a job that is noted on the data set."""

    begin: Callable[[], AbstractContextManager[Session]]
    job_id: str | None = None


def import_folder(
    context: Context,
    model: str,
    path: Path,
    *,
    format: str | None = None,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    stage: Path | None = None,
    commit: _Commit | None = None,
    **plan: Any,
) -> Dataset:
    """Import a data set from disk for `model`; its new classes are added to the model's list, sorted by name.

    Args:
        path: a folder, or a zip of one.
        format: a name of FORMATS; None recognises it.
        only: import only photos with one of these stems (file names without ending).
        stage: a folder of its own for the state of this import; a second call with it goes on where the first one ended.
        commit: for the job, which commits under its lease.
        plan: limit_train: keep only so many training photos (int), or that share of them (float in (0, 1]), always the same
            ones; val and test stay whole; a later import without it brings in the rest.
            ratios: train, val, test for photos without a given split, and for a split that the data set lacks.
            group: what stays together, see `splits.grouping`. resplit: the data set's own splits do not count.
            name, tags, memo: for people.

    Returns:
        The data set's row; `report` has counts, and every file left out with line and reason.

    Raises:
        DatasetError: nothing was imported. NotFoundError: no such model.
    """
    wanted = Plan(**plan)
    with context.database.read() as session:
        registry.get_model(session, model)
    with _stage_folder(context, stage) as folder:
        if path.is_file() and path.suffix.lower() == ".zip":
            path = _unpacked(path, folder, progress)
        found, records = formats.stream(path, format=format)
        if only is not None:
            records = _only(records, only, path.name)
        return _import(context, model, found, records, wanted, folder, progress, commit)


def import_records(
    context: Context,
    model: str,
    records: Sequence[Record],
    *,
    format: str = "records",
    progress: Progress | None = None,
    **plan: Any,
) -> Dataset:
    """The same for photos that are in memory, or that no reader knows; see `import_folder`."""
    with _stage_folder(context, None) as folder:
        found = Import(format, expected=len(records))
        return _import(context, model, found, records, Plan(**plan), folder, progress)


def handle(running: Running) -> dict[str, Any]:
    """The handler of `retrain.import`: {"model", "path" or "key", "format", plan...} -> {"dataset_id", "imported", ...}.

    A key names a zip in the store, as an upload leaves it; the zip goes when the import is done.
    The state of the import lies under the job's id, so a second attempt goes on; it goes when the job has ended.
    """
    payload = dict(running.payload)
    model, path, key = str(payload.pop("model")), payload.pop("path", None), payload.pop("key", None)
    for name in ("ratios", "tags"):
        if name in payload:
            payload[name] = tuple(payload[name])
    stage = running.context.settings.home / "imports" / running.job_id
    with running.context.database.read() as session:
        done = session.exec(select(Dataset).where(Dataset.job_id == running.job_id)).first()
    if done is None:
        told = time.monotonic()

        def progress(photo: int, photos: int) -> None:
            nonlocal told
            if time.monotonic() - told >= REPORT_EVERY_S:
                told = time.monotonic()
                running.check_cancelled()
                running.report(step="importing", photo=photo, photos=photos)

        commit = _Commit(running.commit, running.job_id)
        source = Path(str(path)) if key is None else _fetched(running.context, str(key), stage)
        done = import_folder(running.context, model, source, progress=progress, stage=stage, commit=commit, **payload)
    shutil.rmtree(stage, ignore_errors=True)
    if key is not None:
        running.context.store.delete(str(key))
    return {"dataset_id": done.id, **{k: v for k, v in done.report.items() if isinstance(v, int)}}


def _fetched(context: Context, key: str, stage: Path) -> Path:
    """The zip as a file: the store's own where it is a folder, else a copy beside the import's state."""
    if context.store.root is not None:
        return context.store.root / key
    stage.mkdir(parents=True, exist_ok=True)
    path = stage / "upload.zip"
    if not path.is_file():
        context.store.fetch(key, path)
    return path


class _stage_folder:  # noqa: N801  (reads as a function where it is used)
    """The folder given, kept when the import fails; or one of its own, which goes."""

    def __init__(self, context: Context, given: Path | None) -> None:
        self._given = given
        self._parent = context.settings.home / "imports"

    def __enter__(self) -> Path:
        if self._given is not None:
            return self._given
        self._parent.mkdir(parents=True, exist_ok=True)
        self._own = Path(tempfile.mkdtemp(dir=self._parent))
        return self._own

    def __exit__(self, *_: object) -> None:
        if self._given is None:
            shutil.rmtree(self._own, ignore_errors=True)


def _unpacked(archive: Path, folder: Path, progress: Progress | None) -> Path:
    place, mark = folder / "unpacked", folder / "unpacked.txt"
    if mark.is_file():
        return Path(mark.read_text())
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    inner = unpack(archive, place, check=(lambda: progress(0, 0)) if progress else (lambda: None))
    mark.write_text(str(inner))
    return inner


def _only(records: Iterable[Record], only: Collection[str], where: str) -> Iterator[Record]:
    missing = {name.casefold() for name in only}
    wanted = set(missing)
    for record in records:
        stem = Path(record.name).stem.casefold()
        if stem in wanted:
            missing.discard(stem)
            yield record
    if missing:
        raise DatasetError(f"no photo named {sorted(missing)[0]!r} in {where} ({len(missing)} names unknown)")


def _import(
    context: Context,
    model: str,
    found: Import,
    records: Iterable[Record],
    plan: Plan,
    folder: Path,
    progress: Progress | None,
    commit: _Commit | None = None,
) -> Dataset:
    with context.database.read() as session:
        task = registry.get_model(session, model).task
    stage = Stage(folder, context.store)
    try:
        on_photo = (lambda number: progress(number, found.expected)) if progress else (lambda number: None)
        stage.fill(records, slug=model, task=task, group=grouping(plan.group), on_photo=on_photo)  # type: ignore[arg-type]
        stage.report(found)
        merged = stage.merge(found)
        _split(context, model, stage, found, plan)
        not_chosen = stage.limit_train(plan.limit_train) if plan.limit_train is not None else 0
        if not stage.count():
            first = f"; the first: {found.left_out[0].file}: {found.left_out[0].reason}" if found.left_out else ""
            raise DatasetError(f"{found.format}: expected usable labelled photos, found none{first}")
        commit = commit or _Commit(context.database.begin)
        with commit.begin() as session:
            row = _write(session, model, stage, found, merged, plan, not_chosen=not_chosen)
            row.job_id = commit.job_id
        return row
    finally:
        stage.close()


def _split(context: Context, model: str, stage: Stage, found: Import, plan: Plan) -> None:
    """Keep the splits that the data set gives, and share out the rest; a val or test that is missing is cut from train.

    Raises:
        DatasetError: the splits that the data set gives divide a group that was asked to stay together.
    """
    ratios = plan.ratios
    if plan.resplit:
        stage.forget_given()
    elif torn := stage.torn_groups():
        key, one, other = torn[0]
        raise DatasetError(
            f"the data set's own splits divide {len(torn)} groups; the first, {key.removeprefix('group:')!r}: {one}, {other}",
            hint="import without its splits (--resplit), or without groups",
        )
    kept = _known_groups(context, model, stage)
    if kept:
        found.notes.append(f"{kept} photos follow their group into the split where it already is")
    given = stage.given()
    stage.take_given()
    lacking = [s for s, ratio in (("val", ratios[1]), ("test", ratios[2])) if s not in given and ratio > 0]
    if given and lacking and not stage.undecided() and not kept:
        val, test = (r if s in lacking else 0.0 for s, r in (("val", ratios[1]), ("test", ratios[2])))
        stage.reopen("train")
        stage.share_out(lambda strata: splits.share_out(strata, (1 - val - test, val, test)))
        found.notes.append(f"the data set has no {' and no '.join(lacking)}; cut from its train")
    else:
        stage.share_out(lambda strata: splits.share_out(strata, ratios))


def _known_groups(context: Context, model: str, stage: Stage) -> int:
    """Groups of which photos were imported earlier keep their split; how many photos that decides."""
    moved = 0
    with context.database.read() as session:
        for chunk in _chunks(stage.groups()):
            query = sa.select(col(LabelRow.sample_group), sa.func.min(col(LabelRow.split))).where(
                col(LabelRow.model) == model, col(LabelRow.sample_group).in_(chunk)
            )
            for group, split in session.execute(query.group_by(col(LabelRow.sample_group))):
                moved += stage.put_group(str(group), str(split))
    return moved


def _write(
    session: Session,
    model: str,
    stage: Stage,
    found: Import,
    merged: list[LeftOut],
    plan: Plan,
    *,
    not_chosen: int,
) -> Dataset:
    classes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    per_split: dict[str, int] = dict.fromkeys(("train", "val", "test"), 0)
    for chunk in _chunks(stage.photos()):
        query = select(LabelRow).where(
            LabelRow.model == model, col(LabelRow.sample_id).in_([p.sample_id for p in chunk])
        )
        present = {row.sample_id: row for row in session.exec(query)}
        new = [photo for photo in chunk if photo.sample_id not in present]
        for photo in chunk:
            there = present.get(photo.sample_id)
            if there is None:
                continue
            if canonical(msgspec.convert(there.value, Label)) == photo.canonical:
                counts["already_there"] += 1
            else:
                reason = f"this photo is in the data of {model} with another label ({there.source})"
                found.leave_out(photo.name, 0, reason)
        _insert_new(session, Sample, [_sample(p) for p in new], key=["id"])
        _insert_new(session, LabelRow, [_label_row(model, p) for p in new], key=["model", "sample_id"])
        session.expire_all()
        for photo in new:
            counts["imported"] += 1
            counts["boxes"] += len(photo.label.boxes)
            per_split[photo.split] += 1
            classes.update(class_names(photo.label))
    registry.add_classes(session, model, sorted(classes))
    found.left_out.sort(key=lambda e: (e.file, e.line))
    row = Dataset(
        model=model,
        format=found.format,
        name=plan.name,
        tags=list(plan.tags),
        memo=plan.memo,
        report={
            "imported": counts["imported"],
            "already_there": counts["already_there"],
            "not_chosen": not_chosen,
            "boxes": counts["boxes"],
            "clipped_boxes": found.clipped,
            "classes": dict(sorted(classes.items())),
            "splits": per_split,
            "left_out_count": len(found.left_out),
            "left_out": [vars(e) for e in found.left_out[:REPORTED]],
            "merged_count": len(merged),
            "merged": [vars(e) for e in merged[:REPORTED]],
            "notes": found.notes,
        },
    )
    session.add(row)
    text = (
        f"{counts['imported']} labelled photos imported into {model} ({found.format}), "
        f"{len(found.left_out)} entries left out"
    )
    tell(session, "dataset.imported", text, model=model, dataset_id=row.id)
    return row


def _sample(photo: Staged) -> dict[str, Any]:
    size = {"width_px": photo.width_px, "height_px": photo.height_px, "media_type": photo.media_type}
    return {"id": photo.sample_id, "size_bytes": photo.size_bytes, "created_at": now()} | size


def _label_row(model: str, photo: Staged) -> dict[str, Any]:
    value = msgspec.to_builtins(photo.label)
    row = {
        "model": model,
        "sample_id": photo.sample_id,
        "value": value,
        "source": "imported",
        "arm": None,
        "weight": 1.0,
    }
    return row | {"split": photo.split, "sample_group": photo.group, "created_at": now(), "updated_at": now()}


def _insert_new(session: Session, table: type[SQLModel], rows: list[dict[str, Any]], *, key: list[str]) -> None:
    """Bulk insert; rows whose key is there already stay as they are."""
    if rows:
        session.execute(insert_for(session)(table).on_conflict_do_nothing(index_elements=key), rows)


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    chunk: list[T] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
